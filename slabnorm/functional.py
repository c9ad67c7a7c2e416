"""The two functions: check what the user gave, plan, run."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from slabnorm import kernels
from slabnorm.autograd import run
from slabnorm.errors import OptionError, ShapeError, StatisticsError
from slabnorm.kernels import eager
from slabnorm.kernels.activations import check_activation
from slabnorm.kernels.call import Given
from slabnorm.mergeable_moments import Moments
from slabnorm.notation import Pattern, parse, parse_uncached
from slabnorm.prepare import check_fits, check_input, prepare
from slabnorm.slab import plan
from slabnorm.tracing import traced


def moments(x: Tensor, pattern: str | Pattern, /, **sizes: int) -> Moments:
    """Return count, mean, squared deviations, minimum and maximum of every slab of a tensor.

    Statistics are taken in float64: shifted by an element of the slab, then by the mean.

    Args:
        x: a floating-point tensor.
        pattern: what to keep apart and what to pool, such as "n c h w -> c".
        **sizes: sizes of split axes, as in `g=32`.

    Returns:
        Moments whose fields have the shape of the pattern's right side, without a graph.

    Raises:
        PatternError, ShapeError: the pattern is wrong or does not fit x.
        DtypeError: x holds integers, complex numbers or is sparse.

    >>> import slabnorm as sn, torch
    >>> m = sn.moments(torch.tensor([[1.0, 10.0], [3.0, 30.0]]), "n c -> c")
    >>> m.mean, m.std()
    (tensor([ 2., 20.], dtype=torch.float64), tensor([ 1., 10.], dtype=torch.float64))
    """
    pattern = _as_pattern(pattern)
    check_input(x, "x")
    slab = plan(pattern, (), tuple(x.shape), tuple(sorted(sizes.items())))
    if slab.count == 0 or slab.slabs == 0:
        return Moments.empty(slab.kept.shape, x.device)
    with torch.no_grad():
        x = x.detach()
        backend = eager if traced() else kernels.backend(x, slab)
        mean, low, m2 = backend.statistics(x, slab)
        count = torch.full_like(mean, slab.count, dtype=torch.int64)
        return Moments(count, mean, m2, *eager.extrema(x, slab), mean_low=low)


def normalize(
    x: Tensor,
    pattern: str | Pattern,
    /,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: Tensor | None = None,
    center: bool = True,
    affine: str | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    inplace: bool = False,
    **sizes: int,
) -> Tensor:
    """Normalise a tensor over the slabs that a pattern names.

        y = activation(weight * (x - mean_S) / sqrt(var_S + eps) + bias + residual)

    S is the slab an element lies in. With `center=False`, y = weight * x / sqrt(mean_S(x^2) + eps).

    Args:
        x: a tensor of float32, float64, bfloat16 or float16, of any strides.
        pattern: every axis of x, "->", the axes that keep statistics of their own.
        weight, bias: gamma and beta, along the axis that contains `c`, or along `affine`.
        eps: added to the variance, in squared units of x; 0 or more.
        activation: relu, leaky_relu, silu, gelu, gelu_tanh, sigmoid, tanh or hardswish.
        residual: a tensor of x's shape, added before the activation.
        center: False leaves the mean where it is (RMS norm).
        affine: the axes of weight and bias, such as "c h w" or "(g c)".
        mean, var: use these statistics instead of the slab's own: constants of the shape of the
            pattern's right side. No gradient flows to them.
        inplace: allow the result to take the memory of x, which then is the result: go on with that alone.
            Compiled kernels on the CPU do so where no gradient is needed, eps is not 0, and x is dense
            memory that PyTorch has allocated and shares with no other tensor of the call. Elsewhere x
            stays as it is.
        **sizes: sizes of split axes, as in `g=32`.

    Returns:
        A tensor of x's shape, dtype and memory format, differentiable twice and more.

    Raises:
        PatternError, ShapeError: the pattern is wrong, or a tensor does not fit it.
        DtypeError, DeviceError: a tensor has a dtype, layout or device that cannot take part.
        OptionError: `eps` or `activation` is out of range.
        StatisticsError: eps is 0 and a slab is constant, a variance is negative, or the pattern
            pools samples and a slab has one element, whose variance says nothing.

    Batch norm: Ioffe and Szegedy (2015). Layer norm: Ba, Kiros and Hinton (2016). Instance norm:
    Ulyanov, Vedaldi and Lempitsky (2016). Group norm: Wu and He (2018). RMS norm: Zhang and Sennrich (2019).

    >>> import slabnorm as sn, torch
    >>> x = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    >>> sn.normalize(x, "n c -> n", eps=0.0)
    tensor([[-1.2247,  0.0000,  1.2247],
            [-1.2247,  0.0000,  1.2247]])
    """
    pattern = _as_pattern(pattern)
    check_input(x, "x")
    check_eps(eps)
    check_activation(activation)
    items = pattern.affine(affine) if weight is not None or bias is not None else ()
    if (weight is not None or bias is not None) and not items:
        raise ShapeError(
            "weight and bias vary along the axis that contains `c`",
            f'"{pattern}", which has none',
            'say along which they vary, as in affine="h w"',
        )
    call = prepare(pattern, items, tuple(sorted(sizes.items())), x, weight, bias, residual)
    for name, tensor in (("mean", mean), ("var", var)):
        if tensor is not None:
            check_fits(name, tensor, call.slab.kept.shape, x, pattern)
    given = None
    if mean is not None or var is not None:
        given = _given(mean, var, center, pattern)
    return run(x, call, weight, bias, eps, center, given, activation, residual, inplace)[0]


def check_eps(eps: object) -> None:
    """Raise OptionError unless eps is a finite number, 0 or more."""
    if not isinstance(eps, Real) or not 0 <= float(eps) < math.inf:  # NaN is neither
        raise OptionError("eps is a finite number, 0 or more", repr(eps), "1e-5 is the usual one")


def _as_pattern(pattern: str | Pattern) -> Pattern:
    if isinstance(pattern, Pattern):
        return pattern
    return parse_uncached(pattern) if torch.compiler.is_compiling() else parse(pattern)


def _given(mean: Tensor | None, var: Tensor | None, center: bool, pattern: Pattern) -> Given:
    if var is None or (mean is None and center):
        missing = "var" if var is None else "mean"
        raise OptionError(
            "mean and var are given together", f"no {missing}", f"give {missing} too, or neither of them"
        )
    # Elsewhere reading it would wait for the device, and has no answer on meta.
    if var.device.type == "cpu" and not traced() and bool((var < 0).any()):
        raise StatisticsError(
            "a variance is never negative", f'{var.min().item()} for "{pattern}"', "give variances, not logs"
        )
    mean = torch.zeros_like(var) if mean is None or not center else mean
    return Given(mean.detach(), var.detach())
