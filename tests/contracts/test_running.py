"""RunningInputNorm: the statistics of a stream, held against exact rationals and formulas in float64."""

from __future__ import annotations

import copy
import io
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_model, save_model
from stable_baselines3.common.running_mean_std import RunningMeanStd
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.utils.checkpoint import checkpoint

import slabnorm as sn
from slabnorm.errors import (
    DtypeError,
    OptionError,
    PatternError,
    ShapeError,
    StatisticsError,
    StatisticsWarning,
)
from tests.inputs.oracle import mean_var, relative

pytestmark = pytest.mark.usefixtures("in_plain_torch")
RNG = np.random.default_rng(0)


def data(*shape: int) -> torch.Tensor:
    """Values around 100 with a spread of 3, in float64."""
    return torch.from_numpy(RNG.normal(100, 3, shape))


def check(norm: sn.RunningInputNorm, seen: torch.Tensor) -> None:
    """Hold the statistics against those of [samples, features], in exact rationals."""
    for feature, values in enumerate(seen.double().numpy().T):
        mean, var = mean_var(values)
        found = norm.moments
        assert found.count[feature] == len(values)
        assert relative(found.mean[feature].item(), mean) <= 1e-15
        assert relative(found.var()[feature].item(), var) <= 1e-13
        assert (found.min[feature], found.max[feature]) == (values.min(), values.max())


def saved(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a: sn.RunningInputNorm, b: sn.RunningInputNorm) -> bool:
    """Whether two norms hold the same, bit by bit."""
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_nothing_drifts_far_from_zero():
    """Where `RunningMeanStd` has lost the variance: its count starts with 1e-4 samples of 0."""
    stream = 1e6 + torch.from_numpy(RNG.normal(0, 1, (1500, 2)))
    norm, theirs = sn.RunningInputNorm("n c -> c"), RunningMeanStd(shape=(2,))
    for batch in stream.split(5):
        norm.update(batch)
        theirs.update(batch.numpy())
    check(norm, stream)
    mean, var = (np.array([float(mean_var(column)[i]) for column in stream.numpy().T]) for i in (0, 1))
    prior = 1e-4 / (len(stream) + 1e-4)  # their weight of a sample of mean 0 and variance 1
    np.testing.assert_allclose(theirs.var, prior + (1 - prior) * (var + prior * mean**2), rtol=1e-6)
    assert (theirs.var > 10_000 * var).all()


def test_outputs_are_the_formula_and_the_batch_plays_no_part():
    norm = sn.RunningInputNorm("n c -> c", clip=1.5)
    first, second = data(7, 3), data(5, 3)
    norm.update(first)
    norm.update(second)
    seen = torch.cat([first, second])
    want = ((second - seen.mean(0)) / (seen.var(0, correction=0) + 1e-8).sqrt()).clamp(-1.5, 1.5)
    for mode in (True, False):
        torch.testing.assert_close(norm.train(mode)(second), want, rtol=1e-12, atol=1e-12)
        assert torch.equal(norm(second[:1]), norm(second)[:1])
    assert norm.samples == 12  # forward counts nothing
    inside = want.abs() < 1.5
    torch.testing.assert_close(norm.inverse(norm(second))[inside], second[inside], rtol=1e-12, atol=1e-9)


def test_dtypes():
    norm = sn.RunningInputNorm("n h w c -> c", c=2)
    pixels = torch.from_numpy(RNG.integers(0, 256, (3, 4, 5, 2), np.uint8))
    assert norm.update(pixels) == 3
    check(norm, pixels.reshape(-1, 2))
    assert norm(pixels).dtype == torch.float32
    assert norm(pixels.half()).dtype == torch.float16
    before = norm.moments.mean
    norm.half()
    assert norm(pixels).dtype == torch.float16
    assert norm.shift.dtype == torch.float64
    assert torch.equal(norm.moments.mean, before)
    with pytest.raises(DtypeError, match="dense tensor of real numbers"):
        norm.update(pixels + 1j)


