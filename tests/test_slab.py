"""A pattern bound to a shape: counts, cells, and their place in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slabnorm.pattern import parse
from slabnorm.slab import Slab, plan
from tests.cases import NORMS, Case, draw


def bind(pattern: str, shape: tuple[int, ...], affine: str | None = None, **sizes: int) -> Slab:
    parsed = parse(pattern)
    return plan(parsed, parsed.affine(affine), shape, tuple(sorted(sizes.items())))


def test_planned_once() -> None:
    assert bind("n c h w -> c", (2, 3, 4, 5)) is bind("n c h w -> c", (2, 3, 4, 5))


@pytest.mark.parametrize(
    ("pattern", "shape", "order", "sizes", "loops"),
    [
        ("n c h w -> c", (2, 3, 4, 5), (0, 1, 2, 3), {}, (1, 2, 3, 20)),
        ("n c h w -> c", (2, 3, 4, 5), (0, 2, 3, 1), {}, (1, 40, 3, 1)),
        ("n c -> c", (7, 3), (0, 1), {}, (1, 7, 3, 1)),
        ("n c h w -> n c", (2, 3, 4, 5), (0, 1, 2, 3), {}, (1, 1, 6, 20)),
        ("n c h w -> n c", (2, 3, 4, 5), (0, 2, 3, 1), {}, (2, 20, 3, 1)),
        ("n (g c) h w -> n g", (2, 6, 4, 5), (0, 1, 2, 3), {"g": 2}, (1, 1, 12, 20)),
        ("n (g c) h w -> n g", (2, 6, 4, 5), (0, 2, 3, 1), {"g": 2}, (2, 20, 6, 1)),
        ("n c h w -> c", (1, 3, 4, 5), (0, 1, 2, 3), {}, (1, 1, 3, 20)),  # an axis of one is no loop
    ],
)
def test_loops(
    pattern: str,
    shape: tuple[int, ...],
    order: tuple[int, ...],
    sizes: dict[str, int],
    loops: tuple[int, ...],
) -> None:
    cells = bind(pattern, shape, **sizes).cells(order)
    assert cells is not None
    assert cells.loops == loops


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3)])
@pytest.mark.parametrize("case", [case for case in NORMS if len(case.shape) == 4], ids=str)
def test_cells_partition_the_tensor(case: Case, order: tuple[int, ...]) -> None:
    """Walking memory by the four loops meets every element in its slab and under its weight."""
    slab = bind(case.pattern, case.shape, case.affine, **case.sizes)
    cells = slab.cells(order)
    if cells is None:
        return
    slab_ids = torch.arange(slab.slabs).reshape(slab.kept.shape)
    slab_ids = slab.kept.spread(slab_ids).expand(slab.split).reshape(case.shape)
    weights = torch.arange(int(np.prod(slab.affine.shape))).reshape(slab.affine.shape)
    weights = slab.affine.spread(weights).expand(slab.split).reshape(case.shape)
    outer, _, inside, _ = cells.loops
    cell = np.arange(outer * inside).reshape(outer, 1, inside, 1)
    cell = np.broadcast_to(cell, cells.loops).reshape(-1)
    for owner, wanted in ((cells.slab_of, slab_ids), (cells.affine_of, weights)):
        assert np.array_equal(owner[cell], wanted.permute(order).reshape(-1).numpy())


@pytest.mark.parametrize("case", NORMS, ids=str)
def test_spread_and_gather_undo_each_other(case: Case) -> None:
    slab = bind(case.pattern, case.shape, case.affine, **case.sizes)
    for axes in (slab.kept, slab.affine, slab.running):
        values = draw(axes.shape)
        assert torch.equal(axes.gather(axes.spread(values)), values)


def test_order_of_the_right_side_is_the_order_of_the_result() -> None:
    x = draw((2, 3, 4))
    slab = bind("n c w -> w n", (2, 3, 4))
    assert slab.kept.shape == (4, 2)
    assert torch.equal(slab.kept.gather(x.mean(1, keepdim=True)), x.mean(1).T)


def test_more_than_2_to_31_elements() -> None:
    """Counts and offsets are Python's and int64: nothing is allocated here."""
    slab = bind("n c h w -> c", (4096, 64, 256, 256))
    assert slab.numel == 2**34
    assert slab.count == 2**28
    cells = slab.cells((0, 1, 2, 3))
    assert cells is not None
    assert cells.loops == (1, 4096, 64, 65536)


def test_offsets_of_the_last_piece_are_64_bit() -> None:
    """The piece that ends beyond 2^31 elements, run on memory that is one page seen many times."""
    from slabnorm.kernels import loops

    page = np.ones(1, dtype=np.float32)
    wide = np.lib.stride_tricks.as_strided(page, (2**31 + 2**14,), (0,))
    shape = (1, 2, 1, 2**30 + 2**13)
    pieces, _, chunks = loops.cut(shape)
    parts = np.zeros((2, 2 * chunks))
    loops.reduce_piece.py_func(pieces - 1, wide, None, np.zeros(1), shape, parts)
    assert parts[0, -1] == shape[3] - (chunks - 1) * loops._CHUNK
