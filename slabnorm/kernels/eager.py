"""The formula in plain torch, in float64: any device, dtype and strides. The kernels' twin.

It moves far more memory than a kernel has to; it runs what no kernel takes, what torch traces,
and every double backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from slabnorm.kernels.activations import ACTIVATIONS, PASSED
from slabnorm.kernels.call import Call, Found, FoundTensors, Statistics
from slabnorm.kernels.huge_pages import empty_like, numbers_only
from slabnorm.slab import Slab

NAME = "eager"


def bind(x: Tensor, slab: Slab) -> tuple[()]:
    """Take everything, and keep nothing."""
    return ()


def statistics(x: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, what the mean lost to rounding, and the sum of squared deviations of every slab."""
    slab = call.slab
    mean, low, squares = _spread_statistics(_wide(x, slab), slab)
    gather = slab.kept.gather
    return gather(mean), gather(low), gather(slab.total(squares))


def fuses(activation: str | None, dtype: torch.dtype) -> bool:
    """Apply every activation."""
    return True


def apply(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    stats: Statistics,
    call: Call,
) -> Tensor:
    """Return y = activation(((x - mean) - low) * rstd * weight + bias + residual)."""
    return _activated(_affine(_normalised(x, call.slab, stats), weight, bias, residual, call.slab), x, call)


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call
) -> tuple[Tensor, Statistics, Found | None]:
    """Return y, the statistics it was normalised with, and those found unless they were given."""
    if call.given is None:
        mean, low, m2 = statistics(x, call)
        found = FoundTensors(mean, m2)
        stats = used_of(mean, m2 / call.slab.gathered_count, call)
        if call.center:
            stats = stats._replace(low=low)
    else:
        # A copy: running statistics may move on before the backward.
        mean, found = call.given.mean.to(torch.float64, copy=True), None
        stats = Statistics(mean, None, (call.given.var.double() + call.eps).rsqrt())
    return apply(x, weight, bias, residual, stats, call), stats, found


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    stats: Statistics,
    call: Call, needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the gradients of x, weight, bias and residual, each None unless it is needed.

    With z = (x - mean) * rstd, g the gradient before the activation, and means over the slab:

        dx = rstd * (w g - mean(w g) - z * mean(w g * z))      dweight = sum(g * z)      dbias = sum(g)

    Given statistics are constants, and dx = rstd * w g; without centring mean(w g) is left out.
    """
    need_x, need_weight, need_bias, need_residual = needed
    slab = call.slab
    z, g = _normalised(x, slab, stats), _wide(dy, slab)
    if call.activation is not None:
        g = PASSED[call.activation](g, _affine(z, weight, bias, residual, slab))
    dweight = slab.affine.gather(_sum(g * z, slab.not_affine)) if weight is not None and need_weight else None
    dbias = slab.affine.gather(_sum(g, slab.not_affine)) if bias is not None and need_bias else None
    dresidual = g.reshape(x.shape) if need_residual else None
    if need_x:
        if weight is not None:
            g = _op(torch.mul, g, slab.affine.spread(weight.double()))
        if call.given is None:
            g_mean = slab.average(g) if call.center else 0.0
            g = g - g_mean - z * slab.average(g * z)
        g = _op(torch.mul, g, slab.kept.spread(stats.rstd)).reshape(x.shape)
    of_residual = x if residual is None else residual  # not kept where it has x's dtype and no activation
    owners = zip(
        (g if need_x else None, dweight, dbias, dresidual), (x, weight, bias, of_residual), strict=True
    )
    return tuple(
        t if t is None or owner is None or t.dtype == owner.dtype else _copied(t, owner.dtype)
        for t, owner in owners
    )


def differentiable_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    stats: Statistics | None, call: Call, needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return what backward() does, with a graph: the plain formula, differentiated again.

    stats are those of a call with given ones.
    """
    wanted = [
        t for t, need in zip((x, weight, bias, residual), needed, strict=True) if need and t is not None
    ]
    found: Iterator[Tensor] = iter(())
    if wanted:  # none where a residual alone is to have a gradient, which is dy
        if call.given is None:
            y = formula(x, weight, bias, residual, call)
        else:
            assert stats is not None
            y = apply(x, weight, bias, residual, stats, call)
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    grads = [next(found) if need and t is not None else None
             for t, need in zip((x, weight, bias, residual), needed, strict=True)]  # fmt: skip
    if needed[3] and residual is None:  # not kept, for want of an activation
        grads[3] = dy
    return tuple(grads)


