"""A matrix turned: rows of b elements to columns, in tiles that stay in a core's first cache."""

from __future__ import annotations

import numpy as np

from slabnorm.kernels.cpu.addressing import CALL, inlined
from slabnorm.kernels.cpu.llvm import ahead, data, fence, pointer, read, read_back, record, stream, write

# Many matrices: `outer` and `inner` of them, of a x b elements. Along a lie the input's neighbours, along b
# the output's. Steps along the axes, in the input and in the output; and the sizes of a tile.
MATRICES = np.dtype(
    [(name, np.int64) for name in ("outer", "inner", "a", "b")]
    + [(name, np.int64) for name in ("x_outer", "x_inner", "x_b", "out_outer", "out_inner", "out_a")]
    + [(name, np.int64) for name in ("tile_a", "tile_b")]
)


@inlined
def _turn_tile(n, m, x, x_step, turned):
    """Copy m rows of n elements to the columns of a buffer, whose rows are m elements long."""
    buffer = data(turned, 0)
    for j in range(m):
        row = ahead(x, j * x_step)
        for i in range(n):
            write(buffer, i * m + j, read(row, i))


@inlined
def _write_tile(n, m, turned, out, out_step, past):
    """Copy n rows of m elements of a buffer to the output; with `past`, past the caches."""
    for i in range(n):
        row, source = ahead(out, i * out_step), data(turned, i * m)
        if past:
            stream(row, source, m)
        else:
            for j in range(m):
                write(row, j, read_back(source, j))


def turn_kernel(dtype):
    """Return `turn` as plain Python, to be compiled; `dtype`: an integer as large as the elements."""

    def turn(phase, i, address):
        """Turn one strip of the input: as many rows as a tile has."""
        call = record(address, CALL)
        of = record(call.layout, MATRICES)
        strips = (of.b + of.tile_b - 1) // of.tile_b
        matrix, b = i // strips, i % strips * of.tile_b
        outer, inner = matrix // of.inner, matrix % of.inner
        x = ahead(pointer(call.x, dtype), outer * of.x_outer + inner * of.x_inner + b * of.x_b)
        out = ahead(pointer(call.out, dtype), outer * of.out_outer + inner * of.out_inner + b)
        turned, m = np.empty(of.tile_a * of.tile_b, dtype), min(of.tile_b, of.b - b)
        for a in range(0, of.a, of.tile_a):
            n = min(of.tile_a, of.a - a)
            _turn_tile(n, m, ahead(x, a), of.x_b, turned)
            _write_tile(n, m, turned, ahead(out, a * of.out_a), of.out_a, call.past)
        fence()

    return turn
