"""A pattern bound to a shape: counts and axes."""

from __future__ import annotations

import pytest
import torch

from slabnorm.notation import parse
from slabnorm.slab import Slab, plan
from tests.cases import NORMS, Case, draw


def bind(pattern: str, shape: tuple[int, ...], affine: str | None = None, **sizes: int) -> Slab:
    parsed = parse(pattern)
    return plan(parsed, parsed.affine(affine), shape, tuple(sorted(sizes.items())))


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
    """Counts are Python's: nothing is allocated here."""
    slab = bind("n c h w -> c", (4096, 64, 256, 256))
    assert slab.numel == 2**34
    assert slab.count == 2**28
