"""Triton on the GPU: the plumbing between tensors and kernels.

float32, bfloat16 and float16; float64, and what does not lie in a Layout, runs in eager.py. With
TRITON_INTERPRET=1 the same kernels run on the CPU, slowly: so they are tested.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slabnorm.kernels import eager
from slabnorm.kernels.call import Call, Found, Statistics, memory_of
from slabnorm.kernels.gpu import backward as backwards
from slabnorm.kernels.gpu import forward as forwards
from slabnorm.kernels.gpu import merge
from slabnorm.kernels.gpu.merge import Places, affine_gradients
from slabnorm.kernels.gpu.tiling import FUSED, Tile, Tiling, fits
from slabnorm.kernels.layout import find_placement
from slabnorm.notation import parse
from slabnorm.slab import Slab
from slabnorm.slab import plan as plan_slab

NAME = "gpu"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_UPDATED = 1024  # running statistics that are updated at once


class TritonStatistics:
    """Statistics that a kernel found or was given: float64 [2, slabs] (mean, squared deviations).

    With them the coefficients that normalise, float32 [4, slabs]: coefficients.py.
    """

    __slots__ = ("call", "coefficients", "slab", "values")

    def __init__(self, values: Tensor, coefficients: Tensor, call: Call) -> None:
        self.values, self.coefficients, self.call, self.slab = values, coefficients, call, call.slab

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.values.device

    @property
    def mean(self) -> Tensor:
        """The means, gathered."""
        return self.values[0].view(self.slab.kept.shape)

    @property
    def m2(self) -> Tensor:
        """The sums of squared deviations, gathered."""
        return self.values[1].view(self.slab.kept.shape)

    def update_running(
        self, count: int, mean: Tensor, var: Tensor, momentum: float, batches: Tensor | None,
        elements: Tensor | None, skipped: Tensor | None,
    ) -> bool:  # fmt: skip
        """Let a batch enter running statistics and counters; where it is not finite, it is only counted."""
        with _on(mean):
            merge.update_running[(1,)](
                self.values, self.slab.slabs, count, mean, var, momentum, batches, elements, skipped,
                S=_UPDATED, **FUSED,
            )  # fmt: skip
        return True


def start(device: torch.device) -> None:
    """Run a small kernel; raises what the compiler or the driver does if that cannot be."""
    x, slab = torch.ones((1, 8), device=device), plan_slab(parse("n c -> n"), (), (1, 8), ())
    forward(x, None, None, None, Call(slab, 1.0, plans=bind(x, slab)))


class TilingPlan(NamedTuple):
    """What calls on tensors of some kinds share: how x is read, and the strides of what is written."""

    tiling: Tiling
    copied: bool
    strides: tuple[int, ...]


def bind(x: Tensor, slab: Slab) -> TilingPlan | None:
    """Take tensors but float64 whose slabs lie in a Layout; strided ones that do not through a dense copy."""
    found = find_placement(x, slab) if x.dtype in _DTYPES and slab.numel > 0 else None
    if found is None or not fits(slab, found.layout):
        return None
    return TilingPlan(Tiling(slab, found.layout), found.copied, found.strides)


def fuses(activation: str | None, dtype: torch.dtype) -> bool:
    """Apply every activation."""
    return True


# Kernels' statistics are as exact as an output of float32 needs them; moments() wants float64.
statistics = eager.statistics


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call
) -> tuple[Tensor, TritonStatistics, Found | None]:
    """Return y, the statistics it was normalised with, and those found unless they were given."""
    slab = call.slab
    x, tiling, strides = _taken(x, call.plans)
    y = torch.empty_like(x)
    residual = _like(residual, y, strides)
    stats = torch.empty((2, slab.slabs), dtype=torch.float64, device=x.device)
    coefficients = torch.empty((4, slab.slabs), dtype=torch.float32, device=x.device)
    kind = {"ROWS": tiling.rows, "MIXED": tiling.mixed, "ACTIVATION": call.activation or ""}
    rest = {**tiling.arguments, **kind}
    with _on(x):
        if call.given is not None:
            given = memory_of(call.given, tiling.slabs, x.device)
            merge.store_given[(-(-tiling.slabs // 256),)](
                *given, stats, coefficients, tiling.slabs, call.eps, S=256, **FUSED
            )
            tile = tiling.sweep(x.element_size())
        else:
            tile = tiling.tile(x.element_size(), False)
            if tile.whole:
                kernel = forwards.whole if tile.one else forwards.looped
                kernel[(_programs(tiling, tile),)](
                    x, residual, y, weight, bias, stats, coefficients,
                    eps=call.eps, CENTER=call.center, **rest, **tile.shape,
                )  # fmt: skip
            else:
                _statistics(x, stats, coefficients, call, tiling, tile)
        if not tile.whole:
            grid, tiles = _tiles(tiling, tile)
            forwards.apply[grid](x, residual, y, weight, bias, coefficients, **tiles, **rest, **tile.shape)
    found = TritonStatistics(stats, coefficients, call)
    return y, found, found if call.given is None else None


def _statistics(
    x: Tensor, stats: Tensor, coefficients: Tensor, call: Call, tiling: Tiling, tile: Tile
) -> None:
    """Find the statistics of slabs that no program takes whole: sums of pieces, merged."""
    cut = tiling.pieces(tile)
    parts = torch.empty((2, tiling.blocks * cut.cells * cut.pieces), dtype=torch.float64, device=x.device)
    forwards.reduce[(cut.programs,)](
        x, parts, parts.shape[1], cells=cut.cells, pieces=cut.pieces, part_strides=cut.strides,
        STEPS=cut.steps, sizes=tiling.sizes, x_strides=tiling.x, V=tiling.unit, ROWS=tiling.rows,
        **tile.shape,
    )  # fmt: skip
    shape = tiling.merging(cut)
    merge.statistics[(-(-tiling.slabs // shape["S"]),)](
        parts, parts.shape[1], stats, coefficients, eps=call.eps, extent=cut.extent, size=cut.size,
        slabs=tiling.slabs, CENTER=call.center, **tiling.merge_arguments(cut), **shape,
    )  # fmt: skip


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    stats: TritonStatistics, call: Call, needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the gradients of x, weight, bias and residual, each None unless it is needed."""
    need_x, need_weight, need_bias, need_residual = needed
    need_weight, need_bias = need_weight and weight is not None, need_bias and bias is not None
    x, tiling, strides = _taken(x, call.plans)
    # Without an activation the residual's gradient is dy itself.
    inner = need_residual and call.activation is not None
    dx = torch.empty_like(x) if need_x else None
    dresidual = torch.empty_like(x) if inner else None
    dy_there, residual = _like(dy.to(x.dtype), x, strides), _like(residual, x, strides)
    own, folds = call.given is None, need_weight or need_bias
    tensors = {
        "x": x, "dy": dy_there, "residual": residual, "weight": weight, "bias": bias,
        "coefficients": stats.coefficients, "ACTIVATION": call.activation or "", **tiling.arguments,
    }  # fmt: skip
    kind = {"ROWS": tiling.rows, "MIXED": tiling.mixed}
    outputs = {"dx": dx, "dresidual": dresidual, "OWN": own, "CENTER": call.center}
    tile = tiling.tile(x.element_size(), True)
    sums: Tensor | None = None
    places: Places = []
    with _on(x):
        if tile.whole and tiling.rows and tiling.mixed:
            steps = tiling.steps(tile)
            programs = -(-tiling.blocks // (tile.i * steps))
            if folds:
                sums, places = _sums(x, torch.float32, [(programs, 0), *tiling.places_of_run])
            backwards.tokens[(programs,)](
                cells=sums, second=_second(sums), STEPS=steps, **tensors, **outputs, **tile.shape
            )
        elif tile.whole:
            if folds:
                sums, places = _sums(
                    x,
                    torch.float64,
                    tiling.places(*([-(-tiling.run // tile.c)] if tiling.mixed else [])),
                )
            kernel = backwards.whole if tile.one else backwards.looped
            kernel[(_programs(tiling, tile),)](
                cells=sums,
                second=_second(sums),
                BY_RUN=tiling.by_run,
                **tensors,
                **kind,
                **outputs,
                **tile.shape,
            )
        else:
            means = None
            if own or (folds and not tiling.mixed):
                means = torch.empty((2, tiling.slabs), dtype=torch.float64, device=x.device)
                if folds and not tiling.mixed:
                    sums, places = _sums(x, torch.float64, tiling.places())
                _reduce(x, weight, means, sums, tiling, tile, {**tensors, **kind})
            if folds and tiling.mixed:
                sums, places = _mixed(x, tiling, tile, tensors)
            if dx is not None or dresidual is not None:
                grid, tiles = _tiles(tiling, tile)
                backwards.apply[grid](means=means, **tiles, **tensors, **kind, **outputs, **tile.shape)
        dweight = dbias = None
        if sums is not None:
            dweight, dbias = affine_gradients(
                sums, places, weight if need_weight else None, bias if need_bias else None
            )
    return dx, dweight, dbias, (dresidual if inner else dy) if need_residual else None


def _reduce(
    x: Tensor, weight: Tensor | None, means: Tensor, sums: Tensor | None, tiling: Tiling, tile: Tile,
    tensors: dict[str, Any],
) -> None:  # fmt: skip
    """Find the means of slabs, and the sums of cells where there are to be such."""
    cut = tiling.pieces(tile)
    parts = torch.empty((2, tiling.blocks * cut.cells * cut.pieces), dtype=torch.float64, device=x.device)
    backwards.reduce[(cut.programs,)](
        parts=parts, second=parts.shape[1], cells=cut.cells, pieces=cut.pieces, tiles=cut.tiles,
        part_strides=cut.strides, STEPS=cut.steps, **tensors, **tile.shape,
    )  # fmt: skip
    shape = tiling.merging(cut)
    merge.gradients[(-(-tiling.slabs // shape["S"]),)](
        parts, parts.shape[1], weight, means, sums, _second(sums), affine_of=tiling.affine_of,
        affine_strides=tiling.affine, slabs=tiling.slabs, count=tiling.count, V=tiling.unit,
        MIXED=tiling.mixed, BY_CELL=tiling.by_run or not tiling.rows, **tiling.merge_arguments(cut), **shape,
    )  # fmt: skip


def _mixed(x: Tensor, tiling: Tiling, tile: Tile, tensors: dict[str, Any]) -> tuple[Tensor, Places]:
    """Return sums for weight and bias that vary within cells, in a sweep of their own."""
    if tiling.rows:
        steps = tiling.steps(tile)
        chunks = -(-tiling.blocks // (tile.i * steps))
        sums, places = _sums(x, torch.float32, [(chunks, 0), *tiling.places_of_run])
        grid = chunks * -(-tiling.run // tile.c)
    else:
        steps, chunks = 1, 1
        sums, places = _sums(x, torch.float64, tiling.places())
        grid = -(-tiling.blocks // tile.i) * -(-tiling.runs // tile.r)
    backwards.affine_sums[(grid,)](
        cells=sums, second=_second(sums), ROWS=tiling.rows, STEPS=steps, **tensors, **tile.shape
    )
    return sums, places


def used(stats: TritonStatistics, slab: Slab) -> Statistics:
    """Return what a forward has normalised with."""
    return eager.used_of(stats.mean, stats.m2 / (slab.count if stats.call.given is None else 1), stats.call)


def _taken(x: Tensor, plans: TilingPlan) -> tuple[Tensor, Tiling, tuple[int, ...]]:
    """Return x as it is read, its tiling, and the strides of what is written."""
    if plans.copied:
        x = x.clone(memory_format=torch.preserve_format)
    return x, plans.tiling, plans.strides


def _programs(tiling: Tiling, tile: Tile) -> int:
    return -(-tiling.blocks // tile.i) * (1 if tiling.rows else -(-tiling.run // tile.c))


def _tiles(tiling: Tiling, tile: Tile) -> tuple[tuple[int], dict[str, int]]:
    runs, places = -(-tiling.runs // tile.r), -(-tiling.run // tile.c)
    return (-(-tiling.blocks // tile.i) * runs * places,), {"run_tiles": runs, "place_tiles": places}


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


def _on(t: Tensor) -> AbstractContextManager[object]:
    """Return a context in which kernels start on a tensor's device."""
    if t.device.type != "cuda" or t.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(t.device)
