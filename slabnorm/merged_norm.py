"""A norm whose slabs reach beyond one tensor: each holder normalises its part with statistics of the whole.

    forward     count: each holder counts its part; these statistics are merged; apply: each uses the result
    backward    each says what its part makes of the merged statistics; that is added up; each finishes dx

A meeting merges: of the micro-batches of one process or, by the same door, of processes.
With z = (x - mean) * rstd, g the gradient before the activation, N elements in a whole slab,

    d mean = -rstd * sum(w g)    d m2 = -rstd^2 / (2 N) * sum(w g z)    (sums over the whole slab)
    dx = rstd * w g + d mean / N + 2 (x - mean) * d m2

which is the gradient of the one norm over the whole. Its first term is the gradient with given statistics.
The rest is a norm, too: of x, with these statistics, weight and bias per slab, the first term as residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from slabnorm.errors import OptionError, StatisticsError
from slabnorm.kernels import eager
from slabnorm.kernels.activations import ACTIVATIONS
from slabnorm.kernels.backend import Backend
from slabnorm.kernels.call import Call, Found, FoundTensors, Given, Statistics
from slabnorm.mergeable_moments import Moments
from slabnorm.notation import Item, Pattern
from slabnorm.prepare import Bound, bind
from slabnorm.slab import Slab
from slabnorm.tracing import plain

# Statistics travel as one float64 tensor of shape (4, slabs...): count, mean, what the mean lost to rounding,
# and the sum of squared deviations.
_COUNT, _MEAN, _LOW, _M2 = range(4)


class Meeting(Protocol):
    """Where the holders of the parts of a batch merge their statistics."""

    def merge(self, mine: Tensor) -> Tensor:
        """Return the statistics of all parts, from those of one: see `merge`.

        Its gradient is added up over all parts, and each part gets the sum: an element moves the mean of a
        whole slab by 1/N, whoever holds it.
        """


class Met:
    """A meeting that was held before: its result, for what is computed again."""

    def __init__(self, merged: Tensor) -> None:
        self.merged = merged

    def merge(self, mine: Tensor) -> Tensor:
        """Return what was merged then."""
        return self.merged


def merge(parts: Sequence[Tensor]) -> Tensor:
    """Return the statistics of all parts, from those of each, float64 [4, slabs...]."""
    unknown = torch.full_like(parts[0][_MEAN], float("inf"))  # nobody asks for extrema
    found = [
        Moments(part[_COUNT].long(), part[_MEAN], part[_M2], unknown, -unknown, part[_LOW]) for part in parts
    ]
    whole = reduce(Moments.merge, found)
    return torch.stack([whole.count.double(), whole.mean, whole.mean_low, whole.m2])


def found_in(merged: Tensor, slab: Slab, count: int) -> tuple[Found, Slab]:
    """Return merged statistics and the plan of the whole, as running statistics take them.

    Args:
        merged: from a meeting.
        slab: the plan of any part.
        count: elements in a slab of the whole.
    """
    return FoundTensors(merged[_MEAN], merged[_M2]), replace(slab, count=count, numel=count * slab.slabs)


@dataclass
class Norm:
    """One norm of a part: what it is beside its tensors, and the statistics once they are merged."""

    pattern: Pattern
    affine: tuple[Item, ...]
    sizes: tuple[tuple[str, int], ...]
    eps: float
    center: bool = True
    activation: str | None = None

    def __post_init__(self) -> None:
        self.given: Given | None = None
        self.count: Tensor | None = None

    def bind(
        self,
        affine: tuple[Item, ...],
        x: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> tuple[Bound, Backend, Call]:
        """Return a call on one part: a norm with the merged statistics, if there are any yet."""
        bound = bind(self.pattern, affine, self.sizes, x, weight, bias, residual)
        if bound.backend is None:
            raise OptionError("Statistics cannot be merged over parts in a call that torch records")
        return bound, bound.backend, Call(bound.slab, self.eps, self.center, self.given, None, bound.plans)

    def settle(self, merged: Tensor) -> None:
        """Take the merged statistics."""
        mean, var = merged[_MEAN], merged[_M2] / merged[_COUNT]
        if not self.center:
            mean, var = torch.zeros_like(mean), var + mean.square()
        if self.eps == 0 and bool((var == 0).any()):
            raise StatisticsError(
                f'A slab of "{self.pattern}" is constant, and eps is 0', fix="give eps a value such as 1e-5"
            )
        self.given, self.count = Given(mean, var), merged[_COUNT]

    @property
    def used(self) -> Statistics:
        """What slabs are normalised with."""
        assert self.given is not None
        return Statistics(self.given.mean, None, (self.given.var + self.eps).rsqrt())


def merged_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Norm,
    meeting: Meeting,
) -> tuple[Tensor, Tensor]:
    """Normalise a part of a batch with the statistics of the whole.

    Args:
        x: the part.
        weight, bias, residual: as in `slabnorm.normalize`.
        norm: the norm, used for this one call.
        meeting: merges the statistics of this part with those of the others.

    Returns:
        y, and the merged statistics.

    Raises:
        StatisticsError: eps is 0 and a slab of the whole is constant.
        Others as in `slabnorm.normalize`.
    """
    mine, token = _Count.apply(x, norm, isinstance(meeting, Met))
    merged = meeting.merge(mine)
    norm.settle(merged.detach())
    _, backend, _ = norm.bind(norm.affine, x, weight, bias, residual)
    after = None if backend.fuses(norm.activation, x.dtype) else norm.activation
    if after is not None:
        norm = replace(norm, activation=None)
        norm.settle(merged.detach())
    y = _Apply.apply(x.detach(), token, merged, weight, bias, residual, norm)
    return y if after is None else ACTIVATIONS[after](y), merged


def count(x: Tensor, norm: Norm) -> Tensor:
    """Return the statistics of a part, float64 [4, slabs...]."""
    bound, backend, call = norm.bind((), x)
    slab = bound.slab
    if slab.numel == 0:
        return torch.zeros((4, *slab.kept.shape), dtype=torch.float64, device=x.device)
    mean, low, m2 = backend.statistics(x.detach(), call)
    return torch.stack([torch.full_like(mean, slab.count), mean, low, m2])


class _Count(torch.autograd.Function):
    """A part's statistics; and a token of x's shape without values, whose gradient is dx's first term."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm, known: bool) -> tuple[Tensor, Tensor]:
        mine = x.new_zeros(4, dtype=torch.float64) if known else count(x, norm)
        ctx.save_for_backward(x)
        ctx.norm = norm
        ctx.set_materialize_grads(False)
        return mine, torch.empty_strided(x.shape, (0,) * x.dim(), dtype=x.dtype, device=x.device)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_merged: Tensor | None, direct: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        norm: Norm = ctx.norm
        if of_merged is None or x.numel() == 0:
            return direct, None, None
        assert norm.count is not None
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        weight = (2 * of_merged[_M2] / norm.used.rstd).to(wide)
        bias = (of_merged[_MEAN] / norm.count).to(wide)
        _, backend, call = norm.bind(norm.pattern.right, x, weight, bias, direct)
        return backend.forward(x, weight, bias, direct, call)[0], None, None


