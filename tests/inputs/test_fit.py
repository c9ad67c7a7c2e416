"""fit: exact statistics whatever the chunking, the default pattern, and what it says in errors."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset

import slabnorm as sn
from slabnorm.errors import DataError, DataWarning, OptionError, PatternError, ShapeError
from slabnorm.functional import moments
from slabnorm.inputs import FixedScale, ZScore, fit
from slabnorm.inputs.quantile_sample import QuantileSample
from slabnorm.inputs.shard_statistics import Tally, TallyTree
from slabnorm.inputs.sketch import Sketch
from tests.inputs.chunking import small
from tests.inputs.oracle import mean_var, relative

RNG = np.random.default_rng(7)

# kappa = sqrt(1 + mean^2 / var) up to 1e12, as FAULTS.md gates it.
HARD = {
    "normal": RNG.standard_normal(3000),
    "100 +- 0.01": 100 + 0.01 * RNG.standard_normal(3000),
    "1e6 +- 1": 1e6 + RNG.standard_normal(3000),
    "1e12 +- 1": 1e12 + RNG.standard_normal(3000),
    "sorted": np.sort(1e9 + RNG.standard_normal(3000)),
    "cauchy": RNG.standard_cauchy(3000),
    "alternating": np.tile([1e4, -1e4], 1500) + RNG.standard_normal(3000),
    "times 1e30": 1e30 * RNG.standard_normal(3000),
    "one outlier": np.append(RNG.standard_normal(2999), 1e12),
    "drifting": 1e12 + np.arange(3000) + RNG.standard_normal(3000),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("chunk", [13, 64, 1000, 1 << 20])
def test_variance_is_exact_for_every_chunking(name, chunk):
    data = HARD[name]
    mean, var = mean_var(data)
    found = fit(small(data, chunk), split="train").moments
    assert relative(found.var().item(), var) <= 1e-13
    assert relative(found.mean.item(), mean) <= 1e-13 * max(1.0, abs(float(var) ** 0.5 / float(mean)))
    assert (found.min.item(), found.max.item(), found.count.item()) == (data.min(), data.max(), 3000)


@pytest.mark.parametrize("chunk", [5, 64, 1 << 20])
def test_integers_upon_1e15_have_variance_exactly_4(chunk):
    data = np.tile(1e15 + np.arange(7), 300).reshape(-1, 1)
    assert fit(small(data, chunk), split="train").moments.var().tolist() == [4.0]
    batches = (data[start : start + 64] for start in range(0, len(data), 64))
    assert fit(small(batches, chunk), split="train").moments.var().tolist() == [4.0]


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 3000), max_size=12), seed=st.integers(0, 2**32 - 1))
def test_any_chunks_merged_in_any_order(cuts, seed):
    data = HARD["1e12 +- 1"]
    edges = [0, *sorted(cuts), len(data)]
    pieces = [moments(torch.from_numpy(data[a:b]), "n ->") for a, b in pairwise(edges)]
    np.random.default_rng(seed).shuffle(pieces)
    tree = TallyTree()
    for number, piece in enumerate(pieces):
        tree.add(number, tally_of(piece))
    _, var = mean_var(data)
    assert relative(tree.total().moments.var().item(), var) <= 1e-13
    assert tree.total().moments.count.item() == 3000


def tally_of(moments, name=""):
    none = torch.zeros_like(moments.count)
    counted = int(moments.count.max())
    return Tally(counted, moments, none, none, Sketch(), QuantileSample.empty(1, 0), skipped=((name, ""),))


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(list(range(7))))
def test_the_tree_is_decided_by_shard_numbers(order):
    class Named(Tally):
        def merge(self, other):
            name = f"({self.skipped[0][0]}{other.skipped[0][0]})"
            return Named(**vars(Tally.merge(self, other)) | {"skipped": ((name, ""),)})

    tree = TallyTree()
    for number in order:
        leaf = tally_of(moments(torch.ones(1, 1), "n c -> c"), "abcdefg"[number])
        tree.add(number, Named(**vars(leaf)))
    assert tree.total().skipped[0][0] == "(((ab)(cd))((ef)g))"
    assert TallyTree().total() is None


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 500), max_size=20))
def test_the_same_samples_give_the_same_bits_in_any_batches(cuts):
    data = np.random.default_rng(0).standard_normal((500, 3)) + 1e8
    whole = fit(data, split="train").state_dict()
    edges = [0, *sorted(cuts), len(data)]
    batches = [data[a:b] for a, b in pairwise(edges)]
    chunked = fit(small(data, 100), split="train").state_dict()
    pieces = fit(small(iter(batches), 100), split="train").state_dict()
    assert all(torch.equal(chunked[key], pieces[key]) for key in chunked)
    assert whole["moments_count"].tolist() == [500] * 3


@pytest.mark.filterwarnings("ignore:.*data of bool:slabnorm.errors.DataWarning")
@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64"]
)
def test_integers_are_exact(dtype):
    info = np.iinfo(dtype) if dtype != "bool" else None
    low, high = (0, 1) if info is None else (max(info.min, -(2**53) + 1), min(info.max, 2**53 - 1))
    data = np.array([[low, high], [high, low], [high, high], [low, low + 1]]).astype(dtype)
    norm = fit(data, split="train")
    for feature in range(2):
        mean, var = mean_var(data[:, feature])
        assert abs(norm.moments.mean[feature].item() - mean) <= 1e-16 * max(abs(low), high)
        assert relative(norm.moments.var()[feature].item(), var) <= 1e-15
    assert norm.moments.max.tolist() == [high, high]
    assert norm.dtype == dtype


@pytest.mark.parametrize("value", [2**53, 2**53 + 1, -(2**53), 2**63 - 1, -(2**63)])
def test_integers_that_float64_would_round_are_refused(value):
    with pytest.raises(DataError, match=r"row 1, c=1.*1 in rows 0\.\.2"):
        fit(np.array([[1, 2], [3, value], [5, 6]], dtype=np.int64), split="train")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_are_taken_as_they_are_rounded(dtype):
    data = (3 + torch.randn(500, generator=torch.Generator().manual_seed(0))).to(dtype)
    _, var = mean_var(data.double().numpy())
    norm = fit(data, split="train")
    assert relative(norm.moments.var().item(), var) <= 1e-14
    assert norm.dtype == str(dtype).removeprefix("torch.")


def test_patterns_over_images_and_split_axes():
    data = RNG.standard_normal((6, 4, 5, 7))
    for pattern, axes, sizes in [
        ("n c h w -> c", (0, 2, 3), {}),
        ("n c h w -> h c", (0, 3), {}),
        ("n c ... -> c", (0, 2, 3), {}),
        ("n ... -> ...", (0,), {}),
        ("n ... ->", (0, 1, 2, 3), {}),
    ]:
        found = fit(data, "zscore", pattern, split="train", **sizes).moments.mean.numpy()
        expected = data.mean(axes)
        if pattern.endswith("h c"):
            expected = expected.T
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    found = fit(data, "zscore", "n (g c) h w -> g", split="train", g=2).moments.mean.numpy()
    np.testing.assert_allclose(found, data.reshape(6, 2, 2, 5, 7).mean((0, 2, 3, 4)), rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "pattern"),
    [((9,), "n ->"), ((9, 3), "n c -> c"), ((9, 3, 6, 6), "n c h w -> c"), ((9, 64, 8, 8), "n c h w -> c")],
)
def test_the_default_pattern(shape, pattern):
    assert fit(RNG.standard_normal(shape), split="train").pattern.text == pattern


@pytest.mark.parametrize(
    "shape", [(9, 5, 3), (9, 32, 32, 3), (9, 3, 3, 3), (9, 2, 5, 5, 5), (9, 1, 1, 1, 1, 1)]
)
def test_shapes_that_can_be_read_in_several_ways_want_a_pattern(shape):
    with pytest.raises(OptionError, match="pattern="):
        fit(np.zeros(shape), split="train")
    assert fit(np.zeros(shape), FixedScale(0, 1), split="train").scale.shape == ()


@pytest.mark.parametrize(
    ("pattern", "error", "words"),
    [
        ("n c -> n", PatternError, "keeps the sample axis 'n'"),
        ("n c -> n c", PatternError, "sample axis"),
        ("... -> ...", PatternError, "sample axis"),
        ("(b t) c -> c", PatternError, "splits the sample axis"),
        ("n c h w -> c", ShapeError, "names 4 axes"),
        ("n (g c) -> g", PatternError, "sizes but one"),
        ("n c", PatternError, "arrow"),
    ],
)
def test_patterns_that_cannot_be_fitted(pattern, error, words):
    with pytest.raises(error, match=words):
        fit(np.zeros((6, 4)), "zscore", pattern, split="train")


def test_the_sample_axis_may_hide_in_dots_but_must_be_there():
    data = RNG.standard_normal((6, 4))
    assert fit(data, "zscore", "... c -> c", split="train").scale.shape == (4,)
    with pytest.raises(PatternError, match="stands for no axis"):
        fit(data[:, 0], "zscore", "... c -> c", split="train")


def test_sizes_that_do_not_fit():
    with pytest.raises(ShapeError, match="has size 4, which cannot be split with g=3"):
        fit(np.zeros((6, 4)), "zscore", "n (g c) -> g", split="train", g=3)
    with pytest.raises(PatternError, match="k=5"):
        fit(np.zeros((6, 4)), "zscore", "n c -> c", split="train", k=5)


def test_one_sample_is_constant():
    with pytest.warns(DataWarning, match="3 of 3 features are constant and get scale 1: features 0, 1, 2"):
        norm = fit(np.array([[1.0, 2.0, 3.0]]), split="train")
    assert norm(torch.tensor([[2.0, 2.0, 2.0]])).tolist() == [[1.0, 0.0, -1.0]]


def test_the_options():
    data = np.zeros((3, 2))
    with pytest.raises(OptionError, match='"raise" or "omit"'):
        fit(data, split="train", nan="ignore")
    with pytest.raises(OptionError, match="leak must be True or False"):
        fit(data, split="train", leak="yes")
    with pytest.raises(OptionError, match="did you mean 'zscore'"):
        fit(data, "z-score", split="train")
    with pytest.raises(OptionError, match=r"make an object of it: slabnorm.ZScore\(\)"):
        fit(data, ZScore, split="train")


def test_the_modes_of_the_caller_do_not_stick():
    data = RNG.standard_normal((9, 3))
    x = torch.from_numpy(data).requires_grad_()
    with torch.inference_mode():
        norm = fit(data, split="train")
    norm(x).sum().backward()
    assert x.grad is not None
    torch.set_default_device("meta")
    try:
        there = fit(data, split="train")
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(there.buffers(), norm.buffers(), strict=True))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux for its peak memory")
def test_memory_is_bounded(tmp_path):
    # A file of 64 MB: what the process adds are blocks of 8 MB, two for every worker.
    path = tmp_path / "big.npy"
    np.save(path, np.broadcast_to(np.arange(8.0), (2**20, 8)))
    script = f"""
