"""Moments and their merge, against exact rationals."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slabnorm as sn
from slabnorm import Moments
from slabnorm.errors import DtypeError, OptionError, ShapeError, StatisticsError
from slabnorm.mergeable_moments import FIELDS
from tests import laws
from tests.cases import CONSTANTS, DISTRIBUTIONS, LAYOUTS, NORMS, Case, draw
from tests.inputs.oracle import mean_var


def of(values: list[float]) -> Moments:
    return sn.moments(torch.tensor(values, dtype=torch.float64).reshape(-1, 1), "n c -> c")


def close(got: torch.Tensor, want: Fraction, relative: float) -> bool:
    return abs(Fraction(got.item()) - want) <= Fraction(relative) * abs(want)


values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)


def test_numpy_and_torch_merge_to_the_same_bits() -> None:
    g = torch.Generator().manual_seed(3)
    a, b = (sn.moments(1e9 + torch.randn(50, 9, generator=g, dtype=torch.float64), "n c -> c") for _ in "ab")
    odd = torch.tensor([0.0, 1e300, -1e300, float("inf")], dtype=torch.float64)
    counts = torch.tensor([0, 3, 0, 5])
    strange = Moments(counts, odd, odd.abs(), odd, odd)
    for x, y in ((a, b), (b, a), (strange, strange), (Moments.empty(), a)):
        tracked = Moments(x.count, x.mean.clone().requires_grad_(), x.m2, x.min, x.max, x.mean_low, x.m2_low)
        by_numpy, by_torch = x.merge(y), tracked.merge(y)  # autograd sees only what torch computes
        assert by_torch.mean.requires_grad
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(by_numpy, name), getattr(by_torch, name).detach())


@settings(deadline=None)
@given(values, st.data())
def test_merge_of_any_chunks_in_any_order(numbers: list[float], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(numbers)), max_size=5)))
    chunks = [numbers[a:b] for a, b in zip([0, *cuts], [*cuts, len(numbers)], strict=True)]
    parts = [of(chunk) if chunk else Moments.empty((1,)) for chunk in data.draw(st.permutations(chunks))]
    while len(parts) > 1:  # any tree
        i = data.draw(st.integers(0, len(parts) - 2))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    m = parts[0]
    mean, var = mean_var(np.array(numbers))
    assert m.count.item() == len(numbers)
    assert m.min.item() == min(numbers)
    assert m.max.item() == max(numbers)
    assert abs(Fraction(m.mean.item()) - mean) <= Fraction(1e-15) * max(abs(Fraction(v)) for v in numbers)
    scale = max(abs(Fraction(v)) for v in numbers) ** 2 * Fraction(1e-31)  # rounding of the mean pair
    assert abs(Fraction(m.var().item()) - var) <= Fraction(1e-13) * var + scale


@settings(deadline=None)
@given(values, values, values)
def test_associative_commutative_neutral(a: list[float], b: list[float], c: list[float]) -> None:
    x, y, z = of(a), of(b), of(c)
    largest = max(map(abs, a + b + c))
    left, right, turned = (x + y) + z, x + (y + z), (y + z) + x
    for other in (right, turned):
        assert left.count == other.count
        assert (left.mean - other.mean).abs() <= 1e-15 * largest
        assert torch.allclose(left.var(), other.var(), rtol=1e-13, atol=1e-31 * largest**2)
        assert torch.equal(left.min, other.min)
        assert torch.equal(left.max, other.max)
    for neutral in (Moments.empty() + x, x + Moments.empty((1,)), sum([x])):
        for name in ("count", "mean", "m2", "min", "max", "mean_low", "m2_low"):
            assert torch.equal(getattr(neutral, name), getattr(x, name))


@pytest.mark.parametrize("size", [1, 3, 64, 1000])
@pytest.mark.parametrize("kappa", [1e0, 1e6, 1e12])
def test_fitting_gate(kappa: float, size: int) -> None:
    """Variance to 1e-13 for kappa to 1e12, whatever the chunks and the order of merging."""
    x = kappa + draw((6000 if size > 3 else 500 * size,), dtype=torch.float64)
    _, var = mean_var(x.numpy())
    parts = [sn.moments(chunk[:, None], "n c -> c") for chunk in x.split(size)]
    forward = sum(parts[1:], parts[0])
    backward = sum(parts[-2::-1], parts[-1])
    while len(parts) > 1:
        parts = [sum(parts[i + 1 : i + 2], parts[i]) for i in range(0, len(parts), 2)]
    for m in (forward, backward, parts[0]):
        assert close(m.var(), var, 1e-13)


def test_the_case_that_partial_fit_misses() -> None:
    """1e15 + {0..6} in chunks of 64: the variance is exactly 4."""
    x = 1e15 + torch.arange(7 * 64 * 5, dtype=torch.float64) % 7
    parts = [sn.moments(chunk[:, None], "n c -> c") for chunk in x.split(64)]
    assert sum(parts[1:], parts[0]).var().item() == 4.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", NORMS, ids=str)
def test_moments_of_every_pattern(case: Case, layout: str, dtype: torch.dtype) -> None:
    for name in DISTRIBUTIONS:
        if name == "denormal" or (name.startswith("constant 3e38") and dtype == torch.bfloat16):
            continue
        x = LAYOUTS[layout](draw(case.shape, name, dtype))
        m = sn.moments(x, case.pattern, **case.sizes)
        wide = laws.long(x).reshape(case.split)
        mean = wide.mean(case.pooled)
        var = ((wide - wide.mean(case.pooled, keepdims=True)) ** 2).mean(case.pooled)
        got_mean, got_var = laws.long(m.mean), laws.long(m.var())
        if case.name.startswith("swapped"):
            got_mean, got_var = got_mean.T, got_var.T
        assert (abs(got_mean - mean) <= 1e-14 * abs(wide).max()).all()
        if name in CONSTANTS:  # the oracle's mean is rounded, ours is the constant
            var = np.zeros_like(var)
        assert (abs(got_var - var) <= 1e-13 * var).all()
        for got, want in ((m.min, wide.min(case.pooled)), (m.max, wide.max(case.pooled))):
            assert np.array_equal(got.numpy().T if case.name.startswith("swapped") else got.numpy(), want)
        assert (m.count == wide.size // got_mean.size).all()


def test_ddof_and_std() -> None:
    m = of([1.0, 2.0, 4.0])
    assert close(m.var(1), mean_var(np.array([1.0, 2.0, 4.0]))[1] * 3 / 2, 1e-15)
    assert torch.equal(m.std(1), m.var(1).sqrt())
    assert of([3.0]).var(1).isnan().all()
    assert Moments.empty().var().isnan()
    with pytest.raises(OptionError):
        m.var(-1)


def test_empty_input() -> None:
    m = sn.moments(torch.zeros(0, 3), "n c -> c")
    assert m.count.tolist() == [0, 0, 0]
    assert m.min.tolist() == [float("inf")] * 3
    assert torch.equal((m + of([1.0, 2.0])).mean, torch.full((3,), 1.5, dtype=torch.float64))


def test_no_graph() -> None:
    x = draw((4, 3)).requires_grad_()
    assert not sn.moments(x, "n c -> c").mean.requires_grad


def test_what_cannot_be() -> None:
    with pytest.raises(StatisticsError):
        Moments(torch.tensor(-1), torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.0))
    with pytest.raises(StatisticsError):
        Moments(torch.tensor(1), torch.tensor(0.0), torch.tensor(-1.0), torch.tensor(0.0), torch.tensor(0.0))
    with pytest.raises(ShapeError):
        Moments(torch.tensor([1]), torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.0))
    with pytest.raises(ShapeError, match="cannot be merged"):
        Moments.empty((2,)) + Moments.empty((3,))
    with pytest.raises(DtypeError):
        sn.moments(torch.tensor([[1, 2]]), "n c -> c")


@pytest.mark.parametrize("pattern", ["n c -> c", "c n -> c"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_outlier_in_first_place(dtype: torch.dtype, pattern: str) -> None:
    """It is what the sums are shifted by first; the variance keeps its digits all the same."""
    x = draw((300_000, 1), dtype=dtype)
    x[0] = 1e4
    wide = laws.long(x)
    var = ((wide - wide.mean()) ** 2).mean()
    m = sn.moments(x if pattern == "n c -> c" else x.T.contiguous(), pattern)
    assert abs(laws.long(m.var())[0] - var) <= 1e-13 * var


def test_what_is_no_moments() -> None:
    with pytest.raises(TypeError):
        Moments.empty() + 1


def test_elements_with_real_weights() -> None:
    def one(x: float, weight: float) -> Moments:
        parts = (torch.tensor([v], dtype=torch.float64) for v in (weight, x, 0.0, x, x))
        return Moments(*parts, weighted=True)

    numbers, weights = [1e12, 1e12 + 1, 1e12 + 3, 1e12 - 7], [0.25, 1e-3, 3.5, 0.125]
    m = Moments.empty() + of([1e12 + 2])  # an element without a weight has weight 1
    for x, weight in zip(numbers, weights, strict=True):
        m = m + one(x, weight)
    pairs = [(Fraction(x), Fraction(w)) for x, w in zip([*numbers, 1e12 + 2], [*weights, 1.0], strict=True)]
    total = sum(w for _, w in pairs)
    mean = sum(x * w for x, w in pairs) / total
    assert m.weighted
    assert m.count.dtype == torch.float64
    assert close(m.count, total, 1e-15)
    assert close(m.mean, mean, 1e-15)
    assert close(m.var(), sum(w * (x - mean) ** 2 for x, w in pairs) / total, 1e-13)
    with pytest.raises(StatisticsError, match="negative count or sum"):
        one(1.0, float("nan"))