class _Apply(torch.autograd.Function):
    """A part normalised with the merged statistics, for which it has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, token: Tensor, merged: Tensor, weight: Tensor | None, bias: Tensor | None,
        residual: Tensor | None, norm: Norm,
    ) -> Tensor:  # fmt: skip
        _, backend, call = norm.bind(norm.affine, x, weight, bias, residual)
        y, ctx.stats, _ = backend.forward(
            x, weight, bias, residual, call._replace(activation=norm.activation)
        )
        unused = residual is None or (norm.activation is None and residual.dtype == x.dtype)
        ctx.save_for_backward(x, weight, bias, None if unused else residual)
        ctx.norm, ctx.backend = norm, backend
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        norm: Norm = ctx.norm
        tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[1], *ctx.needs_input_grad[3:6]
        # Kernels sum dweight and dbias over all but the axes of weight and bias: those of the slabs, mostly.
        backward = _by_kernel if not norm.affine or norm.affine == norm.pattern.right else _in_float64
        direct, of_mean, of_m2, *rest = backward(ctx, dy, tensors, norm, needed)
        of_merged = None
        if ctx.needs_input_grad[2]:
            of_merged = torch.zeros((4, *of_m2.shape), dtype=torch.float64, device=dy.device)
            of_merged[_MEAN], of_merged[_M2] = (of_mean if norm.center else 0.0), of_m2
        return None, direct, of_merged, *rest, None


def _by_kernel(
    ctx: Any, dy: Tensor, tensors: tuple[Any, ...], norm: Norm, needed: tuple[bool, ...]
) -> tuple[Any, ...]:
    """Return dx's first term, the gradients of mean and m2, and those of weight, bias and residual."""
    x, weight, bias, residual = tensors
    of_x, of_weight, of_bias, of_residual = needed
    used = norm.used
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    # In float32 at least: what half precision takes from their gradients is lost to dx.
    scale = torch.ones_like(used.rstd, dtype=wide) if weight is None else _at_least(weight, wide)
    shift = torch.zeros_like(scale) if bias is None else _at_least(bias, wide)
    _, backend, call = norm.bind(norm.pattern.right, x, scale, shift, residual)
    call, stats = call._replace(activation=norm.activation), ctx.stats
    if backend is not ctx.backend or not plain(dy):  # hooks gave back tensors of other strides
        backend, stats = eager, used
    direct, dscale, dshift, dresidual = backend.backward(
        dy, x, scale, shift, residual, stats, call, (of_x, True, True, of_residual)
    )
    of_mean, of_m2 = _of_statistics(scale.double() * dshift.double(), scale.double() * dscale.double(), norm)
    dweight = dscale.to(weight.dtype) if of_weight else None
    return direct, of_mean, of_m2, dweight, dshift.to(bias.dtype) if of_bias else None, dresidual