import pathlib, torch
from slabnorm.inputs import FixedScale, fit
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
fit(torch.arange(800.0).reshape(100, 8).double(), split="train")
before = peak()
norm = fit({str(path)!r}, FixedScale(0, 7), "n c -> c", split="train", workers=2)
assert norm.moments.max.tolist() == list(range(8)) and norm.samples == 2**20
grown = peak() - before
assert grown < 48_000, grown
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_options_of_the_wrong_kind():
    x = np.arange(12.0).reshape(6, 2)
    for options, words in (
        ({"skip_bad": "no"}, "skip_bad must be True or False"), ({"ledger": 7}, "ledger must be a path"),
        ({"memory": "2GB"}, "memory must be an integer"), ({"workers": 1.5}, "workers must be an integer"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=words):
            fit(x, split="train", **options)
    with pytest.raises(OptionError, match="memory must be an integer"):
        sn.audit(fit(x, split="train"), x, memory="2GB")
    with pytest.raises(DataError, match="float8"):
        fit(torch.zeros(4, 2, dtype=torch.float8_e4m3fn), split="train")


class Dies(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, item):
        if multiprocessing.parent_process() is not None:
            os._exit(1)
        return np.zeros(2)


def test_a_worker_process_that_dies():
    with pytest.raises(DataError, match="A worker process died"):
        fit(Dies(), split="train", workers=2)


def test_pooled_axes_that_are_split_may_differ_in_size(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate((8, 12)):
        pixels = np.arange(size * size * 3).reshape(size, size, 3) % 251
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    norm = fit(folder, "zscore", "n c (a h) w -> c", split="train", a=2)
    assert torch.equal(norm.moments.mean, fit(folder, split="train").moments.mean)
