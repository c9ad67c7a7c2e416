"""How a batch is cut: which elements count, and which samples are normalised together.

mask      True where an element counts; any shape that broadcasts to x
lengths   how many elements of each sample count along one axis
segments  which of some sets, such as graphs, each sample belongs to
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slabnorm.errors import DeviceError, DtypeError, OptionError, PatternError, ShapeError
from slabnorm.notation import ELLIPSIS, Item, Pattern, product
from slabnorm.slab import Slab
from slabnorm.tracing import readable

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Cut(NamedTuple):
    """How a batch is cut.

    Attributes:
        valid: True where an element counts, with the axes of x, of size 1 where it does not vary; None: all.
        ids: the segment of each sample; None: the pattern alone says what is normalised together.
        segments: how many segments there are.
    """

    valid: Tensor | None
    ids: Tensor | None = None
    segments: int = 1

    @property
    def lead(self) -> tuple[int, ...]:
        """What stands before the pattern's right side in the shape of the statistics."""
        return () if self.ids is None else (self.segments,)


class Counted(NamedTuple):
    """Statistics of what counts in each slab, gathered: with the segments first, if there are some."""

    mean: Tensor
    m2: Tensor
    counts: Tensor


def cut_of(x: Tensor, pattern: Pattern, mask: Any, lengths: Any, segments: Any) -> Cut:
    """Check how a user has cut a batch.

    Raises:
        OptionError: mask and lengths are both given, lengths say no axis, or a number is out of range.
        ShapeError, DtypeError, DeviceError: a tensor does not fit x.
        PatternError: segments cut samples that the pattern keeps apart.
    """
    if mask is not None and lengths is not None:
        raise OptionError("mask and lengths are both given", fix="give one of them: lengths make a mask")
    valid = None
    if mask is not None:
        valid = _checked_mask(x, mask)
    elif lengths is not None:
        valid = _mask_of_lengths(x, pattern, lengths)
    if segments is None:
        return Cut(valid)
    return Cut(valid, *_segments(x, pattern, segments))


def check_masked(masked: object) -> None:
    """Raise OptionError unless `masked` says what becomes of elements that do not count."""
    if masked not in ("zero", "keep"):
        raise OptionError("masked must be 'zero' or 'keep'", repr(masked), "'zero' is the usual one")


def opened(valid: Tensor, slab: Slab) -> Tensor:
    """Return a mask with every bracket of the pattern opened, of size 1 where it does not vary."""
    shape: list[int] = []
    at = 0
    for size, item in zip(valid.shape, _items(slab.pattern, valid.dim()), strict=True):
        parts = slab.split[at : at + len(item)]
        at += len(item)
        shape.extend(parts if size == product(parts) else [1] * len(parts))
    return valid.reshape(shape)


def _items(pattern: Pattern, axes: int) -> list[Item]:
    """Return the names of every axis of a tensor; "..." for each that the ellipsis stands for."""
    items: list[Item] = []
    for item in pattern.left:
        items.extend([item] * (axes - len(pattern.left) + 1) if item == (ELLIPSIS,) else [item])
    return items


def _checked_mask(x: Tensor, mask: Any) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        raise DtypeError(
            "mask must be a tensor of booleans, True where an element counts", got, "convert it with .bool()"
        )
    if mask.device != x.device:
        problem = f"mask is on {mask.device}, but x is on {x.device}"
        raise DeviceError(problem, fix=f"move mask with .to({str(x.device)!r})")
    lead = x.dim() - mask.dim()
    fits = lead >= 0 and _broadcasts(mask.shape, x.shape[lead:])
    # Of fewer axes than x they are the last ones, as everywhere in torch. [batch, time] of [batch, time,
    # channels] would fit by chance, where the sizes are equal, and mask channels.
    first = lead > 0 and product(mask.shape) > 1 and _broadcasts(mask.shape, x.shape[: mask.dim()])
    if not fits or first:
        how = "fits the first axes of x, but not the last, to which it would broadcast"
        if fits:
            how = "fits the first axes of x as well as the last"
        elif not first:
            how = "does not broadcast to x"
        example = [":"] * mask.dim() + ["None"] * lead if first else [":", ":", "None"]
        raise ShapeError(
            f"mask {how}",
            f"shape {tuple(mask.shape)} for x of shape {tuple(x.shape)}",
            f"give it every axis of x, of size 1 where it does not vary, as in mask[{', '.join(example)}]",
        )
    return mask.reshape((1,) * lead + tuple(mask.shape))


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return all(size in (1, whole) for size, whole in zip(shape, to, strict=True))


