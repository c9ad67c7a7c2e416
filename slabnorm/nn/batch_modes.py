"""What train mode can do with a batch beside normalising it as a whole: ghost batches and renormalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from slabnorm.cut import Counted, Cut, opened
from slabnorm.errors import OptionError, PatternError
from slabnorm.functional import as_pattern, run, run_cut, statistics_of
from slabnorm.kernels.call import Found, Given
from slabnorm.notation import ELLIPSIS, Item, Pattern
from slabnorm.prepare import Bound, bind
from slabnorm.slab import Slab


def check_ghost(ghost: Any, pattern: Pattern, affine: tuple[Item, ...]) -> None:
    """Raise OptionError or PatternError unless a pattern can be normalised in ghost batches of this size."""
    if ghost is None:
        return
    if not isinstance(ghost, Integral) or isinstance(ghost, bool) or ghost < 2:
        problem = "ghost must be a whole number of samples, 2 or more"
        raise OptionError(problem, repr(ghost), "32 is a usual one")
    alone = len(pattern.sample) == 1 and pattern.sample != (ELLIPSIS,) and pattern.pools_samples
    if not alone or any(pattern.sample[0] in item for item in affine):
        problem = f'Ghost batches cut the sample axis, which "{pattern}" does not pool over as a whole'
        raise PatternError(problem, fix='pool over samples, as in "n c h w -> c"')


def check_renorm(renorm: Any, tracks: bool, ghost: Any) -> None:
    """Raise OptionError unless (rmax, dmax) can be used by a layer that tracks what it normalises with."""
    if renorm is None:
        return
    pair = isinstance(renorm, (tuple, list)) and len(renorm) == 2 and all(isinstance(n, Real) for n in renorm)
    if not pair or not (renorm[0] >= 1 and renorm[1] >= 0):
        problem = "renorm must be (rmax, dmax), of which rmax is 1 or more and dmax 0 or more"
        raise OptionError(problem, repr(renorm), "(3.0, 5.0) is the paper's")
    if not tracks:
        problem = "renorm needs running statistics, one for each statistic of a batch"
        raise OptionError(problem, fix="pool over samples, and leave track_running_stats as it is")
    if ghost is not None:
        problem = "ghost and renorm are both given: one makes statistics noisier, the other less so"
        raise OptionError(problem, fix="leave one of them out")


def check_one_count(slab: Slab, cut: Cut) -> None:
    """Raise OptionError if a mask gives each running statistic a count of its own."""
    if cut.valid is None:
        return
    shape = opened(cut.valid, slab).shape
    if any(shape[dim] > 1 for dim in slab.running.dims):
        raise OptionError(
            "momentum=None weighs a batch by its count, and the mask gives each running statistic its own",
            fix="give a momentum such as 0.1, or a mask that is the same for all of them",
        )


def bind_ghosts(
    pattern: Pattern, affine: tuple[Item, ...], sizes: tuple[tuple[str, int], ...], ghost: int | None,
    *tensors: Any,
) -> Bound:  # fmt: skip
    """Check and bind what `bind` does, with so many samples at a time kept apart; None: all are one batch."""
    (sample,) = pattern.sample
    apart = "ghost"
    while apart in pattern.names:
        apart += "_"
    left, _, right = pattern.text.partition("->")
    text = f"({apart} {sample}) {left.strip()[len(sample) :]} -> {apart} {right}"
    split = (apart, 1) if ghost is None else (sample, ghost)
    sizes = (*(pair for pair in sizes if pair[0] != sample), split)
    return bind(as_pattern(" ".join(text.split())), affine, sizes, *tensors)


def ghosts(samples: int, ghost: int) -> list[tuple[int, int | None]]:
    """Return how many samples are cut into ghost batches of which size; None: into one.

    >>> ghosts(100, 32), ghosts(97, 32), ghosts(10, 32)
    ([(96, 32), (4, None)], [(64, 32), (33, None)], [(10, None)])
    """
    whole, rest = samples // ghost, samples % ghost  # torch.compile knows no divmod of an unknown size
    if rest == 1 and whole > 0:  # the variance of a single sample says nothing of others
        whole, rest = whole - 1, rest + ghost
    pairs: list[tuple[int, int | None]] = [(whole * ghost, ghost), (rest, None)]
    return [pair for pair in pairs if pair[0] > 0]


def run_ghosts(
    x: Tensor, bound: Callable[..., Bound], cut: Cut | None, ghost: int, weight: Tensor | None,
    bias: Tensor | None, options: tuple[float, bool, Given | None, str | None], residual: Tensor | None,
    masked: str,
) -> tuple[Tensor, Counted | None]:  # fmt: skip
    """Normalise ghost batches, each by its own statistics; return y and the statistics of the whole batch."""
    pairs = ghosts(x.shape[0], ghost) or [(0, None)]
    valid = None if cut is None else cut.valid
    pieces = (_pieces(t, [samples for samples, _ in pairs]) for t in (x, residual, valid))
    outputs, statistics = [], []
    for (_, size), (part, added, some) in zip(pairs, zip(*pieces, strict=True), strict=True):
        call = bound(size, part, weight, bias, added)
        counted: Counted | None
        if some is not None:
            y, counted = run_cut(part, call, Cut(some), weight, bias, *options, added, masked)
        else:
            y, found = run(part, call, weight, bias, *options, added)
            counted = None if found is None else _counted(found, call.slab)
        outputs.append(y)
        statistics.append(counted)
    known = [counted for counted in statistics if counted is not None]
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if len(outputs) > 1 and y.stride() != torch.empty_like(x, device="meta").stride():
        y = torch.empty_like(x).copy_(y)  # in memory as the input lies
    return y, merged(known) if known else None


def _pieces(t: Tensor | None, lengths: list[int]) -> Sequence[Any]:
    # A mask may be the same for all samples.
    return [t] * len(lengths) if t is None or t.shape[0] != sum(lengths) else t.split(lengths)


def _counted(found: Found, slab: Slab) -> Counted:
    mean = found.mean
    return Counted(mean, found.m2, torch.full_like(mean, slab.count, dtype=torch.int64))


def merged(parts: list[Counted]) -> Counted:
    """Return the statistics of all sets together, which lie along the first axis of each part.

        n = sum(n_i),   mean = sum(n_i mean_i) / n,   m2 = sum(m2_i + n_i (mean_i - mean)^2)

    This is the merge of `Moments` for many at once, without the digits beyond float64.
    """
    means, m2s, counts = (torch.cat([part[i] for part in parts]) for i in range(3))
    count = counts.sum(0)
    mean = (means * counts).sum(0) / count.clamp(min=1)
    m2 = (m2s + counts * (means - mean).square()).sum(0)
    return Counted(mean, m2, count)


def named_axes(pattern: Pattern, affine: tuple[Item, ...]) -> tuple[Item, ...]:
    """Return the axes along which renormalised weights vary: those of the weights and of the statistics."""
    names = pattern.kept.union(*affine)
    return tuple([(name,) for name in pattern.names if name in names])


def renormed(
    x: Tensor, bound: Bound, cut: Cut | None, weight: Tensor | None, bias: Tensor | None, running: Given,
    eps: float, center: bool, renorm: tuple[float, float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return weight * r and bias + weight * d, along `named_axes`.

        r = clip(sigma / sigma_run, 1 / rmax, rmax)      d = clip((mean - mean_run) / sigma_run, -dmax, dmax)

    sigma = sqrt(var + eps), of the batch with its own variance and of the running statistics with theirs.
    """
    slab, (rmax, dmax) = bound.slab, renorm
    with torch.no_grad():
        mean, m2, count = statistics_of(x.detach(), bound, cut)
        var = m2 / count
        if not center:
            mean, var = torch.zeros_like(mean), var + mean.square()
        of_running = (running.var.double() + eps).sqrt()
        r = ((var + eps).sqrt() / of_running).clamp(1 / rmax, rmax)
        d = ((mean - running.mean.double()) / of_running).clamp(-dmax, dmax)
        r, d = slab.kept.spread(r), slab.kept.spread(d)
    if weight is not None:
        spread = slab.affine.spread(weight.double())
        r, d = spread * r, spread * d
    if bias is not None:
        d = slab.affine.spread(bias.double()) + d
    dims = {*slab.kept.dims, *slab.affine.dims}
    wide = torch.promote_types(x.dtype if weight is None else weight.dtype, torch.float32)
    shape = [slab.split[dim] for dim in sorted(dims)]
    across = [size if dim in dims else 1 for dim, size in enumerate(slab.split)]
    r, d = (t.expand(across).reshape(shape).to(wide) for t in (r, d))
    return r, d