@pytest.mark.parametrize(
    ("pattern", "sizes", "shapes", "rows"),
    [
        ("n c -> c", {}, [(4, 3)], lambda x: x),
        ("n c -> c", {"c": 3}, [(4, 3), (1, 3)], lambda x: x),
        ("n t c -> c", {"c": 2}, [(4, 5, 2), (2, 7, 2)], lambda x: x.flatten(0, 1)),  # rollouts of any length
        ("n (g c) -> g", {"g": 2}, [(4, 6)], lambda x: x.reshape(4, 2, 3).transpose(1, 2).flatten(0, 1)),
        ("n c ... -> c", {"c": 2}, [(4, 2), (3, 2, 5)], lambda x: x.movedim(1, -1).reshape(-1, 2)),
        ("n c d -> d c", {}, [(4, 2, 3)], lambda x: x.transpose(1, 2).flatten(1)),
        ("n ->", {}, [(4,), (9,)], lambda x: x[:, None]),
    ],
)
def test_patterns(pattern, sizes, shapes, rows):
    norm = sn.RunningInputNorm(pattern, **sizes)
    batches = [data(*shape) for shape in shapes]
    for batch in batches:
        norm.update(batch)
    seen = torch.cat([rows(batch) for batch in batches])
    found = norm.moments
    torch.testing.assert_close(found.mean.flatten(), seen.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.var().flatten(), seen.var(0, correction=0), rtol=1e-12, atol=0)
    want = (rows(batches[-1]) - seen.mean(0)) / (seen.var(0, correction=0) + 1e-8).sqrt()
    torch.testing.assert_close(rows(norm(batches[-1])), want, rtol=1e-11, atol=1e-11)
    with pytest.raises(ShapeError):
        norm.update(data(4, 5, 6, 7, 8) if "..." not in pattern else data(4, 3))


@pytest.mark.parametrize(
    ("pattern", "options", "error"),
    [
        ("n c -> n c", {}, PatternError),
        ("(n m) c -> c", {"m": 2}, PatternError),
        ("n c -> c", {"k": 2}, PatternError),
        ("n c -> c", {"clip": 0}, OptionError),
        ("n c -> c", {"eps": -1.0}, OptionError),
        ("n c -> c", {"automatic": 1}, OptionError),
        ("n c -> c", {"window": 0}, OptionError),
        ("n c -> c", {"half_life": 0.0}, OptionError),
        ("n c -> c", {"window": 3, "half_life": 3.0}, OptionError),
    ],
)
def test_options_that_cannot_be(pattern, options, error):
    with pytest.raises(error):
        sn.RunningInputNorm(pattern, **options)


def test_start():
    """As it is before the first update, with one warning; a feature with one value is divided by 1."""
    norm = sn.RunningInputNorm("n c -> c", clip=10)
    x = torch.tensor([[1.0, 2.0], [3.0, 400.0]])
    with pytest.warns(StatisticsWarning, match="before its first update"):
        assert norm(x).tolist() == [[1.0, 2.0], [3.0, 10.0]]
    assert norm(x)[0].tolist() == [1.0, 2.0]
    norm.update(torch.tensor([[1.0, 2.0]]))
    assert norm(x).tolist() == [[0.0, 0.0], [2.0, 10.0]]
    norm.update(torch.tensor([[1.0, 2.0 + 1e-6]]))  # a spread far below sqrt(eps)
    assert norm(torch.tensor([[1.0, 2.0 + 1e-3]], dtype=torch.float64))[0, 1] == pytest.approx(
        9.995, abs=1e-3
    )
    with pytest.raises(StatisticsError, match="no value yet"):
        sn.RunningInputNorm("n c -> c").freeze()


# What is counted, and what is not.


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array, lambda ids: [f"step {i}" for i in ids]])
def test_replayed_samples_count_once(kind):
    norm, x = sn.RunningInputNorm("n c -> c"), data(6, 2)
    assert norm.update(x[:3], once=kind([7, -1, 2**40])) == 3
    assert norm.update(x[[2, 3, 3, 0]], once=kind([2**40, 8, 8, 7])) == 1
    check(norm, x[:4])
    again = sn.RunningInputNorm("n c -> c")
    again.load_state_dict(saved(norm.state_dict()))
    for one in (norm, again):
        assert one.update(x[:4], once=kind([7, -1, 2**40, 8])) == 0
        assert one.update(x, once=kind([7, -1, 2**40, 8, 9, 10])) == 2
        check(one, x)