def _mask_of_lengths(x: Tensor, pattern: Pattern, lengths: Any) -> Tensor:
    items = _items(pattern, x.dim())
    if isinstance(lengths, dict):
        if not lengths:
            raise OptionError("lengths name no axis", fix='write them as in lengths={"t": lengths}')
        valid = None
        for name, values in lengths.items():
            if (name,) not in items[1:] or name == ELLIPSIS:
                named = [item[0] for item in items[1:] if len(item) == 1 and item[0] != ELLIPSIS]
                problem = f'lengths name {name!r}, which is no axis of "{pattern}" that samples have'
                fix = f"name one of {', '.join(named)}, or give a mask" if named else "give a mask"
                raise OptionError(problem, fix=fix)
            more = _prefix(x, items.index((name,)), values, name)
            valid = more if valid is None else valid & more
        assert valid is not None
        return valid
    axes = [axis for axis, item in enumerate(items) if axis > 0 and "c" not in item]
    if len(axes) != 1:
        found = [" ".join(items[axis]) for axis in axes]
        problem = f'lengths may count along several axes of "{pattern}"' if axes else (
            f'"{pattern}" has no axis that lengths could count along, beside samples and channels'
        )  # fmt: skip
        names = [name for name in found if name != ELLIPSIS]
        fix = f'say which one, as in lengths={{"{names[0]}": lengths}}' if names else "give a mask"
        raise OptionError(problem, ", ".join(found), fix)
    return _prefix(x, axes[0], lengths, items[axes[0]][0])


def _prefix(x: Tensor, axis: int, lengths: Any, name: str) -> Tensor:
    """Return the mask of the first elements of each sample along an axis."""
    if isinstance(lengths, list | tuple) and not lengths:
        lengths = torch.empty(0, dtype=torch.int64)
    lengths = torch.as_tensor(lengths, device=x.device)
    if lengths.dtype not in _INTEGERS:
        raise DtypeError("lengths must be integers", str(lengths.dtype), "convert them with .long()")
    if tuple(lengths.shape) != (x.shape[0],):
        got = f"shape {tuple(lengths.shape)} for x of shape {tuple(x.shape)}"
        raise ShapeError("lengths must be one number a sample", got, f"give {x.shape[0]} numbers")
    size = x.shape[axis]
    if readable(lengths) and lengths.numel() > 0:
        least, most = (int(value) for value in lengths.aminmax())
        if least < 0 or most > size:
            which = "that axis" if name == ELLIPSIS else f"`{name}`"
            problem = f"lengths must lie between 0 and {size}, the size of {which}"
            raise OptionError(problem, f"{least} to {most}", "give how many elements of each sample count")
    valid = torch.arange(size, device=x.device) < lengths[:, None]
    return valid.reshape([(x.shape[0] if i == 0 else size if i == axis else 1) for i in range(x.dim())])


def _segments(x: Tensor, pattern: Pattern, segments: Any) -> tuple[Tensor, int]:
    """Return the segment of each sample, and how many segments there are."""
    if len(pattern.sample) != 1 or pattern.sample == (ELLIPSIS,) or not pattern.pools_samples:
        problem = f'Segments cut the sample axis, which "{pattern}" does not pool over as a whole'
        raise PatternError(problem, fix='pool over samples, as in "n c -> c" or "n c ->"')
    samples = x.shape[0]
    if not isinstance(segments, Tensor):
        return _ids_of_lengths(samples, segments, x.device)
    if segments.dtype not in _INTEGERS:
        raise DtypeError("segments must be integers", str(segments.dtype), "convert them with .long()")
    if tuple(segments.shape) != (samples,):
        raise ShapeError(
            "segments must be one number a sample, of the segment that it belongs to",
            f"shape {tuple(segments.shape)} for {samples} samples",
            "give the lengths of segments as a list, as in segments=lengths.tolist()",
        )
    if segments.device != x.device:
        problem = f"segments are on {segments.device}, but x is on {x.device}"
        raise DeviceError(problem, fix=f"move them with .to({str(x.device)!r})")
    ids = segments.long()
    if not readable(ids):
        return ids, samples  # how many there are is not known; there are not more, but for empty ones
    if samples == 0:
        return ids, 0
    least, most = (int(value) for value in ids.aminmax())
    if least < 0:
        raise OptionError("segments must be 0 or more", str(least), "number the segments from 0 on")
    return ids, most + 1


def _ids_of_lengths(samples: int, lengths: Any, device: torch.device) -> tuple[Tensor, int]:
    numbers = isinstance(lengths, Sequence) and all(isinstance(n, int) and n >= 0 for n in lengths)
    if not numbers:
        problem = "segments must be a tensor of numbers, one a sample, or a list of the segments' lengths"
        raise DtypeError(problem, repr(lengths)[:60], "give the lengths as in segments=[3, 5]")
    if sum(lengths) != samples:
        got = f"they sum to {sum(lengths)}, and x has {samples} samples"
        raise ShapeError("The lengths of segments must cover all samples", got, "give one for every segment")
    ids = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    return ids.to(device), len(lengths)
