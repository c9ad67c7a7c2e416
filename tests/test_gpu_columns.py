"""Where a column belongs, as the GPU's kernels work it out from its number."""

from __future__ import annotations

import pytest
import torch

from slabnorm.kernels.cpu.columns import places
from slabnorm.kernels.layout import find_placement
from slabnorm.notation import parse
from slabnorm.slab import plan as plan_slab

pytest.importorskip("triton", reason="the GPU kernels need Triton")
from slabnorm.kernels.gpu import tiling

COLUMNS = [
    ("n c h w -> c", (3, 6, 5, 7), {}),
    ("n c h w -> c", (3, 600, 2, 2), {}),
    ("n (g c) h w -> n g", (2, 12, 3, 3), {"g": 3}),
    ("n (c g) h w -> n g", (2, 12, 3, 3), {"g": 3}),
    ("n (a b c) h w -> b", (2, 24, 3, 3), {"a": 2, "b": 3, "c": 4}),
    ("n (a b c d) h w -> a c", (2, 24, 3, 3), {"a": 2, "b": 3, "c": 2}),
    ("n c h w -> n h w", (2, 5, 3, 4), {}),
]


@pytest.mark.parametrize(("pattern", "shape", "sizes"), COLUMNS)
def test_columns_by_digits(pattern: str, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """As the CPU's kernels count them on."""

    def at(digits: tuple[int, ...], index: int) -> int:
        place = 0
        for size, stride in zip(digits[::2], digits[1::2], strict=True):
            place, index = place + index % size * stride, index // size
        return place

    found = parse(pattern)
    slab = plan_slab(found, found.affine(None), shape, tuple(sorted(sizes.items())))
    order = torch.contiguous_format if pattern == "n c h w -> n h w" else torch.channels_last
    layout = find_placement(torch.empty(shape).contiguous(memory_format=order), slab).layout
    assert not layout.rows
    g = tiling.Tiling(slab, layout)
    columns = range(g.run)
    slab_of, affine_of = places.py_func(layout.axes, 0, layout.run).tolist()
    assert slab_of == [at(g.slab_of, c) if g.slab_of else c for c in columns]
    if not g.mixed:
        assert affine_of == [at(g.affine_of, c) if g.affine_of else c for c in columns]
    seen = []
    for number, one in enumerate(sorted(set(slab_of))):
        j = range(g.of_slab)
        m = g.members
        ours = [at(m[:8], number) + at(m[8:], k) if m else number * g.of_slab + k for k in j]
        assert {slab_of[c] for c in ours} == {one}
        seen += ours
    assert sorted(seen) == list(columns)