def _in_float64(
    ctx: Any, dy: Tensor, tensors: tuple[Any, ...], norm: Norm, needed: tuple[bool, ...]
) -> tuple[Any, ...]:
    """Do the same for weight and bias along other axes than the slabs, in plain torch."""
    x, weight, bias, residual = tensors
    used = norm.used
    bound, _, call = norm.bind(norm.affine, x, weight, bias, residual)
    slab = bound.slab
    wide = x.double()
    direct, dweight, dbias, dresidual = eager.backward(
        dy.double(), wide, weight, bias, None if residual is None else residual.double(), used,
        call._replace(activation=norm.activation), (True, *needed[1:]),
    )  # fmt: skip
    assert direct is not None
    terms = direct.reshape(slab.split) / slab.kept.spread(used.rstd)  # w g
    z = (wide.reshape(slab.split) - slab.kept.spread(used.mean)) * slab.kept.spread(used.rstd)
    sum_g, sum_gz = (slab.kept.gather(t.sum(slab.pooled, keepdim=True)) for t in (terms, terms * z))
    dresidual = None if dresidual is None else dresidual.to(dy.dtype if residual is None else residual.dtype)
    return (
        direct.to(x.dtype) if needed[0] else None,
        *_of_statistics(sum_g, sum_gz, norm),
        dweight,
        dbias,
        dresidual,
    )


def _of_statistics(sum_g: Tensor, sum_gz: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Return the gradients of mean and m2 from sum(w g) and sum(w g z) of a part."""
    assert norm.count is not None
    rstd = norm.used.rstd
    return -rstd * sum_g, -rstd.square() / (2 * norm.count) * sum_gz


def _at_least(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(torch.promote_types(t.dtype, dtype))