def test_ids_that_cannot_be():
    norm, x = sn.RunningInputNorm("n c -> c"), data(2, 2)
    for ids in ([1], torch.tensor(3), [1, 2, 3]):
        with pytest.raises(ShapeError, match="one id for each sample"):
            norm.update(x, once=ids)
    for ids in ([0.5, 1], [True, False], [2**64, 1], "ab", 3):
        with pytest.raises(DtypeError, match="once must be"):
            norm.update(x, once=ids)
    assert norm.samples == 0


def test_a_name_of_a_file_that_is_no_text_is_an_id():
    norm, x = sn.RunningInputNorm("n c -> c"), data(2, 2)
    assert norm.update(x, once=["episode", b"\xff".decode(errors="surrogateescape")]) == 2
    assert norm.update(x, once=["episode", b"\xff".decode(errors="surrogateescape")]) == 0


def test_a_batch_without_features_is_refused():
    norm = sn.RunningInputNorm("n c -> c")
    with pytest.raises(ShapeError, match="no features"):
        norm.update(torch.empty(3, 0))
    norm.update(data(4, 2))
    assert norm.samples == 4


def test_a_mask_of_samples_says_how_it_fits():
    norm, x = sn.RunningInputNorm("n c -> c"), data(3, 2)
    which = torch.tensor([True, False, True])
    with pytest.raises(ShapeError, match=r"as in mask\[:, None\]"):
        norm.update(x, mask=which)
    assert norm.update(x, mask=which[:, None]) == 2
    check(norm, x[which])


def test_eval_mode_is_closed():
    norm, x = sn.RunningInputNorm("n c -> c", automatic=True), data(4, 2)
    norm.update(x)
    before = norm.state_dict()
    norm.eval()
    norm(data(4, 2))
    with pytest.raises(StatisticsError, match="eval mode"):
        norm.update(x)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


def test_automatic_counts_first_and_then_normalises_once():
    norm, x = sn.RunningInputNorm("n c -> c", automatic=True), data(6, 2).requires_grad_()
    y = checkpoint(lambda x: norm(x).square(), x, use_reentrant=False)
    seen = x.detach()
    want = ((seen - seen.mean(0)) / (seen.var(0, correction=0) + 1e-8).sqrt()).square()
    torch.testing.assert_close(y.detach(), want, rtol=1e-11, atol=1e-11)
    y.sum().backward()  # which computes the forward again
    assert norm.samples == 6
    scale = (seen.var(0, correction=0) + 1e-8).sqrt()
    torch.testing.assert_close(x.grad, 2 * (seen - seen.mean(0)) / scale**2, rtol=1e-10, atol=1e-10)


