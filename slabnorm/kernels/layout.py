"""How the slabs of a strided tensor lie in memory, as numbers for the CPU kernels.

Memory is seen as blocks, runs and columns:

- a *block* is one step along the axes that keep statistics apart, outside;
- a *run* is one contiguous piece of memory; a block has one for each step along its pooled axes;
- in a *rows* layout a run belongs to one slab; in a *columns* layout every element of a run is a
  column, and a slab is made of columns.

| norm | memory | layout | blocks | runs | in a run |
|---|---|---|---|---|---|
| batch | NCHW | rows | C | N | HW |
| batch | NHWC | columns | 1 | NHW | C |
| instance | NCHW | rows | NC | 1 | HW |
| group, layer (whole sample) | NCHW | rows | N groups | channels of a group | HW |
| instance, group, layer (whole sample) | NHWC | columns | N | HW | C |
| layer, RMS (token) | any | rows, weight and bias along the run | tokens | 1 | C |
| channel (`n c h w -> n h w`) | NCHW | columns, weight and bias along the runs | N | C | HW |
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slabnorm.notation import ELLIPSIS, product
from slabnorm.slab import Axes, Slab

CHUNK = 16384  # elements summed at once: 64 KiB of float32
_CACHE = 1 << 17  # elements of a slab that stay in a core's cache between two sweeps: 512 KiB of float32
_SHORT = 16  # a run of rows shorter than this is not worth a loop of its own
# Columns swept together, whose sums stay in a core's first cache. With 512 of 2048, memory is read in pieces
# too short to be fetched ahead: 0.7 ns an element, not 0.3.
_WIDE = 1024
_NARROW = 512  # several runs of fewer columns are taken as one: finding a run costs as much as a short run


class _Dim(NamedTuple):
    """One axis in memory: its size, its strides in x, the output, statistics, and weight and bias."""

    size: int
    x: int
    out: int
    slab: int
    affine: int

    @property
    def pooled(self) -> bool:
        return self.slab == 0


class Strides(NamedTuple):
    """What one step along each of the four axes of a Layout is in one tensor: the outer and the inner axis of
    blocks, and those of runs."""

    blocks1: int
    blocks0: int
    runs1: int
    runs0: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Memory as blocks, runs and columns.

    Blocks lie along two axes, an outer one and an inner one (of size 1 where there are fewer), and so do the
    runs of a block. Kernels read all that is a number here, under the same names (`record`).

    Attributes:
        rows: whether a run belongs to one slab; else every element of it is a column.
        mixed: rows: weight and bias vary along a run. Columns: they vary from run to run.
        group: the axes within a run: size, and strides in statistics, and in weight and bias. The places of
            a column of block 0 there follow from its number (columns.py).
        blocks1, blocks0, runs1, runs0: sizes of the four axes.
        run: elements of a run.
        x, out, affine, slab: strides in x, in the output, in weight and bias, and in statistics.
        count: elements in a slab.
        parameters: elements of weight and bias.
        sample_runs, sample_run_step, samples, sample_step: the elements of a block that give a first guess of
            its mean: of how many runs, how far apart, and the same within a run.
        lanes, together: of rows: blocks in a task, and blocks swept together.
        tile, piece: of columns: columns in a tile, and runs in a piece.
    """

    rows: bool
    mixed: bool
    group: tuple[tuple[int, int, int], ...]
    blocks1: int
    blocks0: int
    runs1: int
    runs0: int
    run: int
    x: Strides
    out: Strides
    affine: Strides
    slab: Strides
    count: int
    parameters: int
    sample_runs: int
    sample_run_step: int
    samples: int
    sample_step: int
    lanes: int
    together: int
    tile: int
    piece: int

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return self.blocks1 * self.blocks0

    @property
    def runs(self) -> int:
        """The number of runs of a block."""
        return self.runs1 * self.runs0

    @property
    def tasks(self) -> int:
        """How many tasks the blocks make."""
        return -(-self.blocks // self.lanes) if self.rows else self.blocks * -(-self.run // self.tile)

    @property
    def chunks(self) -> int:
        """How many chunks a run of rows is summed in."""
        return -(-self.run // CHUNK)

    @property
    def units(self) -> int:
        """What threads that share every task share: chunks of rows, pieces of columns."""
        if self.rows:
            return self.blocks * self.runs * self.chunks
        return self.tasks * -(-self.runs // self.piece)

    def shared(self, threads: int) -> bool:
        """Return whether all threads share every task: where the last round would leave many of them idle.

        Where weight and bias vary along the runs of a rows layout, each task adds up gradients of its own,
        and the number of threads has no say.
        """
        parts = self.runs * self.chunks if self.rows else -(-self.runs // self.piece)
        if self.rows and self.mixed:
            return self.tasks == 1 and parts > 1
        rounds = -(-self.tasks // threads)
        return self.tasks < 0.8 * rounds * threads and parts > 1

    @cached_property
    def record(self) -> np.ndarray:
        """The numbers as kernels read them, at an address."""
        return np.array([tuple(getattr(self, name) for name in LAYOUT.names or ())], LAYOUT)

    @cached_property
    def axes(self) -> np.ndarray:
        """The axes within a run as kernels read them."""
        return np.array(self.group, dtype=np.int64)


_STRIDES = np.dtype([(name, np.int64) for name in Strides._fields], align=True)
_TYPES = {"int": np.dtype(np.int64), "Strides": _STRIDES}
_FIELDS = [(field.name, _TYPES[str(field.type)]) for field in fields(Layout) if field.type in _TYPES]
LAYOUT = np.dtype(_FIELDS, align=True)


def find_layout(slab: Slab, x_strides: tuple[int, ...], out_strides: tuple[int, ...]) -> Layout | None:
    """Return how a tensor of these strides lies in memory; None where it does not lie so."""
    dims = _merged(_dims(slab, x_strides, out_strides))
    if dims[-1].x != 1 or dims[-1].out != 1:
        return None
    inner = dims[-1]
    if inner.pooled and not _better_as_columns(dims):
        return _rows(slab, dims)
    return _columns(slab, dims)


def _dims(slab: Slab, x_strides: tuple[int, ...], out_strides: tuple[int, ...]) -> list[_Dim]:
    parts = _parts(slab)
    starts = np.cumsum((0, *parts)).tolist()
    of_slab, of_affine = _gathered_strides(slab.kept), _gathered_strides(slab.affine)
    dims = []
    for axis, (start, count) in enumerate(zip(starts, parts, strict=False)):
        for part in range(start, start + count):
            within = product(slab.split[part + 1 : start + count])
            x, out = x_strides[axis] * within, out_strides[axis] * within
            dims.append(_Dim(slab.split[part], x, out, of_slab.get(part, 0), of_affine.get(part, 0)))
    dims = [dim for dim in dims if dim.size != 1]
    return sorted(dims, key=lambda dim: -dim.out) or [_Dim(1, 1, 1, 0, 0)]


def _parts(slab: Slab) -> list[int]:
    """Return how many dims of the split tensor each dim of x became."""
    left = slab.pattern.left
    dots = len(slab.split) - sum(len(item) for item in left if item != (ELLIPSIS,))
    return [part for item in left for part in ([1] * dots if item == (ELLIPSIS,) else [len(item)])]


def _gathered_strides(axes: Axes) -> dict[int, int]:
    sizes = [axes.split[dim] for dim in axes.dims]
    return {dim: product(sizes[i + 1 :]) for i, dim in enumerate(axes.dims)}


def _merged(dims: list[_Dim]) -> list[_Dim]:
    """Join neighbouring dims that one loop can run over."""
    merged = [dims[0]]
    for dim in dims[1:]:
        outer = merged[-1]
        if all(outer[i] == dim[i] * dim.size for i in (1, 2, 3, 4)):
            merged[-1] = _Dim(outer.size * dim.size, *dim[1:])
        else:
            merged.append(dim)
    return merged


def _better_as_columns(dims: list[_Dim]) -> bool:
    # Runs along which weight and bias vary, or very short ones, when there are several runs to a slab.
    inner, pooled = dims[-1], product(dim.size for dim in dims[:-1] if dim.pooled)
    if inner.affine:
        return pooled > 1
    free = product(dim.size for dim in dims[:-1] if dim.pooled and not dim.affine)
    return inner.size < _SHORT and free >= 8 and not dims[-2].pooled and _adjacent(dims[-2], inner.size)


def _adjacent(dim: _Dim, width: int) -> bool:
    return dim.x == width and dim.out == width


def _rows(slab: Slab, dims: list[_Dim]) -> Layout | None:
    inner, mixed = dims[-1], dims[-1].affine != 0
    blocks = [dim for dim in dims[:-1] if not dim.pooled]
    if mixed and (inner.affine != 1 or any(dim.affine for dim in blocks)):
        return _columns(slab, dims)  # whatever weight and bias a column has
    runs = [dim for dim in dims[:-1] if dim.pooled]
    elements = inner.size * product(dim.size for dim in runs)
    total = product(dim.size for dim in blocks)
    # Neighbours share lines and pages of memory, and a processor divides for several at once: short runs are
    # taken several at a time, 16 KiB in all, or 64 KiB of whole slabs; in 16 tasks at least, for all threads.
    together = max(1, min(64, max(4096 // inner.size, 16384 // elements), total // 16))
    lanes = max(together, -(-32768 // elements))
    if mixed:
        # A task adds up two float64 for every element of weight and bias: many rows share them.
        lanes = max(lanes, 32, -(-total // 128))
    return _layout(slab, True, mixed, blocks, runs, [inner], (lanes, together, 1, 1))


def _columns(slab: Slab, dims: list[_Dim]) -> Layout | None:
    group, rest = [dims[-1]], dims[:-1]
    width = dims[-1].size
    while rest and _adjacent(rest[-1], width):
        # Axes that keep slabs apart; and axes of weight and bias, if these vary along the run already.
        if rest[-1].pooled and not (rest[-1].affine and any(dim.affine for dim in group)):
            break
        width *= rest[-1].size
        group.insert(0, rest.pop())
    if rest and rest[-1].pooled and not rest[-1].affine and _adjacent(rest[-1], width) and width < _NARROW:
        # Several short runs as one longer.
        last = rest.pop()
        several = max(n for n in range(1, _NARROW // width + 1) if last.size % n == 0)
        group.insert(0, last._replace(size=several))
        rest.append(_Dim(last.size // several, last.x * several, last.out * several, 0, 0))
        width *= several
    blocks = [dim for dim in rest if not dim.pooled]
    runs = [dim for dim in rest if dim.pooled and dim.size > 1]
    mixed = any(dim.affine for dim in runs)
    if mixed and any(dim.affine for dim in group):
        return None
    tile = _tile(group, product(dim.size for dim in runs))
    piece = max(64, _CACHE // tile)
    return _layout(slab, False, mixed, blocks, runs, group, (1, 1, tile, piece))


def _tile(group: list[_Dim], runs: int) -> int:
    """Return how many columns are swept together: whole slabs, that stay in the cache if that can be."""
    width, unit, axes = product(dim.size for dim in group), 1, [dim for dim in group if dim.size > 1]
    while axes and axes[-1].pooled:
        unit *= axes.pop().size
    if any(dim.pooled for dim in axes):
        return width  # columns of a slab are apart
    wanted = max(_WIDE, _CACHE // runs)
    units = max(1, min(4096, wanted) // unit)
    tiles = -(-width // (units * unit))
    return -(-width // unit // tiles) * unit


def _layout(
    slab: Slab,
    rows: bool,
    mixed: bool,
    blocks: list[_Dim],
    runs: list[_Dim],
    group: list[_Dim],
    tuning: tuple[int, int, int, int],
) -> Layout | None:
    if len(blocks) > 2 or len(runs) > 2:
        return None
    nothing = _Dim(1, 0, 0, 0, 0)
    b1, b0 = [nothing] * (2 - len(blocks)) + blocks
    r1, r0 = [nothing] * (2 - len(runs)) + runs
    run = product(dim.size for dim in group)
    # Eight elements, or runs of columns, spread over the slab.
    sample_runs = min(8, r0.size) if rows else max(1, min(8, r0.size // 4))
    samples = min(8 // sample_runs, run)
    return Layout(
        rows,
        mixed,
        tuple((dim.size, dim.slab, dim.affine) for dim in group),
        b1.size,
        b0.size,
        r1.size,
        r0.size,
        run,
        Strides(b1.x, b0.x, r1.x, r0.x),
        Strides(b1.out, b0.out, r1.out, r0.out),
        Strides(b1.affine, b0.affine, r1.affine, r0.affine),
        Strides(b1.slab, b0.slab, r1.slab, r0.slab),
        slab.count,
        product(slab.affine.shape),
        sample_runs,
        r0.size // sample_runs,
        samples,
        run // samples,
        *tuning,
    )


class Placement(NamedTuple):
    """How tensors of some strides are taken: through a dense copy, or as they are; the output is dense."""

    layout: Layout
    copied: bool
    strides: tuple[int, ...]


def find_placement(x: Tensor, slab: Slab) -> Placement | None:
    """Return how a tensor is taken; None if its slabs lie in no Layout."""
    dense = torch.empty_like(x, device="meta").stride()
    for strides in dict.fromkeys((x.stride(), dense)):
        layout = find_layout(slab, strides, dense)
        if layout is not None:
            return Placement(layout, strides != x.stride(), dense)
    return None
