"""Triton on the GPU: the plumbing between tensors and kernels.

float32, bfloat16 and float16; float64, and what does not lie in a Layout, runs in eager.py. With
TRITON_INTERPRET=1 the same kernels run on the CPU, slowly: so they are tested.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from slabnorm.kernels import eager
from slabnorm.kernels.call import Call, Found, Statistics, memory_of
from slabnorm.kernels.gpu import affine_sums, merge
from slabnorm.kernels.gpu import backward as backwards
from slabnorm.kernels.gpu import forward as forwards
from slabnorm.kernels.gpu.fold import Places, fold
from slabnorm.kernels.gpu.found import Measured, on
from slabnorm.kernels.gpu.plan import FUSED, Geometry, Pieces, Tile, fits
from slabnorm.kernels.strides import memory
from slabnorm.notation import parse
from slabnorm.slab import Slab
from slabnorm.slab import plan as plan_slab

NAME = "gpu"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def start(device: torch.device) -> None:
    """Run a small kernel; raises what the compiler or the driver does if that cannot be."""
    x, slab = torch.ones((1, 8), device=device), plan_slab(parse("n c -> n"), (), (1, 8), ())
    forward(x, None, None, None, Call(slab, 1.0, plans=bind(x, slab)))


class Plans(NamedTuple):
    """What calls on tensors of some kinds share: how x is read, and the strides of what is written."""

    geometry: Geometry
    copied: bool
    strides: tuple[int, ...]


def bind(x: Tensor, slab: Slab) -> Plans | None:
    """Take tensors but float64 whose slabs lie in a Layout; strided ones that do not through a dense copy."""
    found = memory(x, slab) if x.dtype in _DTYPES and slab.numel > 0 else None
    if found is None or not fits(slab, found.layout):
        return None
    return Plans(Geometry(slab, found.layout), found.copied, found.strides)


def fuses(activation: str | None, dtype: torch.dtype) -> bool:
    """Apply every activation."""
    return True


# Kernels' statistics are as exact as an output of float32 needs them; moments() wants float64.
statistics = eager.statistics


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call
) -> tuple[Tensor, Measured, Found | None]:
    """Return y, the statistics it was normalised with, and those found unless they were given."""
    slab = call.slab
    x, g, strides = _taken(x, call.plans)
    y = torch.empty_like(x)
    residual = _like(residual, y, strides)
    stats = torch.empty((2, slab.slabs), dtype=torch.float64, device=x.device)
    factors = torch.empty((4, slab.slabs), dtype=torch.float32, device=x.device)
    numbers = {"sizes": g.sizes, "x_strides": g.x, "V": g.unit, "ROWS": g.rows}
    rest = {
        **numbers, "out_strides": g.out, "affine_strides": g.affine, "slab_strides": g.slab, "slabs": g.slabs,
        "slab_of": g.slab_of, "affine_of": g.affine_of, "MIXED": g.mixed, "ACTIVATION": call.activation or "",
    }  # fmt: skip
    with on(x):
        if call.given is not None:
            given = memory_of(call.given, g.slabs, x.device)
            merge.given[(-(-g.slabs // 256),)](*given, stats, factors, g.slabs, call.eps, S=256, **FUSED)
            tile = g.sweep(x.element_size())
        else:
            tile = g.tile(x.element_size(), False)
            if tile.whole:
                forwards.whole[(_programs(g, tile),)](
                    x, residual, y, weight, bias, stats, factors,
                    eps=call.eps, CENTER=call.center, ONE=tile.one, **rest, **tile.shape,
                )  # fmt: skip
            else:
                _statistics(x, stats, factors, call, g, tile, numbers)
        if not tile.whole:
            grid, tiles = _tiles(g, tile)
            forwards.apply[grid](x, residual, y, weight, bias, factors, **tiles, **rest, **tile.shape)
    found = Measured(stats, factors, call)
    return y, found, found if call.given is None else None


def _statistics(
    x: Tensor, stats: Tensor, factors: Tensor, call: Call, g: Geometry, tile: Tile, numbers: dict[str, Any]
) -> None:
    """Find the statistics of slabs that no program takes whole: sums of pieces, merged."""
    cut = g.pieces(tile)
    parts = torch.empty((2, g.blocks * cut.cells * cut.pieces), dtype=torch.float64, device=x.device)
    forwards.reduce[(cut.programs,)](
        x, parts, parts.shape[1], cells=cut.cells, pieces=cut.pieces, part_strides=cut.strides,
        STEPS=cut.steps, **numbers, **tile.shape,
    )  # fmt: skip
    shape = g.merging(cut)
    merge.statistics[(-(-g.slabs // shape["S"]),)](
        parts, parts.shape[1], stats, factors, eps=call.eps, extent=cut.extent, size=cut.size,
        slabs=g.slabs, CENTER=call.center, **_merged(g, cut), **shape,
    )  # fmt: skip


def _merged(g: Geometry, cut: Pieces) -> dict[str, Any]:
    return {
        "members": g.members, "slab_of": g.slab_of, "sizes": g.sizes, "slab_strides": g.slab,
        "part_strides": cut.strides, "per_block": g.per_block, "cells": g.of_slab, "pieces": cut.pieces,
        "in_block": cut.cells * cut.pieces, "ROWS": g.rows,
    }  # fmt: skip


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    stats: Measured, call: Call, needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the gradients of x, weight, bias and residual, each None unless it is needed."""
    need_x, need_weight, need_bias, need_residual = needed
    need_weight, need_bias = need_weight and weight is not None, need_bias and bias is not None
    x, g, strides = _taken(x, call.plans)
    # Without an activation the residual's gradient is dy itself.
    inner = need_residual and call.activation is not None
    dx = torch.empty_like(x) if need_x else None
    dresidual = torch.empty_like(x) if inner else None
    dy_there, residual = _like(dy.to(x.dtype), x, strides), _like(residual, x, strides)
    own, folds = call.given is None, need_weight or need_bias
    tensors = {
        "x": x, "dy": dy_there, "residual": residual, "weight": weight, "bias": bias, "factors":
        stats.factors, "sizes": g.sizes, "x_strides": g.x, "out_strides": g.out, "affine_strides": g.affine,
        "slab_strides": g.slab, "slabs": g.slabs, "slab_of": g.slab_of, "affine_of": g.affine_of,
        "ACTIVATION": call.activation or "", "V": g.unit,
    }  # fmt: skip
    kind = {"ROWS": g.rows, "MIXED": g.mixed}
    outputs = {"dx": dx, "dresidual": dresidual, "OWN": own, "CENTER": call.center}
    tile = g.tile(x.element_size(), True)
    sums: Tensor | None = None
    places: Places = []
    with on(x):
        if tile.whole and g.rows and g.mixed:
            steps = g.steps(tile)
            programs = -(-g.blocks // (tile.i * steps))
            if folds:
                sums, places = _sums(x, torch.float32, [(programs, 0), *g.places_of_run])
            backwards.tokens[(programs,)](
                cells=sums, second=_second(sums), STEPS=steps, **tensors, **outputs, **tile.shape
            )
        elif tile.whole:
            if folds:
                sums, places = _sums(x, torch.float64, g.places(*([-(-g.run // tile.c)] if g.mixed else [])))
            backwards.whole[(_programs(g, tile),)](
                cells=sums, second=_second(sums), BY_RUN=g.by_run, ONE=tile.one, **tensors, **kind, **outputs,
                **tile.shape,
            )  # fmt: skip
        else:
            means = None
            if own or (folds and not g.mixed):
                means = torch.empty((2, g.slabs), dtype=torch.float64, device=x.device)
                if folds and not g.mixed:
                    sums, places = _sums(x, torch.float64, g.places())
                _reduce(x, weight, means, sums, g, tile, {**tensors, **kind})
            if folds and g.mixed:
                sums, places = _mixed(x, g, tile, tensors)
            if dx is not None or dresidual is not None:
                grid, tiles = _tiles(g, tile)
                backwards.apply[grid](means=means, **tiles, **tensors, **kind, **outputs, **tile.shape)
        dweight = dbias = None
        if sums is not None:
            dweight, dbias = fold(sums, places, weight if need_weight else None, bias if need_bias else None)
    return dx, dweight, dbias, (dresidual if inner else dy) if need_residual else None


def _reduce(
    x: Tensor, weight: Tensor | None, means: Tensor, sums: Tensor | None, g: Geometry, tile: Tile,
    tensors: dict[str, Any],
) -> None:  # fmt: skip
    """Find the means of slabs, and the sums of cells where there are to be such."""
    cut = g.pieces(tile)
    parts = torch.empty((2, g.blocks * cut.cells * cut.pieces), dtype=torch.float64, device=x.device)
    backwards.reduce[(cut.programs,)](
        parts=parts, second=parts.shape[1], cells=cut.cells, pieces=cut.pieces, tiles=cut.tiles,
        part_strides=cut.strides, STEPS=cut.steps, **tensors, **tile.shape,
    )  # fmt: skip
    shape = g.merging(cut)
    merge.gradients[(-(-g.slabs // shape["S"]),)](
        parts, parts.shape[1], weight, means, sums, _second(sums), affine_of=g.affine_of,
        affine_strides=g.affine, slabs=g.slabs, count=g.count, MIXED=g.mixed, BY_CELL=g.by_run or not g.rows,
        V=g.unit, **_merged(g, cut), **shape,
    )  # fmt: skip


def _mixed(x: Tensor, g: Geometry, tile: Tile, tensors: dict[str, Any]) -> tuple[Tensor, Places]:
    """Return sums for weight and bias that vary within cells, in a sweep of their own."""
    if g.rows:
        steps = g.steps(tile)
        chunks = -(-g.blocks // (tile.i * steps))
        sums, places = _sums(x, torch.float32, [(chunks, 0), *g.places_of_run])
        grid = chunks * -(-g.run // tile.c)
    else:
        steps, chunks = 1, 1
        sums, places = _sums(x, torch.float64, g.places())
        grid = -(-g.blocks // tile.i) * -(-g.runs // tile.r)
    affine_sums.sweep[(grid,)](
        cells=sums, second=_second(sums), ROWS=g.rows, STEPS=steps, **tensors, **tile.shape
    )
    return sums, places


def used(stats: Measured, slab: Slab) -> Statistics:
    """Return what a forward has normalised with."""
    return eager.used_of(stats.mean, stats.m2 / (slab.count if stats.call.given is None else 1), stats.call)


def _taken(x: Tensor, plans: Plans) -> tuple[Tensor, Geometry, tuple[int, ...]]:
    """Return x as it is read, its geometry, and the strides of what is written."""
    if plans.copied:
        x = x.clone(memory_format=torch.preserve_format)
    return x, plans.geometry, plans.strides


def _programs(g: Geometry, tile: Tile) -> int:
    return -(-g.blocks // tile.i) * (1 if g.rows else -(-g.run // tile.c))


def _tiles(g: Geometry, tile: Tile) -> tuple[tuple[int], dict[str, int]]:
    runs, places = -(-g.runs // tile.r), -(-g.run // tile.c)
    return (-(-g.blocks // tile.i) * runs * places,), {"run_tiles": runs, "place_tiles": places}


def _sums(x: Tensor, dtype: torch.dtype, places: Places) -> tuple[Tensor, Places]:
    cells = 1
    for size, _ in places:
        cells *= size
    return torch.empty((2, cells), dtype=dtype, device=x.device), places


def _second(sums: Tensor | None) -> int:
    return 0 if sums is None else sums.shape[1]


def _like(t: Tensor | None, x: Tensor, strides: tuple[int, ...]) -> Tensor | None:
    """Return a tensor with these strides, which empty_like(x) has."""
    return t if t is None or t.stride() == strides else torch.empty_like(x).copy_(t)
