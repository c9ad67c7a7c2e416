"""A tile: I blocks x R runs x C places in a run, and where it lies in memory.

Every norm in every memory order is a tile of three axes (layout.py has the words), so that the kernels are
written once:

| layout | kept apart | pooled | a cell's own axis | statistics | weight and bias |
|---|---|---|---|---|---|
| rows | I | R, C | R | [I, 1, 1] | [I, R, 1]; mixed [1, 1, C] |
| columns | I, C | R | C | [I, 1, C] | [I, 1, C]; mixed [I, R, 1] |

`sizes` is (blocks, blocks0, runs, runs0, run / V); strides of x, the output, weight and bias are along
(blocks1, blocks0, runs1, runs0). Those of x and the output, and the run, are in units of V elements: Triton
sees by itself that a number is divisible by 16, by nothing less, and 14 x 14 images are read 4 bytes at a
time without.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slabnorm.kernels.layout import Layout

# Where a column of a run belongs is worked out from its number, digit by digit. A table in the GPU's memory
# would have to outlive every CUDA graph that reads it, and cannot be made while one is captured.

# Four sizes and strides, the innermost first. Kernels are compiled without what has a size of 1.
Digits = tuple[int, ...]
MOST = 4
_Axes = list[tuple[int, int]]


def slab_of(layout: Layout) -> Digits | None:
    """Return how a column's slab follows from its number; None: it is its number."""
    return _unless_same([_joined([(size, slab) for size, slab, _ in reversed(layout.group)])], layout.run)


def affine_of(layout: Layout) -> Digits | None:
    """Return how a column's element of weight and bias follows from its number; None: it is its number."""
    return _unless_same([_joined([(size, to) for size, _, to in reversed(layout.group)])], layout.run)


def members(layout: Layout) -> Digits | None:
    """Return how a column follows from a slab's number and its own within it, the digits of both.

    None: from the first times the columns of a slab, plus the second.
    """
    kept, pooled, step = [], [], 1
    for size, slab, _ in reversed(layout.group):
        if slab:
            kept.append((slab, size, step))
        else:
            pooled.append((size, step))
        step *= size
    numbers = _joined([(size, step) for _, size, step in sorted(kept)])
    return _unless_same([numbers, _joined(pooled)], step)


def _joined(axes: _Axes) -> _Axes:
    """Join axes that one digit can stand for."""
    joined: _Axes = []
    for size, stride in axes:
        if joined and stride == joined[-1][0] * joined[-1][1]:
            joined[-1] = joined[-1][0] * size, joined[-1][1]
        else:
            joined.append((size, stride))
    return joined


def _unless_same(parts: list[_Axes], columns: int) -> Digits | None:
    """Return the digits of all parts; None if every column follows from the digits just above its own."""
    expected = 1
    for size, stride in (axis for axes in reversed(parts) for axis in axes):
        if stride != expected:
            break
        expected *= size
    else:
        if expected == columns:
            return None
    return tuple(n for axes in parts for axis in (axes + [(1, 0)] * MOST)[:MOST] for n in axis)