def used_of(mean: Tensor, var: Tensor, call: Call) -> Statistics:
    """Return what a slab of this mean and variance is normalised with."""
    if not call.center:
        # mean(x^2) = var + mean^2; both terms are positive, so nothing cancels.
        mean, var = torch.zeros_like(mean), var + mean.square()
    return Statistics(mean, None, (var + call.eps).rsqrt())


def used(stats: Statistics, slab: Slab) -> Statistics:
    """Return what a forward has normalised with."""
    return stats


def formula(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call
) -> Tensor:
    """Return the whole norm as differentiable torch operations, statistics included."""
    slab = call.slab
    wide = _wide(x, slab)
    mean, low, squares = _spread_statistics(wide, slab)
    if call.center:
        z = (wide - mean - low) * (slab.average(squares) + call.eps).rsqrt()
    else:
        z = wide * (slab.average(squares) + (mean + low).square() + call.eps).rsqrt()
    return _activated(_affine(z, weight, bias, residual, slab), x, call)


def extrema(x: Tensor, slab: Slab) -> tuple[Tensor, Tensor]:
    """Return the minimum and maximum of every slab."""
    parts = x.reshape(slab.split)
    if not slab.pooled:
        both = parts, parts
    else:
        both = parts.amin(slab.pooled, keepdim=True), parts.amax(slab.pooled, keepdim=True)
    return slab.kept.gather(both[0].double()), slab.kept.gather(both[1].double())


def _affine(
    z: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, slab: Slab
) -> Tensor:
    """Return the pre-activation, split and in float64."""
    if weight is not None:
        z = _op(torch.mul, z, slab.affine.spread(weight.double()))
    if bias is not None:
        z = _op(torch.add, z, slab.affine.spread(bias.double()))
    return z if residual is None else _op(torch.add, z, _wide(residual, slab))


def _activated(p: Tensor, x: Tensor, call: Call) -> Tensor:
    # In float64, and rounded once. A copy even of float64: autograd lets nobody change a function's result in
    # place (`y += r`) that is a view.
    y = p if call.activation is None else ACTIVATIONS[call.activation](p)
    return _copied(y.reshape(x.shape), x.dtype)


def _wide(x: Tensor, slab: Slab) -> Tensor:
    # Splitting axes is a view for any strides.
    parts = x.reshape(slab.split)
    return parts if parts.dtype == torch.float64 else _copied(parts, torch.float64)


def _copied(x: Tensor, dtype: torch.dtype) -> Tensor:
    return empty_like(x, dtype).copy_(x) if numbers_only(dtype, x) else x.to(dtype, copy=True)


def _op(operation: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return operation(x, y) of two float64 tensors, of which y is broadcast."""
    return operation(x, y, out=empty_like(x)) if numbers_only(x.dtype, x, y) else operation(x, y)


def _sum(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    # torch sums over every dim when it is given none.
    return x.sum(dims, keepdim=True) if dims else x


def _spread_statistics(wide: Tensor, slab: Slab) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, what it lost to rounding, and the squared deviation of every element."""
    # Shifted by an element of the slab, so that a constant slab gives exactly its value and no
    # variance; then by the mean found, so that an outlier taken as the shift costs no digits.
    # The shift is any constant to the formula: no gradient flows through it.
    shift = slab.first(wide.detach())
    shift = shift + slab.average(wide.detach() - shift)
    centred = wide - shift
    low = slab.average(centred)
    return shift, low, (centred - low).square()


def _normalised(x: Tensor, slab: Slab, stats: Statistics) -> Tensor:
    spread = slab.kept.spread
    centred = _op(torch.sub, _wide(x, slab), spread(stats.mean))
    if stats.low is not None:
        centred = _op(torch.sub, centred, spread(stats.low))
    return _op(torch.mul, centred, spread(stats.rstd))
