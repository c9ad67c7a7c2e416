"""Which kernels run a call on the GPU, and in what tiles: decided by shapes alone, so that results repeat.

| slabs | forward | backward |
|---|---|---|
| fit in a tile | one kernel, memory read once | one kernel, once |
| enough to fill a GPU, each fits its caches | one kernel, memory read once, a cache again | the same |
| few and large, or neighbours in NHWC | reduce, merge, apply: read twice if larger than the L2 | the same |
| rows of tokens | as above | one kernel, with weight and bias in registers; long rows: three, and one more |

Slabs that fit their program's caches have a route of their own, since it reads memory once where reduce,
merge and apply read it twice: a third of a forward's traffic. The thresholds below follow from sizes of
registers and caches; no GPU has measured the crossovers yet.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from slabnorm.kernels.gpu import addressing
from slabnorm.kernels.layout import Layout
from slabnorm.slab import Slab

SWEEP = 4096  # elements of a tile: 16 registers a thread of 8 warps
WHOLE = {
    False: 16384,
    True: 8192,
}  # elements of a tile that is read once; backward (True) has two tensors in it
FILL = 264  # programs that fill a GPU: two for each of 132 multiprocessors
CACHED = 256 << 10  # bytes of a slab that its program reads again from the L1 or L2
LINE = 128  # bytes: memory is fetched in such pieces
TOKENS = 64  # steps of a program whose sums stay in float32
WAVES = 8  # programs of a reduction to each that runs at once; fewer and longer ones beyond
LONG = (1 << 31) - (1 << 16)  # places in a run, and runs, are numbered in 32 bits
FUSED = {"enable_fp_fusion": True}  # Triton 3.10 turns it off otherwise, and 3.9 warns of it
SMALL = 1024  # elements of a tile of partial sums


class Tile(NamedTuple):
    """How a sweep is cut: blocks x runs x places a tile, and whether a program takes whole slabs.

    Attributes:
        whole: a program takes whole slabs, and one kernel does all.
        one: a tile holds whole slabs.
    """

    whole: bool
    one: bool
    i: int
    r: int
    c: int

    @property
    def shape(self) -> dict[str, int]:
        """Return what a kernel is told of it, and its warps: 16 elements a thread, of one block up to 512."""
        warps = min(16, max(1, self.i * self.r * self.c // 512, self.i // 32))
        return {"I": self.i, "R": self.r, "C": self.c, "num_warps": warps, **FUSED}


class Pieces(NamedTuple):
    """How cells are cut in a reduction, and where the sums of their pieces lie.

    Attributes:
        cells: cells of a block: its runs (rows) or the places in them (columns).
        pieces: pieces of a cell, `steps` tiles each, of `tiles` in all.
        extent, size: elements of a cell, and of a piece.
        programs: how many it takes.
    """

    cells: int
    pieces: int
    steps: int
    tiles: int
    extent: int
    size: int
    programs: int
    strides: tuple[int, int]


class Tiling:
    """What kernels are told of a Layout, as numbers and tables on a device.

    Attributes:
        rows, mixed: as in the Layout. sizes, x, out, affine, slab: numbers and strides; those of x and the
        output in units of `unit` elements. count, slabs: elements of a slab, and slabs. per_block, of_slab:
        columns: slabs of a block, and columns of a slab; rows: 1, and runs of a slab. by_run: whether weight
        and bias differ from run to run. slab_of, affine_of, members: addressing.py.
    """

    def __init__(self, slab: Slab, layout: Layout) -> None:
        self.layout = layout
        self.rows, self.mixed = layout.rows, layout.mixed
        self.count, self.slabs = slab.count, slab.slabs
        self.blocks, self.runs, self.run = layout.blocks, layout.runs, layout.run
        runs0, cut = layout.runs0, _cut_of(layout)
        along = [list(strides) for strides in (layout.x, layout.out, layout.affine)]
        if cut > 1:
            self.runs = runs0 = cut
            self.run //= cut
            along[0][3] = along[1][3] = self.run
        self.unit = math.gcd(8, self.run, *along[0], *along[1])
        self.x, self.out = (tuple(n // self.unit for n in strides) for strides in along[:2])
        self.affine, self.slab = tuple(along[2]), layout.slab[:2]
        self.sizes = self.blocks, layout.blocks0, self.runs, runs0, self.run // self.unit
        self.by_run = any(along[2][2:])
        self.slab_of = None if self.rows else addressing.slab_of(layout)
        self.affine_of = None if self.rows or self.mixed else addressing.affine_of(layout)
        self.members = None if self.rows else addressing.members(layout)
        self.per_block = 1 if self.rows else math.prod(size for size, slab, _ in layout.group if slab)
        self.of_slab = self.runs if self.rows else self.run // self.per_block

    @property
    def arguments(self) -> dict[str, Any]:
        """What every kernel that goes over the tensors is told of where they lie."""
        return {
            "sizes": self.sizes, "x_strides": self.x, "out_strides": self.out, "affine_strides": self.affine,
            "slab_strides": self.slab, "slabs": self.slabs, "slab_of": self.slab_of,
            "affine_of": self.affine_of, "V": self.unit,
        }  # fmt: skip

    def merge_arguments(self, pieces: Pieces) -> dict[str, Any]:
        """Return what a kernel that merges pieces of cells is told of where their sums lie."""
        return {
            "members": self.members, "slab_of": self.slab_of, "sizes": self.sizes, "slab_strides": self.slab,
            "part_strides": pieces.strides, "per_block": self.per_block, "cells": self.of_slab,
            "pieces": pieces.pieces, "in_block": pieces.cells * pieces.pieces, "ROWS": self.rows,
        }  # fmt: skip

    def tile(self, itemsize: int, backward: bool) -> Tile:
        """Return the tile of a call that finds its own statistics, or of their backward."""
        r, c = _above(self.runs), _above(self.run)
        alone = self.rows or self.of_slab == 1  # a program's slabs share nothing with another's
        if not self.rows:
            c = min(c, LINE // itemsize)
        programs = self.blocks * (1 if self.rows else -(-self.run // c))
        if alone and r * c <= WHOLE[backward]:
            several = max(1, min(SWEEP // (r * c), programs // FILL, self.blocks))
            return Tile(True, True, below(several), r, c)
        bytes_of_slab = self.runs * (self.run if self.rows else c) * itemsize
        if (
            alone
            and programs >= FILL
            and bytes_of_slab <= CACHED
            and not (backward and self.rows and self.mixed)
        ):
            return self._cut(c)._replace(whole=True, i=1)
        return self.sweep(itemsize)

    def sweep(self, itemsize: int) -> Tile:
        """Return the tile of a reduction, and of an application of statistics that there are."""
        return self._cut(_above(self.run) if self.rows else min(_above(self.run), 2 * LINE // itemsize))

    def _cut(self, c: int) -> Tile:
        c = min(c, SWEEP)
        r = min(_above(self.runs), SWEEP // c)
        return Tile(False, False, min(below(self.blocks), SWEEP // (r * c)), r, c)

    def steps(self, tile: Tile) -> int:
        """Return how many tiles of rows a program adds up: few where there are few."""
        return below(max(1, min(TOKENS, -(-self.blocks // tile.i) // FILL)))

    def pieces(self, tile: Tile) -> Pieces:
        """Return how a reduction in such tiles is cut."""
        blocks = -(-self.blocks // tile.i)
        extent, length = (self.run, tile.c) if self.rows else (self.runs, tile.r)
        cells, width = (self.runs, tile.r) if self.rows else (self.run, tile.c)
        tiles, across = -(-extent // length), blocks * -(-cells // width)
        steps = below(max(1, min(tiles, 16, tiles * across // (WAVES * FILL))))
        pieces = -(-tiles // steps)
        strides = (pieces, 1) if self.rows else (1, cells)
        return Pieces(cells, pieces, steps, tiles, extent, steps * length, across * pieces, strides)

    def merging(self, pieces: Pieces) -> dict[str, int]:
        """Return the tile of a merge: slabs, cells of each, pieces of these."""
        j = min(_above(self.of_slab), SMALL)
        p = min(_above(pieces.pieces), SMALL // j)
        s = min(_above(self.slabs), max(1, SMALL // (j * p)), 32)
        return {"S": s, "J": j, "P": p, **FUSED}

    @property
    def places_of_run(self) -> list[tuple[int, int]]:
        """Return sizes, and strides in weight and bias, of the axes within a run."""
        return [(size, affine) for size, _, affine in self.layout.group]

    def places(self, *before: int) -> list[tuple[int, int]]:
        """Return sizes, and strides in weight and bias, of sums over blocks, `before`, and cells."""
        layout = self.layout
        blocks = [(layout.blocks1, self.affine[0]), (layout.blocks0, self.affine[1])]
        runs = [(layout.runs1, self.affine[2]), (layout.runs0, self.affine[3])]
        cells = runs if self.rows != self.mixed else self.places_of_run
        if self.rows and not self.mixed and not self.by_run:
            cells = []
        return [*blocks, *((size, 0) for size in before), *cells]


def fits(slab: Slab, layout: Layout) -> bool:
    """Return whether slabs, blocks, runs and places have numbers of 32 bits, and columns of four digits."""
    if max(slab.slabs, layout.blocks, layout.runs) > LONG or not _cut_of(layout):
        return False
    return layout.rows or len(layout.group) <= addressing.MOST


def _cut_of(layout: Layout) -> int:
    """Return into how many a run is cut that is too long; 0 if that cannot be."""
    run = layout.run
    if run <= LONG:
        return 1
    if not layout.rows or layout.mixed or layout.runs > 1:
        return 0
    least = -(-run // LONG)
    return next((n for n in range(least, 64 * least) if run % n == 0), 0)


def _above(n: int) -> int:
    return 1 << (n - 1).bit_length()


def below(n: int) -> int:
    """Return the largest power of two that is not above n."""
    return 1 << (n.bit_length() - 1)
