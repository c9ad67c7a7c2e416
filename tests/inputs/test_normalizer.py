"""InputNorm: the laws it keeps for every scheme, pattern and dtype."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, vmap

from slabnorm.errors import DtypeError, ShapeError, StatisticsError
from slabnorm.inputs import FixedScale, InputNorm, MinMax, ZScore, fit
from tests.inputs.oracle import zscore

RNG = np.random.default_rng(11)
IMAGES = (RNG.standard_normal((10, 4, 5, 6)) * [[[[3]], [[1]], [[0.1]], [[20]]]] + 7).astype(np.float32)

# name: scheme, pattern, sizes, the axes that its statistics pool over once x has this shape
CASES = {
    "zscore": (ZScore(), "n c h w -> c", {}),
    "minmax": (MinMax((-1, 1)), "n c h w -> c", {}),
    "fixed": (FixedScale(-100, 120), "n ... ->", {}),
    "any rank": (ZScore(), "n c ... -> c", {}),
    "per pixel": (ZScore(), "n ... -> ...", {}),
    "reordered": (MinMax(), "n c h w -> w c", {}),
    "groups": (ZScore(), "n (g c) h w -> g", {"g": 2}),
    "within groups": (ZScore(), "n (g c) h w -> c", {"g": 2}),
    "joined": (ZScore(), "n (g c) h w -> (h c)", {"g": 2}),
    "scalar": (ZScore(), "n c h w ->", {}),
    "last axis": (ZScore(), "... w -> w", {}),
}


def fitted(case: str, data: np.ndarray = IMAGES) -> InputNorm:
    scheme, pattern, sizes = CASES[case]
    return fit(data, scheme, pattern, split="train", **sizes)


@pytest.mark.parametrize("case", CASES)
def test_the_formula(case):
    scheme, _, sizes = CASES[case]
    norm = fitted(case)
    # By einsum-like hand: open the group axis, pool over what the right side does not name.
    x = IMAGES.astype(np.float64)
    shape, axes = {
        "groups": ((10, 2, 2, 5, 6), (0, 2, 3, 4)),
        "within groups": ((10, 2, 2, 5, 6), (0, 1, 3, 4)),
        "joined": ((10, 2, 2, 5, 6), (0, 1, 4)),
        "per pixel": (x.shape, (0,)),
        "reordered": (x.shape, (0, 2)),
        "last axis": (x.shape, (0, 1, 2)),
        "scalar": (x.shape, (0, 1, 2, 3)),
        "fixed": (x.shape, (0, 1, 2, 3)),
    }.get(case, (x.shape, (0, 2, 3)))
    opened = x.reshape(shape)
    if isinstance(scheme, ZScore):
        expected = (opened - opened.mean(axes, keepdims=True)) / opened.std(axes, keepdims=True)
    elif isinstance(scheme, MinMax):
        low, high = opened.min(axes, keepdims=True), opened.max(axes, keepdims=True)
        expected = (opened - low) / (high - low) * (scheme.out[1] - scheme.out[0]) + scheme.out[0]
    else:
        expected = (opened + 100) / 220
    y = norm(torch.from_numpy(x))
    np.testing.assert_allclose(y.numpy(), expected.reshape(x.shape), rtol=1e-12, atol=1e-12)
    assert sizes == norm.record.sizes


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse(case, dtype):
    norm, x = fitted(case), torch.from_numpy(IMAGES).to(dtype)
    back = norm.inverse(norm(x))
    assert back.dtype == dtype
    unit = torch.finfo(dtype).eps * max(x.abs().max().item(), 100.0)
    assert (back - x).abs().max().item() <= 4 * unit


@pytest.mark.parametrize(
    ("mean", "std"), [(0, 1), (100, 0.01), (1e4, 0.01), (1e6, 1), (-1e6, 1), (0, 1e18), (1e30, 1e30)]
)
def test_float32_accuracy(mean, std):
    x = (mean + std * RNG.standard_normal((4096, 3))).astype(np.float32)
    y = fit(x, split="train")(torch.from_numpy(x)).numpy()
    exact = zscore(x, (0,))
    assert y.dtype == np.float32
    assert np.max(np.abs(y - exact) / np.maximum(1, np.abs(exact))) <= 1e-6


def test_float32_comes_back_to_the_bit():
    x = torch.from_numpy((1e6 + RNG.standard_normal((4096, 3))).astype(np.float32))
    norm = fit(x, split="train")
    assert torch.equal(norm.inverse(norm(x)), x)


@pytest.mark.parametrize("scale", [1e-38, 1e-42, 1e37])
def test_float32_at_the_ends_of_its_range(scale):
    x = torch.from_numpy((RNG.standard_normal((500, 2)) * scale).astype(np.float32))
    norm = fit(x, split="train")
    exact = zscore(x.numpy(), (0,))
    assert np.max(np.abs(norm(x).numpy() - exact) / np.maximum(1, np.abs(exact))) <= 1e-6


def test_float64_accuracy_where_float64_cannot_hold_the_mean():
    x = 1e15 + RNG.integers(0, 7, (4096, 1)).astype(np.float64)
    y = fit(x, split="train")(torch.from_numpy(x)).numpy()
    assert np.max(np.abs(y - zscore(x, (0,)))) <= 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype):
    x = torch.from_numpy(IMAGES).to(dtype)
    norm = fit(x, "zscore", "n c h w -> c", split="train")
    y, exact = norm(x), norm(x.double())
    assert y.dtype == dtype
    # One ulp of the rounded exact result, at either side of a tie.
    rounded = exact.to(dtype)
    assert ((y.double() - rounded.double()).abs() <= torch.finfo(dtype).eps * rounded.double().abs()).all()
    assert norm.inverse(y).dtype == dtype


@pytest.mark.filterwarnings("ignore:.*data of bool:slabnorm.errors.DataWarning")
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64]
)
def test_integers_come_out_as_float32(dtype):
    top = 1 if dtype == torch.bool else min(torch.iinfo(dtype).max, 2**40)
    values = torch.tensor([[0, top], [top, 0], [top // 2, top // 3]]).to(dtype)
    norm = fit(values, split="train")
    y = norm(values)
    assert y.dtype == torch.float32
    exact = zscore(values.to(torch.float64).numpy(), (0,))
    assert np.max(np.abs(y.numpy() - exact)) <= 2e-7
    assert torch.equal(norm.inverse(norm(values.double())).round().to(torch.int64), values.to(torch.int64))


@pytest.mark.parametrize("case", CASES)
def test_casts_leave_statistics_alone(case):
    norm, x = fitted(case), torch.from_numpy(IMAGES)
    expected = norm(x)
    for cast in (
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.float(),
        lambda m: m.to(torch.float16),
    ):
        moved = cast(nn.Sequential(copy.deepcopy(norm), nn.Linear(6, 2)))
        assert moved[1].weight.dtype != torch.float64
        assert torch.equal(moved[0](x), expected)
        assert {b.dtype for b in moved[0].buffers()} == {torch.float64, torch.int64}
    assert torch.equal(norm.to("cpu").double()(x), expected)


def test_it_follows_a_device_without_a_cast():
    norm = fitted("zscore").to("meta", torch.float16)
    assert {(b.device.type, b.dtype) for b in norm.buffers()} == {
        ("meta", torch.float64),
        ("meta", torch.int64),
    }
    assert norm(torch.empty(3, 4, 5, 6, device="meta")).shape == (3, 4, 5, 6)
    assert "without values" in repr(norm)
    norm.load_state_dict(fitted("minmax").state_dict(), assign=True)
    assert torch.equal(norm(torch.from_numpy(IMAGES)), fitted("minmax")(torch.from_numpy(IMAGES)))


@pytest.mark.parametrize("case", CASES)
def test_copies(case):
    norm, x = fitted(case), torch.from_numpy(IMAGES)
    file = io.BytesIO()
    torch.save(norm, file)
    file.seek(0)
    for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), norm(x))
        assert repr(twin) == repr(norm)
        assert twin.record == norm.record
        twin.shift.add_(1)
        assert not torch.equal(twin.shift, norm.shift)


@pytest.mark.parametrize(
    "case", ["zscore", "minmax", "fixed", "any rank", "per pixel", "joined", "last axis"]
)
def test_compile_and_export(case):
    torch._dynamo.reset()
    norm, x = fitted(case), torch.from_numpy(IMAGES)
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), norm(x))
    assert torch.equal(compiled(x[:3]), norm(x[:3]))
    exported = torch.export.export(norm, (x,), dynamic_shapes={"x": {0: torch.export.Dim("n")}}).module()
    assert torch.equal(exported(x[:7]), norm(x[:7]))
    back = torch.compile(norm.inverse, fullgraph=True, backend="aot_eager")
    assert torch.equal(back(x), norm.inverse(x))


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    norm = fitted(case)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(norm, (x,), fast_mode=True)
    assert torch.autograd.gradcheck(norm.inverse, (x,), fast_mode=True)
    narrow = torch.randn(2, 4, 5, 6).half().requires_grad_()
    norm(narrow).sum().backward()
    assert narrow.grad.dtype == torch.float16
    assert not list(norm.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # from within torch.func.jvp
def test_functional_transforms():
    norm, x = fitted("any rank"), torch.from_numpy(IMAGES)
    batched = vmap(norm)(torch.stack([x, 2 * x]))
    assert torch.equal(batched[1], norm(2 * x))
    _, tangent = jvp(norm, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, (1 / norm.scale).float().reshape(1, 4, 1, 1).expand_as(x))
    shifted = {name: b + 1 if name == "scale" else b for name, b in norm.named_buffers()}
    assert not torch.equal(functional_call(norm, shifted, (x,)), norm(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.uint8])
def test_the_input_is_left_alone(dtype):
    x = torch.from_numpy(IMAGES).to(dtype)
    before = x.clone()
    norm = fitted("minmax")
    y = norm(x)
    norm.inverse(y)
    assert torch.equal(x, before)
    assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("case", CASES)
def test_memory_formats_and_strides(case):
    norm, x = fitted(case), torch.from_numpy(IMAGES)
    last = x.to(memory_format=torch.channels_last)
    y = norm(last)
    assert torch.equal(y, norm(x))
    assert y.is_contiguous(memory_format=torch.channels_last)
    for strided in (
        x.flip(0),
        x[::2],
        x[:1].expand(10, 4, 5, 6),
        x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ):
        assert torch.equal(norm(strided), norm(strided.contiguous()))


@pytest.mark.parametrize("case", CASES)
def test_an_empty_batch(case):
    x = torch.from_numpy(IMAGES)[:0].requires_grad_()
    y = fitted(case)(x)
    assert y.shape == (0, 4, 5, 6)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_train_and_eval_mode_are_the_same():
    norm, x = fitted("zscore"), torch.from_numpy(IMAGES)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    assert torch.equal(norm.train()(x), norm.eval()(x))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


def test_other_ranks_where_the_pattern_lets_them():
    norm = fitted("any rank")
    for shape in ((3, 4), (3, 4, 9), (3, 4, 1, 2, 3)):
        x = torch.randn(shape, dtype=torch.float64)
        mean, std = (t.reshape(4, *[1] * (len(shape) - 2)) for t in (norm.moments.mean, norm.moments.std()))
        torch.testing.assert_close(norm(x), (x - mean) / std)
    assert fitted("last axis")(torch.randn(6)).shape == (6,)


@pytest.mark.parametrize(
    ("case", "shape", "takes"),
    [
        ("zscore", (10, 3, 5, 6), r"\(any, 4, any, any\)"),
        ("zscore", (4, 5, 6), r"\(any, 4, any, any\)"),
        ("zscore", (10, 5, 6, 4), r"\(any, 4, any, any\)"),
        ("zscore", (), r"\(any, 4, any, any\)"),
        ("any rank", (10,), r"\(any, 4, \.\.\.\)"),
        ("any rank", (10, 5), r"\(any, 4, \.\.\.\)"),
        ("per pixel", (10, 4, 5, 7), r"\(any, 4, 5, 6\)"),
        ("groups", (10, 6, 5, 6), r"\(any, 4, any, any\)"),
        ("last axis", (10, 5), r"\(\.\.\., 6\)"),
        ("last axis", (), r"\(\.\.\., 6\)"),
    ],
)
def test_batches_that_do_not_fit(case, shape, takes):
    norm = fitted(case)
    for call in (norm, norm.inverse):
        with pytest.raises(ShapeError, match=takes) as caught:
            call(torch.zeros(shape))
        assert f"samples of shape {tuple(IMAGES.shape[1:])}" in str(caught.value)
        assert f"A batch of shape {shape}" in str(caught.value)


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 4, 5, 6, dtype=torch.complex64), torch.zeros(2, 4, 5, 6).to_sparse(), IMAGES, None]
)
def test_batches_that_are_no_real_numbers(x):
    with pytest.raises(DtypeError):
        fitted("zscore")(x)


def test_nan_stays_in_its_place():
    x = torch.from_numpy(IMAGES).clone()
    clean = fitted("zscore")(x)
    x[3, 2, 1, 0] = float("nan")
    y = fitted("zscore")(x)
    assert torch.isnan(y).sum() == 1
    assert torch.equal(torch.where(torch.isnan(y), clean, y), clean)


def test_what_a_person_reads():
    data = np.array([[1, 0.5, 3], [3, 0.5, 9], [np.nan, 0.5, 3]])
    with pytest.warns(UserWarning, match="constant"):
        norm = fit(data, "minmax", split="train", nan="omit")
    assert repr(norm) == (
        "InputNorm(MinMax(out=(0.0, 1.0)), 'n c -> c', split='train', samples=3, mean=0.5..5, std=0..2.82843,"
        " constant=1, missing=1)"
    )
    assert norm.scheme == MinMax()
    assert norm.pattern.text == "n c -> c"
    assert norm.split == "train"
    assert norm.samples == 3
    assert norm.dtype == "float64"
    assert norm.count.tolist() == [2, 3, 3]
    assert norm.moments.max.tolist() == [3.0, 0.5, 9.0]
    assert "g=2" in repr(fitted("groups"))


def test_moments_of_another_shape_are_refused():
    norm = fitted("zscore")
    with pytest.raises(ShapeError, match=r"needs \(4,\)"):
        InputNorm(norm.record, fitted("scalar").moments)
    twin = InputNorm(norm.record, norm.moments)
    assert torch.equal(twin.scale, norm.scale)
    twin.load_state_dict(fitted("zscore", IMAGES * 2).state_dict())
    assert torch.equal(norm.moments.mean, fitted("zscore").moments.mean)
    with pytest.raises(StatisticsError):
        InputNorm(norm.record, norm.moments.empty((4,)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_model_takes_integers_and_its_next_layer_what_comes_out(dtype):
    x = torch.from_numpy(RNG.integers(0, 256, (5, 3, 8, 8), dtype=np.uint8))
    norm = fit(x, "zscore", "n c h w -> c", split="train")
    exact = norm(x.double())
    model = nn.Sequential(norm, nn.Conv2d(3, 2, 3)).to(dtype)
    for moved in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        y = moved[0](x)
        assert y.dtype == dtype
        assert (y.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps
        assert moved(x).dtype == dtype
        assert {b.dtype for b in moved[0].buffers()} == {torch.float64, torch.int64}
        assert [moved[0](x.to(t)).dtype for t in (torch.float32, torch.float64)] == [
            torch.float32,
            torch.float64,
        ]
    fresh = nn.Sequential(fit(x // 2, "zscore", "n c h w -> c", split="train"), nn.Conv2d(3, 2, 3)).to(dtype)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    assert model.float()[0](x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
