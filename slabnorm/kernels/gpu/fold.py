"""Sums of cells become the gradients of weight and bias."""

from __future__ import annotations

import torch
from torch import Tensor

from slabnorm.kernels.gpu import merge, plan
from slabnorm.kernels.gpu.plan import FUSED, below

Places = list[tuple[int, int]]  # sizes and strides in weight and bias of the axes of sums


def fold(
    sums: Tensor, places: Places, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Add up sums [2, cells] of g and g z to the gradients of weight and bias, those that are given.

    In float64, by one kernel; where more axes alternate than it has, by torch.
    """
    axes = _three(places)
    if axes is None:
        total = _by_torch(sums, places)
        dweight, dbias = (
            None if of is None else row.to(of.dtype).view_as(of)
            for of, row in ((weight, total[1]), (bias, total[0]))
        )
        return dweight, dbias
    outer, summed, inner = axes
    outputs = outer * inner
    # 8 neighbours in float64 are 64 bytes; more of them where there are enough to fill a GPU.
    j = min(64, max(8, below(outputs // 256))) if outputs >= 256 else 8
    dweight, dbias = (None if of is None else torch.empty_like(of) for of in (weight, bias))
    merge.fold[(-(-outputs // j),)](
        sums, sums.shape[1], dweight, dbias, outputs, summed, inner, J=j, P=max(1, plan.SMALL // j), **FUSED
    )
    return dweight, dbias


def _three(places: Places) -> tuple[int, int, int] | None:
    """Return axes as an outer one that is kept, one that is summed over, and an inner one that is kept."""
    found = [1, 1, 1]
    at = 2
    expected = 1
    for size, stride in reversed(places):
        if size == 1:
            continue
        if stride == 0:
            if at == 0:
                return None
            at = 1
        else:
            if stride != expected:
                return None
            at = 0 if at == 1 else at
            expected *= size
        found[at] *= size
    return found[0], found[1], found[2]


def _by_torch(sums: Tensor, places: Places) -> Tensor:
    opened = sums.view(2, *(size for size, _ in places))
    constant = [dim + 1 for dim, (size, stride) in enumerate(places) if stride == 0 and size > 1]
    if constant:
        opened = opened.sum(constant, keepdim=True, dtype=torch.float64)
    order = sorted(range(len(places)), key=lambda dim: -places[dim][1])
    return opened.permute(0, *(dim + 1 for dim in order)).reshape(2, -1)
