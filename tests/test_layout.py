"""How slabs lie in memory, as blocks, runs and columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slabnorm.kernels.cpu import addressing, columns, rows
from slabnorm.kernels.layout import CHUNK, Layout, find_layout
from slabnorm.notation import parse
from slabnorm.slab import Slab, plan
from tests.cases import LAYOUTS, NORMS, Case, draw


def bind(pattern: str, shape: tuple[int, ...], affine: str | None = None, **sizes: int) -> Slab:
    parsed = parse(pattern)
    return plan(parsed, parsed.affine(affine), shape, tuple(sorted(sizes.items())))


def layout_of(slab: Slab, x: torch.Tensor) -> Layout | None:
    return find_layout(slab, x.stride(), torch.empty_like(x).stride())


@pytest.mark.parametrize(
    ("pattern", "shape", "last", "is_rows", "mixed", "blocks", "runs", "run"),
    [
        ("n c h w -> c", (8, 16, 14, 14), False, True, False, 16, 8, 196),
        ("n c h w -> c", (8, 16, 14, 14), True, False, False, 1, 49, 512),  # short runs joined
        ("n c h w -> c", (8, 64, 14, 14), True, False, False, 1, 196, 512),
        ("n c h w -> c", (8, 16, 3, 3), False, False, False, 1, 4, 288),  # too short for rows
        ("n c -> c", (7, 80), False, False, False, 1, 7, 80),
        ("n c h w -> n c", (2, 3, 14, 14), False, True, False, 6, 1, 196),
        ("n c h w -> n c", (2, 64, 14, 14), True, False, False, 2, 28, 448),
        ("n (g c) h w -> n g", (2, 64, 14, 14), False, True, False, 4, 32, 196),
        ("n (g c) h w -> n g", (2, 64, 14, 14), True, False, False, 2, 28, 448),
        ("n c h w -> n", (2, 64, 14, 14), True, False, False, 2, 28, 448),
        ("n t c -> n t", (4, 5, 80), False, True, True, 20, 1, 80),
        ("n c h w -> n h w", (2, 64, 14, 14), False, False, True, 2, 64, 196),
        ("n c h w -> n h w", (2, 64, 14, 14), True, True, True, 392, 1, 64),
    ],
)
def test_layouts(
    pattern: str, shape: tuple[int, ...], last: bool, is_rows: bool, mixed: bool, blocks: int, runs: int,
    run: int
) -> None:  # fmt: skip
    x = torch.empty(shape)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    layout = layout_of(bind(pattern, shape, **({"g": 2} if "g" in pattern else {})), x)
    assert layout is not None
    found = layout.rows, layout.mixed, layout.blocks, layout.runs, layout.run
    assert found == (is_rows, mixed, blocks, runs, run)


@pytest.mark.parametrize("order", list(LAYOUTS))
@pytest.mark.parametrize("case", NORMS, ids=str)
def test_a_walk_meets_every_element_in_its_slab_and_under_its_weight(case: Case, order: str) -> None:
    slab = bind(case.pattern, case.shape, case.affine, **case.sizes)
    x = LAYOUTS[order](draw(case.shape))
    layout = layout_of(slab, x)
    if layout is None:
        return
    slabs, weights = _owners(slab, x)
    start_of = addressing.start_of.py_func
    seen = 0
    for block in range(layout.blocks):
        for run in range(layout.runs):
            b, r = addressing.block_of.py_func(layout, block), addressing.run_of.py_func(layout, run)
            at, weight = (start_of(strides, b, r) for strides in (layout.x, layout.affine))
            slab_id = addressing.first_slab.py_func(layout, b)
            i = np.arange(layout.run)
            wanted = slabs[at + i], weights[at + i]
            if layout.rows:
                got = np.full(len(i), slab_id), weight + (i if layout.mixed else 0)
            else:
                place = columns.places.py_func(layout.axes, 0, layout.run)
                got = slab_id + place[0], weight + place[1]
            assert np.array_equal(got[0], wanted[0])
            assert np.array_equal(got[1] + 0 * i, wanted[1])
            seen += len(i)
    assert seen == slab.numel


def _owners(slab: Slab, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every place in the memory of x, the slab and the weight of the element there."""
    owners = []
    for axes in (slab.kept, slab.affine):
        numbers = torch.arange(int(np.prod(axes.shape))).reshape(axes.shape)
        spread = axes.spread(numbers).expand(slab.split).reshape(x.shape)
        memory_of = torch.full((1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)),), -1)
        memory_of.as_strided(x.shape, x.stride()).copy_(spread)
        owners.append(memory_of.numpy())
    return owners[0], owners[1]


def test_more_than_2_to_31_elements() -> None:
    """Nothing is allocated: the last run of a tensor of 64 GiB starts where it should."""
    slab = bind("n c h w -> c", (4096, 64, 256, 256))
    layout = find_layout(slab, (64 * 65536, 65536, 256, 1), (64 * 65536, 65536, 256, 1))
    assert layout is not None
    assert layout.record.dtype["x"]["runs1"] == np.int64
    block, run = addressing.block_of.py_func(layout, 63), addressing.run_of.py_func(layout, 4095)
    assert addressing.start_of.py_func(layout.x, block, run) == 2**34 - 65536


def test_chunks_of_a_run_beyond_2_to_31() -> None:
    length = 2**31 + CHUNK + 7
    layout = find_layout(bind("n t -> n", (1, length)), (length, 1), (length, 1))
    assert layout is not None
    assert layout.run == length
    chunks = rows.chunks_of.py_func(layout)
    assert rows.chunk_of.py_func(layout, 0) == (0, CHUNK)
    assert rows.chunk_of.py_func(layout, chunks - 1) == (2**31 + CHUNK, 7)