@triton.jit
def step(index, inner, outer_stride, inner_stride):
    """Return where an index over two nested loops lies."""
    return (index // inner).to(tl.int64) * outer_stride + (index % inner).to(tl.int64) * inner_stride


@triton.jit
def digits(index, sizes_and_strides, FIRST: tl.constexpr):
    """Return where an index over four nested axes lies (addressing.py)."""
    at = index % sizes_and_strides[FIRST] * sizes_and_strides[FIRST + 1]
    index = index // sizes_and_strides[FIRST]
    at += index % sizes_and_strides[FIRST + 2] * sizes_and_strides[FIRST + 3]
    index = index // sizes_and_strides[FIRST + 2]
    at += index % sizes_and_strides[FIRST + 4] * sizes_and_strides[FIRST + 5]
    index = index // sizes_and_strides[FIRST + 4]
    return at + index % sizes_and_strides[FIRST + 6] * sizes_and_strides[FIRST + 7]


@triton.jit
def offsets(sizes, strides, b, r, c, V: tl.constexpr):
    """Return the offsets of a tile in x or the output."""
    # Multiplied by V in 64 bits: a stride may have 32 without it.
    return (step(b, sizes[1], strides[0], strides[1]) + step(r, sizes[3], strides[2], strides[3])) * V + c


@triton.jit
def inside(sizes, b, r, c, V: tl.constexpr):
    """Return which elements of a tile there are."""
    return (b < sizes[0]) & (r < sizes[2]) & (c < sizes[4] * V)


@triton.jit
def slab_offsets(sizes, slab_strides, slab_of, b, c, ROWS: tl.constexpr, V: tl.constexpr):
    """Return the slabs of a tile, [I, 1, 1] or [I, 1, C], and which there are."""
    at, there = step(b, sizes[1], slab_strides[0], slab_strides[1]), b < sizes[0]
    if not ROWS:
        there = there & (c < sizes[4] * V)
        if slab_of is None:
            at = at + c
        else:
            at = at + digits(c, slab_of, 0)
    return at, there


@triton.jit
def load_affine(
    pointer, default, sizes, strides, affine_of, b, r, c, ROWS: tl.constexpr, MIXED: tl.constexpr,
    V: tl.constexpr,
):  # fmt: skip
    """Return weight or bias of a tile, in the shape that the table at the top says."""
    if pointer is None:
        values = default
    elif ROWS and MIXED:
        values = tl.load(pointer + c, mask=c < sizes[4] * V, other=0.0).to(tl.float32)
    else:
        at, there = step(b, sizes[1], strides[0], strides[1]), b < sizes[0]
        if ROWS or MIXED:
            at, there = at + step(r, sizes[3], strides[2], strides[3]), there & (r < sizes[2])
        else:
            there = there & (c < sizes[4] * V)
            if affine_of is None:
                at = at + c
            else:
                at = at + digits(c, affine_of, 0)
        values = tl.load(pointer + at, mask=there, other=0.0).to(tl.float32)
    return values


@triton.jit
def tile_of(run_tiles, place_tiles, I: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """Return the blocks, runs and places of a program's tile; places run fastest, as in memory."""
    pid = tl.program_id(0)
    c = (pid % place_tiles) * C + tl.arange(0, C)[None, None, :]
    pid = pid // place_tiles
    r = (pid % run_tiles) * R + tl.arange(0, R)[None, :, None]
    return (pid // run_tiles) * I + tl.arange(0, I)[:, None, None], r, c


@triton.jit
def slabs_of_program(run, ROWS: tl.constexpr, I: tl.constexpr, C: tl.constexpr):
    """Return the blocks of a program that takes whole slabs, the first place in their runs, and how many."""
    pid = tl.program_id(0)
    if ROWS:
        start, width = 0, run
    else:
        tiles = tl.cdiv(run, C)
        start, width = (pid % tiles) * C, C
        pid = pid // tiles
    return pid * I + tl.arange(0, I)[:, None, None], start, width


@triton.jit
def piece_of(
    cells, pieces, ROWS: tl.constexpr, STEPS: tl.constexpr, I: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    """Return what a program of a reduction starts with: blocks, first run, first place, and its piece."""
    pid = tl.program_id(0)
    if ROWS:  # neighbours in memory: pieces of a run, then runs
        piece, pid = pid % pieces, pid // pieces
        tiles = tl.cdiv(cells, R)
        r0, c0 = (pid % tiles) * R, piece * STEPS * C
        pid = pid // tiles
    else:  # places of a run, then pieces
        tiles = tl.cdiv(cells, C)
        c0, pid = (pid % tiles) * C, pid // tiles
        piece = pid % pieces
        r0, pid = piece * STEPS * R, pid // pieces
    return pid * I + tl.arange(0, I)[:, None, None], r0, c0, piece


@triton.jit
def piece_offsets(sizes, b, r, c, cells, pieces, piece, part_strides, ROWS: tl.constexpr, V: tl.constexpr):
    """Return where the partial sums of cells go, and which there are."""
    cell = r if ROWS else c
    at = b.to(tl.int64) * cells * pieces + cell.to(tl.int64) * part_strides[0]
    at += piece.to(tl.int64) * part_strides[1]
    return at, (b < sizes[0]) & (cell < cells)
