"""Copies in another memory order: where torch's layers return one, or a gradient comes in one.

torch copies a channels_last tensor to contiguous memory element by element: 2x32x16x128x128 float32 takes
67 ms on two cores, where a copy in the same order takes 5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from slabnorm.kernels.cpu import compiled
from slabnorm.kernels.cpu.addressing import CALL, TASK
from slabnorm.kernels.cpu.launch import pool
from slabnorm.kernels.cpu.llvm import LINE, STREAM
from slabnorm.kernels.cpu.transpose import MATRICES
from slabnorm.kernels.huge_pages import empty_like

_LEAST = 65536  # elements: below, torch's copy takes no longer than a call of a kernel
_SHORT = 8  # elements of rows or columns that are not worth turning
_NOTHING = np.zeros(1)


def copy(x: Tensor, out: Tensor) -> Tensor:
    """Copy x into a tensor of its shape and dtype, and return that."""
    matrices = None if x.numel() < _LEAST or x.dtype != out.dtype else _matrices(x, out)
    addresses = x.data_ptr(), out.data_ptr()
    if matrices is None or any(address % x.itemsize for address in addresses):
        return out.copy_(x)
    call = np.zeros(1, CALL)
    call["layout"], call["past"] = matrices.ctypes.data, out.nbytes >= STREAM
    of = matrices[0]
    strips = int(of["outer"] * of["inner"] * -(-of["b"] // of["tile_b"]))
    threads = torch.get_num_threads() if pool() is not None else 1
    drive, team = compiled.drive()
    drive(
        compiled.turn(x.itemsize), np.array([[TASK, strips, 0]], np.int64), call, threads, _NOTHING, _NOTHING,
        _NOTHING, team, 0.0, addresses[0], 0, addresses[1], 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    return out


def _matrices(x: Tensor, out: Tensor) -> np.ndarray | None:
    """Return how x and its copy lie as matrices to be turned; None where they do not, or are too narrow."""
    axes = [axis for axis in zip(x.shape, x.stride(), out.stride(), strict=True) if axis[0] != 1]
    axes.sort(key=lambda axis: -axis[2])
    merged = axes[:1]
    for size, x_step, out_step in axes[1:]:
        before = merged[-1]
        if before[1] == x_step * size and before[2] == out_step * size:
            merged[-1] = (before[0] * size, x_step, out_step)
        else:
            merged.append((size, x_step, out_step))
    rows = [axis for axis in merged if axis[1] == 1]
    columns = [axis for axis in merged if axis[2] == 1]
    if len(rows) != 1 or len(columns) != 1 or rows == columns or len(merged) > 4:
        return None
    (a, _, out_a), (b, x_b, _) = rows[0], columns[0]
    if min(a, b) < _SHORT:
        return None
    rest = [axis for axis in merged if axis[1] != 1 and axis[2] != 1]
    (outer, x_outer, out_outer), (inner, x_inner, out_inner) = [(1, 0, 0)] * (2 - len(rest)) + rest
    # Bytes of a tile's rows in the input and in the output. Where the output's rows begin with lines of
    # memory, tiles share none; elsewhere they share the fewer the longer they are: 14x14 images take half
    # the time.
    tile_a, tile_b = (256, 128) if out_a * x.itemsize % LINE == 0 else (64, 1024)
    tile = tile_a // x.itemsize, tile_b // x.itemsize
    numbers = outer, inner, a, b, x_outer, x_inner, x_b, out_outer, out_inner, out_a, *tile
    return np.array([numbers], MATRICES)


class Dense(torch.autograd.Function):
    """A copy in another memory order in the graph; its gradient stays in the order in which it comes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: torch.memory_format) -> Tensor:
        out = empty_like(x, order=order)
        return copy(x, out)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, None]:
        return upstream[0], None
