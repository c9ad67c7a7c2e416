"""Columns summed: near each column's mean, in float32, and again in float64 where that is doubtful.

`work` holds, for every column of a task, the shift, the two sums, and room for the sums of a piece;
`careful` the same in a float64 sweep.
"""

from __future__ import annotations

import numpy as np

from slabnorm.kernels import loops
from slabnorm.kernels.elements import load, zeros
from slabnorm.kernels.memory import (
    RUNS0,
    RUNS1,
    SAMPLE_RUN_STEP,
    SAMPLE_RUNS,
    TILE,
    doubtful,
    in_x,
    next_run,
    run_of,
    serial,
)
from slabnorm.kernels.pointers import ahead, data
from slabnorm.kernels.tiles import add, bounds, clear, pieces, runs_of

FLUSH = 64  # runs added up in float32


@serial
def shift(fast, g, task, x, k):
    """Write the mean of some runs, as many as eight: near each column's mean, as a rule."""
    # Added to the first of them, so that constant columns have exactly themselves.
    block, lo, hi = bounds(g, task)
    first = in_x(g, block, (0, 0)) + lo
    for j in range(g[SAMPLE_RUNS]):
        at = in_x(g, block, (0, j * g[SAMPLE_RUN_STEP])) + lo
        for i in range(hi - lo):
            k[i] += load(x, at + i, 0.0) - load(x, first + i, 0.0)
    for i in range(hi - lo):
        k[i] = load(x, first + i, 0.0) + k[i] / g[SAMPLE_RUNS]
        if fast is not None:
            k[i] = np.float64(np.float32(k[i]))


@serial
def _sum_piece(g, task, piece, x, k, sums, s1, s2):
    """Write the sums of x - k and of its square over the runs of a piece; `sums` are in the arithmetic of
    k."""
    block, lo, hi = bounds(g, task)
    clear(s1)
    clear(s2)
    run, last = runs_of(g, piece)
    n, r, p, q = hi - lo, run_of(g, run), sums[0], sums[1]
    while run < last:
        clear(p)
        clear(q)
        end = min(last, run + FLUSH)
        while run < end:
            # One after the other: four at once take fewer instructions, but are fetched ahead less well.
            loops.sum_columns(n, ahead(x, in_x(g, block, r) + lo), data(k, 0), data(p, 0), data(q, 0))
            r = next_run(g, r)
            run += 1
        add(s1, p)
        add(s2, q)


@serial
def _narrowed(k, k32):
    for i in range(k.size):
        k32[i] = k[i]


@serial
def sum_task(fast, g, task, x, work, sums, again):
    """Write the sums of a task; of doubtful columns, and with `again` of all, around their mean."""
    k, s1, s2 = work[0], work[1], work[2]
    if fast is not None and not again:
        _narrowed(k, sums[2])
        for piece in range(pieces(g)):
            _sum_piece(g, task, piece, x, sums[2], sums, work[3], work[4])
            add(s1, work[3])
            add(s2, work[4])
    if fast is None or again or any_doubtful(g, task, s1, s2):
        _sum_carefully(fast, g, task, x, work, again)


@serial
def any_doubtful(g, task, s1, s2):
    """Return whether the float32 sums of some column are not to be trusted."""
    _, lo, hi = bounds(g, task)
    for i in range(hi - lo):
        if doubtful(g[RUNS1] * g[RUNS0], s1[i], s2[i]):
            return True
    return False


@serial
def _sum_carefully(fast, g, task, x, work, again):
    careful, wide = np.zeros((3, g[TILE])), np.zeros((2, g[TILE]))
    for sweep in range(1, 3):
        around(g, sweep, work, careful)
        clear(careful[1])
        clear(careful[2])
        for piece in range(pieces(g)):
            _sum_piece(g, task, piece, x, careful[0], wide, work[3], work[4])
            add(careful[1], work[3])
            add(careful[2], work[4])
    replace(fast, g, task, work, careful, again)


@serial
def around(g, sweep, work, careful):
    """Set the shift of a careful sweep: first the one there is, then the mean it found."""
    for i in range(g[TILE]):
        if sweep == 1:
            careful[0, i] = work[0, i]
        else:
            careful[0, i] += careful[1, i] / (g[RUNS1] * g[RUNS0])


@serial
def replace(fast, g, task, work, careful, again):
    """Put careful sums in the place of doubtful ones: what one column holds changes no bit of another."""
    _, lo, hi = bounds(g, task)
    for i in range(hi - lo):
        if fast is None or again or doubtful(g[RUNS1] * g[RUNS0], work[1, i], work[2, i]):
            work[0, i], work[1, i], work[2, i] = careful[0, i], careful[1, i], careful[2, i]


@serial
def add_pieces(parts, s1, s2):
    """Write the sums of all pieces, added in order."""
    clear(s1)
    clear(s2)
    for piece in range(len(parts)):
        add(s1, parts[piece, 0])
        add(s2, parts[piece, 1])


@serial
def share_piece(fast, g, task, piece, x, shift, parts):
    """Sum one piece in float32."""
    sums = zeros(fast, 3 * g[TILE]).reshape((3, g[TILE]))
    _narrowed(shift, sums[2])
    _sum_piece(g, task, piece, x, sums[2], sums, parts[0], parts[1])


@serial
def share_piece_carefully(g, task, piece, x, shift, parts):
    """Sum one piece in float64."""
    _sum_piece(g, task, piece, x, shift, np.zeros((2, g[TILE])), parts[0], parts[1])