def test_two_forwards_before_a_backward():
    norm, x = sn.RunningInputNorm("n c -> c", automatic=True), data(6, 2).requires_grad_()
    first, scale = norm(x), norm.scale
    norm(data(5, 2))
    first.sum().backward()
    torch.testing.assert_close(x.grad, (1 / scale).expand(6, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_a_batch_that_is_not_finite_changes_nothing(bad):
    norm, x = sn.RunningInputNorm("n c -> c"), data(4, 2)
    norm.update(x)
    before = norm.moments
    broken = data(3, 2)
    broken[1, 0] = bad
    with pytest.warns(StatisticsWarning, match="left out of the statistics"):
        assert norm.update(broken, once=[1, 2, 3]) == 0
    assert norm.update(broken) == 0  # without a further warning
    assert norm.skipped == 2
    assert torch.equal(norm.moments.mean, before.mean)
    assert norm.samples == 4
    mended = broken.nan_to_num(0, 0, 0).clamp(-1e3, 1e3)
    assert norm.update(mended, once=[1, 2, 3]) == 3  # its ids were not kept
    check(norm, torch.cat([x, mended]))


def test_padding_is_left_out():
    norm, x = sn.RunningInputNorm("n t c -> c"), data(4, 5, 2)
    lengths = torch.tensor([5, 2, 0, 3])
    mask = torch.arange(5) < lengths[:, None]
    x[~mask] = float("nan")
    assert norm.update(x, mask=mask[:, :, None]) == 3  # one sample is nothing but padding
    check(norm, x[mask])
    assert norm.update(x, mask=mask[:, :, None], once=["a", "b", "c", "a"]) == 2  # neither "c" nor "a" again
    check(norm, torch.cat([x[mask], x[:2][mask[:2]]]))
    # One step for all samples alike.
    norm.update(data(3, 5, 2), mask=torch.tensor([True, False, False, False, False])[:, None])
    assert norm.moments.count.tolist() == [10 + 7 + 3] * 2


# Forgetting.


def test_a_window_is_exact():
    norm = sn.RunningInputNorm("n c -> c", window=3)
    batches = [1e6 + data(size, 2) for size in (4, 1, 7, 2, 3, 5, 1)]
    for number, batch in enumerate(batches, 1):
        norm.update(batch)
        held = torch.cat(batches[max(0, number - 3) : number])
        check(norm, held)
        assert norm.samples == len(held)


def test_a_half_life_is_a_weighted_mean():
    norm = sn.RunningInputNorm("n c -> c", half_life=2.0)
    batches = [data(size, 2) for size in (4, 1, 7, 2, 3)]
    for batch in batches:
        norm.update(batch)
    ages = [len(batches) - 1 - number for number, batch in enumerate(batches) for _ in batch]
    weight = (0.5 ** (torch.tensor(ages, dtype=torch.float64) / 2))[:, None]
    x = torch.cat(batches)
    mean = (weight * x).sum(0) / weight.sum()
    var = (weight * (x - mean) ** 2).sum(0) / weight.sum()
    found = norm.moments
    torch.testing.assert_close(found.count, weight.sum().expand(2), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.mean, mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(found.var(), var, rtol=1e-12, atol=0)


# To files and back.

KINDS = {"all": {}, "window": {"window": 3}, "half-life": {"half_life": 2.5}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_interrupted_goes_on_with_the_same_bits(kind):
    batches = [data(3, 2) for _ in range(8)]
    whole, first = (sn.RunningInputNorm("n c -> c", clip=5, **KINDS[kind]) for _ in range(2))
    second = sn.RunningInputNorm("n c -> c", clip=9, **KINDS[kind])  # its sizes are not known yet
    for number, batch in enumerate(batches):
        whole.update(batch, once=[number, number + 100, number + 200])
    for number, batch in enumerate(batches[:5]):
        first.update(batch, once=[number, number + 100, number + 200])
    state = first.state_dict()
    kept = {key: value.clone() for key, value in state.items()}
    first.update(data(3, 2))
    assert all(torch.equal(value, state[key]) for key, value in kept.items())  # a snapshot
    second.load_state_dict(saved(state))
    for number, batch in enumerate(batches[5:], 5):
        second.update(batch, once=[number, number + 100, number + 200])
    assert same(whole, second)
    assert torch.equal(whole(batches[0]), second(batches[0]))
    assert same(whole, copy.deepcopy(whole))
    assert same(whole, pickle.loads(pickle.dumps(whole)))


def test_in_a_model_by_safetensors(tmp_path):
    def model() -> nn.Module:
        return nn.Sequential(sn.RunningInputNorm("n c -> c", clip=10), nn.Linear(3, 2))

    policy, other, x = model(), model(), data(5, 3).float()
    policy[0].update(x, once=list("abcde"))
    save_model(policy, tmp_path / "policy.safetensors")
    missing, unexpected = load_model(other, tmp_path / "policy.safetensors")
    assert not missing
    assert not unexpected
    assert torch.equal(other.eval()(x), policy.eval()(x))
    assert same(other[0], policy[0])


def test_a_norm_that_parts_of_a_model_share(tmp_path):
    """Safetensors stores memory that two entries share under one of their names."""
    norm, x = sn.RunningInputNorm("n c -> c", c=2), data(4, 2)
    norm.update(x, once=[1, 2, 3, 4])
    both = nn.ModuleDict({"actor": nn.Sequential(norm, nn.Linear(2, 1)), "critic": nn.Sequential(norm)})
    save_model(both, str(tmp_path / "both.safetensors"))
    again = sn.RunningInputNorm("n c -> c")
    loaded = nn.ModuleDict({"actor": nn.Sequential(again, nn.Linear(2, 1)), "critic": nn.Sequential(again)})
    load_model(loaded, str(tmp_path / "both.safetensors"))
    check(again, x)
    assert again.update(x, once=[1, 2, 3, 4]) == 0


def test_by_distributed_checkpoint():
    model, x = nn.Sequential(sn.RunningInputNorm("n c -> c"), nn.Linear(3, 2)), data(5, 3).float()
    model[0].update(x, once=[1, 2, 3, 4, 5])
    other = copy.deepcopy(model)
    other[0].update(x + 1)
    set_model_state_dict(other, get_model_state_dict(model))
    assert same(other[0], model[0])


@pytest.mark.parametrize("sizes", [{}, {"c": 3}])
def test_made_on_meta_and_loaded_later(sizes):
    norm, x = sn.RunningInputNorm("n c -> c"), data(5, 3)
    norm.update(x)
    with torch.device("meta"):
        other = sn.RunningInputNorm("n c -> c", **sizes)
    other.to_empty(device="cpu").load_state_dict(norm.state_dict())
    assert torch.equal(other(x), norm(x))
    other.to("meta").to_empty(device="cpu")
    assert torch.equal(other(x), norm(x))


def test_state_that_cannot_be():
    norm = sn.RunningInputNorm("n c -> c")
    norm.update(data(4, 3))
    state = norm.state_dict()

    def refused(
        error: type[Exception], match: str, to: sn.RunningInputNorm, changes: dict | None = None
    ) -> None:
        before = to.state_dict()
        with pytest.raises(error, match=match):
            to.load_state_dict({**state, **(changes or {})})
        assert all(torch.equal(value, before[key]) for key, value in to.state_dict().items())

    refused(StatisticsError, "another kind of stream", sn.RunningInputNorm("n k -> k"))
    refused(StatisticsError, "another kind of stream", sn.RunningInputNorm("n c -> c", window=2))
    refused(ShapeError, "size 3", sn.RunningInputNorm("n c -> c", c=4))
    fresh = sn.RunningInputNorm("n c -> c")
    refused(StatisticsError, "not finite", fresh, {"moments.mean": torch.full((1, 3), torch.nan).double()})
    refused(StatisticsError, "negative", fresh, {"moments.m2": -torch.ones(1, 3).double()})
    refused(StatisticsError, "were cast", fresh, {"moments.mean": state["moments.mean"].half()})
    refused(StatisticsError, "not all statistics", fresh, {"moments.m2": torch.ones(1, 2).double()})
    refused(
        StatisticsError, "_extra_state is damaged", fresh, {"_extra_state": torch.zeros(3, dtype=torch.uint8)}
    )
    refused(StatisticsError, "ascending", fresh, {"seen": torch.tensor([2, 1])})
    with pytest.raises(StatisticsError, match="has no seen, the ids"):  # replayed samples would count twice
        fresh.load_state_dict({key: value for key, value in state.items() if key != "seen"})
    assert fresh.samples == 0
    with pytest.raises(RuntimeError, match=r"Missing key.*_extra_state"):
        fresh.load_state_dict({})
    fresh.load_state_dict(sn.RunningInputNorm("n c -> c").state_dict())  # of a norm that has seen nothing
    assert fresh.samples == 0


@pytest.mark.parametrize("kind", [*KINDS, "mask"])
def test_freeze_gives_an_artifact(kind, tmp_path):
    norm = sn.RunningInputNorm("n c -> c", clip=2, **KINDS.get(kind, {}))
    batches = [data(6, 3).float() for _ in range(5)]
    for batch in batches:
        norm.update(batch, mask=batch > 99 if kind == "mask" else None)
    frozen = norm.freeze()
    with pytest.raises(OptionError, match=r"its freeze\(\) returns an InputNorm"):
        sn.save(norm, tmp_path / "stream.safetensors")
    sn.save(frozen, tmp_path / "stream.safetensors")
    loaded = sn.load(tmp_path / "stream.safetensors")
    for x in (batches[0], batches[0].double()):
        assert torch.equal(norm(x), frozen(x))
        assert torch.equal(norm(x), loaded(x))
    assert loaded.split == "stream"
    assert loaded.dtype == "float32"
    assert loaded.samples == (18 if kind == "window" else sum((b > 99).any(1).sum() for b in batches)
                              if kind == "mask" else 30)  # fmt: skip
    norm.update(batches[0] + 50, mask=None)
    assert torch.equal(loaded(batches[1]), frozen(batches[1]))
    if kind == "mask":
        assert loaded.nan_count.tolist() == [loaded.samples - count for count in loaded.count.tolist()]


def test_freeze_counts_what_is_missing_only_where_all_samples_have_one_size():
    norm = sn.RunningInputNorm("n ... c -> c", c=2)
    norm.update(data(2, 3, 2))
    norm.update(data(4, 2))
    frozen = norm.freeze()
    assert (frozen.nan_count.tolist(), frozen.record.nan) == ([0, 0], "raise")
    assert frozen.count.tolist() == [10, 10]


def test_within_torch_func_nothing_is_counted():
    """Statistics of tensors that a transformation wraps could not be saved after it."""
    norm, x = sn.RunningInputNorm("n c -> c"), data(4, 2)
    norm.update(x)
    with pytest.raises(OptionError, match="cannot record an update"):
        torch.func.grad(lambda x: (norm.update(x), norm(x).sum())[1])(x)
    assert saved(norm.state_dict())["samples"].tolist() == [4]
    gradient = torch.func.grad(lambda x: norm(x).sum())(x)
    torch.testing.assert_close(gradient, (1 / (x.var(0, correction=0) + 1e-8).sqrt()).expand(4, 2))
    counting = torch.compile(lambda x: (norm.update(x), norm(x))[1], backend="eager")  # outside its graphs
    seen = torch.cat([x, x + 1])
    want = (x + 1 - seen.mean(0)) / (seen.var(0, correction=0) + 1e-8).sqrt()
    torch.testing.assert_close(counting(x + 1), want, rtol=1e-11, atol=1e-11)
    assert norm.samples == 8


def test_compile_and_export_in_eval_mode():
    norm, x = sn.RunningInputNorm("n c -> c", clip=1, c=3, automatic=True), data(4, 3).float()
    norm.update(x)
    norm.eval()
    want = norm(x)
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), want)
    exported = torch.export.export(norm, (x,)).module()
    assert torch.equal(exported(x), want)
    norm.train().update(x + 30)
    assert not torch.equal(norm.eval()(x), want)
    assert torch.equal(compiled(x), norm(x))
    with pytest.raises(Exception, match="cannot record a forward that updates statistics"):
        torch.export.export(norm.train(), (x,), strict=False)


def test_in_inference_mode():
    norm, x = sn.RunningInputNorm("n c -> c"), data(4, 2)
    with torch.inference_mode():
        norm.update(x.clone())
    y = norm(x.requires_grad_())
    y.sum().backward()
    torch.testing.assert_close(x.grad, (1 / norm.scale).expand(4, 2))
    check(norm, x.detach())


def test_the_doctor_takes_it_for_what_normalises_inputs():
    pixels = torch.from_numpy(RNG.integers(0, 256, (64, 8))).float()
    norm, model = sn.RunningInputNorm("n c -> c"), nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    norm.update(pixels)
    assert "401" in str(sn.check(model, pixels))
    assert "401" not in str(sn.check(nn.Sequential(norm, *model), pixels))


def test_exact_count_is_kept():
    """Beyond 2^53 float64 would lose single samples."""
    norm = sn.RunningInputNorm("n c -> c", c=1)
    norm.update(torch.tensor([[1.0]]))
    state = norm.state_dict()
    state["moments.count"] = torch.tensor([[2**53]])
    norm.load_state_dict(state)
    norm.update(torch.tensor([[1.0]]))
    assert norm.moments.count.item() == 2**53 + 1
    assert Fraction(norm.moments.mean.item()) == 1


@pytest.mark.parametrize("ids", [{1, 2}, {"a": 1, "b": 2}, "ab"])
def test_ids_have_an_order(ids):
    norm = sn.RunningInputNorm("n c -> c", c=1)
    with pytest.raises(DtypeError, match="once must be ids, one for each sample"):
        norm.update(torch.tensor([[1.0], [2.0]]), once=ids)
    assert norm.samples == 0
