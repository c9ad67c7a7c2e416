"""Statistics taken elsewhere: run there, they give what InputNorm gives here."""

from __future__ import annotations

import json
import os
import re
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from sklearn.base import clone
from sklearn.datasets import load_digits, load_sample_images, load_wine
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

import slabnorm as sn
from slabnorm.errors import DataError, ExtraError, OptionError, SlabError, StatisticsError
from slabnorm.inputs import exports
from slabnorm.inputs.exports import export

RNG = np.random.default_rng(5)
DIGITS = load_digits().images.astype(np.uint8)  # (1797, 8, 8), 0 to 16
WINE = load_wine().data  # (178, 13), float64
PHOTOS = np.stack(load_sample_images().images)[:, ::7, ::5]  # (2, 61, 128, 3), uint8
FIRST = np.ascontiguousarray(PHOTOS.transpose(0, 3, 1, 2))
FAR = 1e6 + RNG.uniform(-1, 1, (300, 5))
NARROW = sn.MinMax(out=(-1, 1))
BYTES = sn.FixedScale(0, 255, out=(-1, 1))

# data, scheme, pattern, sizes
STUCK = RNG.standard_normal((40, 3)) * [1, 2e-4, 5] + [0, 1.57, 0]  # one joint of a robot hardly moves
CASES: dict[str, tuple[np.ndarray, Any, str, dict[str, int]]] = {
    "digits": (DIGITS, "zscore", "n h w ->", {}),
    "digits per pixel": (DIGITS[:, :4, 2:6], "minmax", "n ... -> ...", {}),
    "wine": (WINE, "zscore", "n c -> c", {}),
    "wine minmax": (WINE.astype(np.float32), NARROW, "n c -> c", {}),
    "photos": (FIRST, "zscore", "n c h w -> c", {}),
    "photos fixed": (FIRST, BYTES, "n ... ->", {}),
    "photos last": (PHOTOS, "minmax", "n h w c -> c", {}),
    "photos any rank": (FIRST.astype(np.float32), sn.ZScore(ddof=1, eps=1e-3), "n c ... -> c", {}),
    "far": (FAR, "zscore", "n c -> c", {}),
    "far float32": (FAR.astype(np.float32), "zscore", "n c -> c", {}),
    "far minmax": (FAR.astype(np.float32), NARROW, "n c -> c", {}),
    "photos otherwise named": (FIRST, NARROW, "n colour h w -> colour", {}),
    "groups": (RNG.standard_normal((9, 6, 7, 4)).astype(np.float16), "zscore", "n (g c) h w -> g", {"g": 2}),
    "reordered": (RNG.integers(-99, 99, (9, 6, 4), np.int16), NARROW, "n h w -> w h", {}),
    "within groups": (RNG.integers(-9, 10**9, (9, 6)), "zscore", "n (g c) -> c", {"g": 3}),
    "bools": (RNG.integers(0, 2, (20, 3)).astype(bool), "zscore", "n c -> c", {}),
    "unsigned": (RNG.integers(0, 2**16, (20, 3), np.uint16), "zscore", "n c -> c", {}),
    "huge": (1e35 * RNG.standard_normal((20, 3)).astype(np.float32), "zscore", "n c -> c", {}),
    "robust": (WINE, sn.Robust(0.1, 0.9, clip=(-1, 0.5)), "n c -> c", {}),
    "quantile": (WINE, sn.QuantileRange(0.1, 0.9, clip=(-0.5, 1)), "n c -> c", {}),
    "kept": (STUCK, sn.MinMax((-1, 1), near_constant="keep"), "n c -> c", {}),
    "floored": (STUCK.astype(np.float32), sn.QuantileRange(near_constant="floor"), "n c -> c", {}),
    "clipped": (FIRST, sn.FixedScale(50, 200, clip=True), "n ... ->", {}),
    "unchanged": (RNG.uniform(0, 1, (5, 2)).astype(np.float32), sn.FixedScale(0, 1), "n c ->", {}),
}


def fitted(case: str) -> sn.InputNorm:
    data, scheme, pattern, sizes = CASES[case]
    return sn.fit(data, scheme, pattern, split="train", **sizes)


def session(model: Any) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def run(model: Any, x: np.ndarray) -> np.ndarray:
    return session(model).run(None, {"x": x})[0]


def within(y: Any, exact: Any, tolerance: float = 1e-6) -> bool:
    y, exact = np.asarray(y, np.float64), np.asarray(exact, np.float64)
    return bool((np.abs(y - exact) <= tolerance * np.maximum(1, np.abs(exact))).all())


# ONNX


@pytest.mark.filterwarnings("ignore:.*data of bool:slabnorm.errors.DataWarning")
@pytest.mark.parametrize("case", CASES)
def test_onnx_computes_the_same(case: str) -> None:
    norm, data = fitted(case), CASES[case][0]
    model = exports.to_onnx(norm)
    onnx.checker.check_model(model, full_check=True)
    x = data[:40]
    y, want = run(model, x), norm(torch.from_numpy(x)).numpy()
    assert y.dtype == want.dtype
    assert np.array_equal(y, want)
    if y.dtype == np.float32:
        assert within(y, norm(torch.from_numpy(x.astype(np.float64))))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint64", "float16", "float32", torch.float64])
def test_onnx_takes_the_dtype_that_is_asked_for(dtype: Any) -> None:
    norm, name = fitted("photos"), str(dtype).removeprefix("torch.")
    x = FIRST.astype(name)
    y, want = run(exports.to_onnx(norm, dtype), x), norm(torch.from_numpy(x)).numpy()
    assert y.dtype == want.dtype == (name if name in ("float16", "float64") else "float32")
    assert np.array_equal(y, want)


def test_onnx_bfloat16() -> None:
    x = torch.from_numpy(WINE).bfloat16()
    norm = sn.fit(x, split="train")
    model = exports.to_onnx(norm)
    onnx.checker.check_model(model, full_check=True)
    session(model)  # which takes it; numpy has no such dtype to feed it with
    (y,) = ReferenceEvaluator(model).run(None, {"x": x.float().numpy().astype(ml_dtypes.bfloat16)})
    assert y.dtype == ml_dtypes.bfloat16
    assert np.array_equal(y.astype(np.float32), norm(x).float().numpy())


@pytest.mark.parametrize("seed", range(6))
def test_onnx_of_any_size(seed: int) -> None:
    draw = np.random.default_rng(seed)
    channels = int(draw.integers(1, 9))
    spread, offset = 10.0 ** draw.integers(-4, 4), 10.0 ** draw.integers(-3, 7)
    x = (offset + spread * draw.standard_normal((6, channels, 5, 4))).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sn.SlabWarning)  # a spread lost beside the offset
        norm = sn.fit(x, ["zscore", NARROW][seed % 2], "n c h w -> c", split="train")
    model = session(exports.to_onnx(norm))
    for batch, rows, columns in [(0, 5, 4), (1, 1, 1), *draw.integers(1, 30, (4, 3)).tolist()]:
        shape = (batch, channels, rows, columns)
        x = (offset + spread * draw.standard_normal(shape)).astype(np.float32)
        y = model.run(None, {"x": x})[0]
        assert y.shape == shape
        assert within(y, norm(torch.from_numpy(x).double()))


@pytest.mark.parametrize(
    ("pattern", "axes"),
    [
        ("n c h w -> c", ["n", 6, "h", "w"]),
        ("n (g c) h w -> g", ["n", 6, "h", "w"]),
        ("n c (h k) h_k -> c", ["n", 6, "h_k", "h_k_"]),
        ("n c ... -> c", ["n", 6, "axis2", "axis3"]),
        ("n c ... ->", ["n", "c", "axis2", "axis3"]),
        ("... w -> w", ["axis0", "axis1", "axis2", 4]),
        ("n é h w -> w é", ["n", 6, "h", 4]),
        ("n ... -> ...", ["n", 6, 8, 4]),
    ],
)
def test_onnx_axes(pattern: str, axes: list[int | str]) -> None:
    sizes = {name: 2 for name in "gk" if f"{name} c" in pattern or f" {name})" in pattern}
    norm = sn.fit(RNG.standard_normal((5, 6, 8, 4)), "zscore", pattern, split="train", **sizes)
    for value in (lambda graph: graph.input, lambda graph: graph.output):
        (end,) = value(exports.to_onnx(norm).graph)
        found = [axis.dim_param or axis.dim_value for axis in end.type.tensor_type.shape.dim]
        assert found == axes


def test_onnx_says_where_it_comes_from_in_the_same_bytes() -> None:
    model = exports.to_onnx(fitted("wine"))
    (entry,) = model.metadata_props
    assert entry.key == "slabnorm.inputs"
    assert json.loads(entry.value)["samples"] == 178
    assert exports.content(fitted("wine"), "onnx") == exports.content(fitted("wine"), "onnx")
    assert (model.ir_version, model.opset_import[0].version) == (7, 13)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_onnx_by_torch() -> None:
    """`torch.onnx.export` of a model that an InputNorm is part of."""
    pytest.importorskip("onnxscript")
    x = torch.from_numpy(FAR.astype(np.float32))
    model = torch.nn.Sequential(fitted("far float32"), torch.nn.Linear(5, 2)).eval()
    program = torch.onnx.export(
        model, (x[:3],), dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False
    )
    exported = session(program.model_proto)
    y = exported.run(None, {exported.get_inputs()[0].name: x.numpy()})[0]
    assert within(y, model(x).detach())


# Images


class Normalize:
    """What torchvision.transforms.Normalize does."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = mean, std

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.as_tensor(value, dtype=x.dtype).view(-1, 1, 1) for value in (self.mean, self.std))
        return x.clone().sub_(mean).div_(std)


@pytest.mark.parametrize(
    ("case", "scaled_by", "says"),
    [
        ("photos", None, "# of x / 255, as ToTensor returns it"),
        ("photos", 1, "# of x as it is, in floats"),
        ("photos", 65535, "# of x / 65535"),
        ("photos fixed", None, "mean=[0.5], std=[0.5]"),
        ("photos last", None, "# of x / 255"),
        ("photos any rank", None, "# of x as it is"),
        ("photos any rank", 0.5, "# of x / 0.5"),
        ("photos otherwise named", None, "# of x / 255"),
        ("digits", None, "# of x / 255"),
    ],
)
def test_torchvision(case: str, scaled_by: float | None, says: str, monkeypatch) -> None:
    norm, data = fitted(case), CASES[case][0]
    found = exports.image_statistics(norm, scaled_by)
    text = exports.torchvision_text(norm, scaled_by)
    assert says in text
    transform = eval(text, {"transforms": types.SimpleNamespace(Normalize=Normalize)})
    stand_in = types.ModuleType("torchvision.transforms")
    stand_in.Normalize = Normalize
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.transforms", stand_in)
    made = export(norm, "torchvision", scaled_by=scaled_by)
    assert (made.mean, made.std) == (transform.mean, transform.std) == (found.mean, found.std)
    last = data.shape[-1] == 3
    scaled = torch.from_numpy(data).double() / found.scaled_by
    want = norm(torch.from_numpy(data).double())
    if last:  # as ToTensor does
        scaled, want = scaled.permute(0, 3, 1, 2), want.permute(0, 3, 1, 2)
    room = max(1, *(abs(mean / std) for mean, std in zip(found.mean, found.std, strict=True)))
    assert within(transform(scaled), want, 1e-14 * room)
    assert within(transform(scaled.float()), want, 1e-6 * room)


@pytest.mark.parametrize("case", ["photos", "photos fixed", "photos last", "digits", "photos any rank"])
def test_huggingface(case: str) -> None:
    norm, data = fitted(case), CASES[case][0]
    keys = json.loads(exports.content(norm, "huggingface"))
    assert keys == exports.to_huggingface(norm)
    assert keys["do_rescale"] is (data.dtype == np.uint8)
    assert keys["do_normalize"] is True
    y = data * keys["rescale_factor"] if keys["do_rescale"] else data.astype(np.float64)
    mean, std = np.array(keys["image_mean"]), np.array(keys["image_std"])
    if mean.ndim and data.shape[-1] != 3:
        mean, std = mean[:, None, None], std[:, None, None]
    assert within((y - mean) / std, norm(torch.from_numpy(data).double()), 1e-13)


def test_huggingface_merges(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    before = {"do_resize": True, "image_mean": [9], "größe": {"z": 1e-300, "a": [1, None]}, "offset": False}
    path.write_text(json.dumps(before))
    merged = exports.merge_huggingface(fitted("photos"), path)
    keys = exports.to_huggingface(fitted("photos"))
    assert json.loads(path.read_text()) == merged == {**before, **keys}
    assert list(merged)[:4] == list(before)
    content = path.read_bytes()
    export(fitted("photos"), "huggingface", path)
    assert path.read_bytes() == content
    path.unlink()
    assert exports.merge_huggingface(fitted("photos"), path) == keys
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "Expecting value"),
        ("[1]", "not a JSON object"),
        ('{"a": 1, "a": 2}', "a key twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "1e999"),
        ("[" * 100_000, "recursion"),
        ("\xff", "utf-8"),
        ('{"rescale_offset": true}', 'set "rescale_offset" to false'),
        ('{"include_top": "\\u001b[31m"}', "x1b"),
        ('{"image_processor": {}}', "whole processor"),
    ],
    ids=range(10),
)
def test_huggingface_refuses_to_merge(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises((DataError, OptionError), match=re.escape(says)):
        exports.merge_huggingface(fitted("photos"), path)
    assert path.read_bytes() == content.encode("latin-1")


@pytest.mark.parametrize("make", [exports.torchvision_text, exports.to_huggingface])
@pytest.mark.parametrize(
    ("shape", "pattern", "says"),
    [
        ((4, 3, 5, 6), "n c h w -> c h w", "one per channel"),
        ((4, 3, 5, 6), "n c h w -> h", "one per channel"),
        ((4, 3, 5, 6), "n c h w -> w", "one per channel"),
        ((4, 5, 6, 3), "n h w c -> h", "one per channel"),
        ((4, 4, 5, 6), "n (g c) h w -> g", "one per channel"),
        ((4, 3), "n c -> c", "one per channel"),
        ((4, 3), "n c ->", "not images"),
    ],
)
def test_what_is_no_mean_and_std_of_channels_is_refused(make, shape, pattern, says) -> None:
    sizes = {"g": 2} if "(g c)" in pattern else {}
    norm = sn.fit(RNG.standard_normal(shape), "zscore", pattern, split="train", **sizes)
    with pytest.raises(OptionError, match=says):
        make(norm)


@pytest.mark.parametrize("make", [exports.torchvision_text, exports.to_huggingface])
def test_images_far_from_zero_are_refused(make) -> None:
    far = sn.fit(1e6 + RNG.uniform(-1, 1, (4, 3, 5, 6)), "zscore", "n c h w -> c", split="train")
    with pytest.raises(OptionError, match="compute in float32"):
        make(far)
    for scaled_by in (0, -1, float("nan"), float("inf"), 10**400, True, "255"):
        with pytest.raises(OptionError, match="positive number"):
            make(fitted("photos"), scaled_by)
    with pytest.raises(OptionError, match="out of the range of float64"):
        make(fitted("photos"), 5e-324)


# scikit-learn


def tables() -> dict[str, tuple[np.ndarray, Any]]:
    draw = np.random.default_rng(0)
    return {
        "wine": (WINE, "zscore"),
        "wine ddof": (WINE, sn.ZScore(ddof=1, eps=0.5)),
        "wine minmax": (WINE, "minmax"),
        "wine narrow": (WINE, NARROW),
        "wine fixed": (WINE, sn.FixedScale(0, 2000, out=(-1, 1))),
        "digits": (DIGITS.reshape(-1, 64), "minmax"),  # with constant columns
        "digits zscore": (DIGITS.reshape(-1, 64), "zscore"),
        "one column": (draw.standard_normal((7, 1)), "zscore"),
        "far": (FAR, "zscore"),
        "far minmax": (FAR, NARROW),
    }


@pytest.mark.filterwarnings("ignore::slabnorm.errors.SlabWarning")  # constant pixels of digits
@pytest.mark.parametrize("case", tables())
def test_sklearn(case: str) -> None:
    data, scheme = tables()[case]
    norm = sn.fit(data, scheme, "n c -> c", split="train")
    scaler = exports.to_sklearn(norm)
    # Beside 1e6 the scaler's own arithmetic in float64 is worth 1e-10.
    tolerance = 1e-9 if "far" in case else 1e-12
    want = norm(torch.from_numpy(data.astype(np.float64))).numpy()
    assert within(scaler.transform(data), want, tolerance)
    assert within(scaler.inverse_transform(want), data, tolerance)
    assert type(scaler) is (StandardScaler if scheme == "zscore" or "ddof" in case else MinMaxScaler)


@pytest.mark.filterwarnings("ignore::slabnorm.errors.SlabWarning")
@pytest.mark.parametrize("case", ["wine", "wine minmax", "wine narrow", "digits", "digits zscore"])
def test_sklearn_is_what_its_own_fit_gives(case: str) -> None:
    data, scheme = tables()[case]
    ours = exports.to_sklearn(sn.fit(data, scheme, "n c -> c", split="train"))
    theirs = clone(ours).fit(data)
    assert vars(ours).keys() == vars(theirs).keys()
    for name, value in vars(theirs).items():
        assert np.allclose(vars(ours)[name], value, rtol=1e-12, atol=1e-13), name
    assert np.allclose(*(s.partial_fit(2.0 * data).transform(data) for s in (ours, theirs)), atol=1e-12)


def test_sklearn_fixed_says_the_range_that_was_given() -> None:
    scaler = exports.to_sklearn(sn.fit(WINE, sn.FixedScale(-5, 2000), "n c -> c", split="train"))
    assert (set(scaler.data_min_), set(scaler.data_max_), set(scaler.data_range_)) == ({-5}, {2000}, {2005})


def test_sklearn_counts_nan_and_names_columns() -> None:
    data = WINE.copy()
    data[:7, 2] = np.nan
    names = ["", "<script>", "a\x1b[31m", "ü\ud800", *map(str, range(9))]
    scaler = exports.to_sklearn(sn.fit(data, "zscore", "n c -> c", split="train", nan="omit"), names)
    assert scaler.n_samples_seen_.tolist() == [178, 178, 171, *[178] * 10]
    assert scaler.get_feature_names_out().tolist() == names


@pytest.mark.parametrize(
    ("data", "pattern", "sizes"),
    [
        (FIRST, "n c h w -> c", {}),
        (WINE, "n c ->", {}),
        (WINE[:, :1], "n c ->", {}),
        (WINE[:, :12], "n (g c) -> c", {"g": 2}),
        (WINE[:, 0], "n ->", {}),
    ],
)
def test_sklearn_takes_tables_only(data, pattern, sizes) -> None:
    with pytest.raises(OptionError, match="for each column"):
        exports.to_sklearn(sn.fit(data, "zscore", pattern, split="train", **sizes))


def test_sklearn_columns_of_a_split_axis_keep_their_order() -> None:
    norm = sn.fit(WINE[:, :12], "zscore", "n (g c) -> c g", split="train", g=3)
    assert within(
        exports.to_sklearn(norm).transform(WINE[:, :12]), norm(torch.from_numpy(WINE[:, :12])), 1e-12
    )


def test_sklearn_scale_beyond_float64() -> None:
    norm = sn.fit(np.array([[0.0], [1e-310]]), "minmax", "n c -> c", split="train")
    with pytest.raises(OptionError, match="out of the range of float64"):
        exports.to_sklearn(norm)


# JSON


@pytest.mark.filterwarnings("ignore:.*data of bool:slabnorm.errors.DataWarning")
@pytest.mark.parametrize("case", CASES)
def test_json_holds_everything(case: str) -> None:
    norm, (data, _, pattern, sizes) = fitted(case), CASES[case]
    text = exports.to_json(norm)
    found = json.loads(text, parse_constant=pytest.fail)
    assert text.isascii()
    assert text == json.dumps(found, sort_keys=True, separators=(",", ":"))
    assert (found["pattern"], found["sizes"], found["dtype"]) == (pattern, sizes, str(data.dtype))
    assert found["samples"] == len(data)
    assert len(found["features"]) == norm.scale.numel()
    m = norm.moments
    want = {"count": m.count, "mean": m.mean, "min": m.min, "max": m.max, "std": m.std()}
    want |= {"shift": norm.shift, "shift_low": norm.shift_low, "scale": norm.scale, "nan": norm.nan_count}
    for name, values in want.items():
        assert [feature[name] for feature in found["features"]] == values.reshape(-1).tolist()
    assert [found["span"], found["low"]] == list(norm.scheme.target)


def test_json_has_no_inf() -> None:
    norm = sn.fit(np.array([[-1e200], [1e200]]), "minmax", split="train")
    assert json.loads(exports.to_json(norm), parse_constant=pytest.fail)["features"][0]["std"] is None


def test_json_of_hostile_names() -> None:
    names = ['"},{"', "</script>\n", "\ud800", "\x00"]
    norm = sn.fit(WINE[:, :4], "zscore", split='train "<b>\x1b')
    for to, options in (("json", {"names": names}), ("onnx", {})):
        assert exports.content(norm, to, **options)
    text = exports.to_json(norm, names)
    assert [feature["name"] for feature in json.loads(text)["features"]] == names
    assert "\n" not in text
    for wrong in (["a"], ["a", "a", "b", "c"], [1, 2, 3, 4], "abcd"):
        for make in (exports.to_json, exports.to_sklearn):
            with pytest.raises(OptionError, match="name"):
                make(norm, wrong)


# All


@pytest.mark.parametrize("to", exports.TARGETS)
def test_meta_and_unknown_options(to: str) -> None:
    norm = fitted("wine" if to == "sklearn" else "photos")
    with pytest.raises(OptionError, match="does not take"):
        export(norm, to, colour="red")
    with pytest.raises(StatisticsError, match="no values"):
        export(norm.to("meta"), to)


@pytest.mark.parametrize("to", ["onx", "ONNX", "", 3, None, "\x1b[31m"])
def test_unknown_systems(to: Any) -> None:
    with pytest.raises(OptionError, match="one of onnx, torchvision") as caught:
        export(fitted("wine"), to)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("to", "package", "fix"),
    [
        ("onnx", "onnx", "pip install 'slabnorm[onnx]'"),
        ("torchvision", "torchvision.transforms", "pip install torchvision"),
    ],
)
def test_missing_packages(to: str, package: str, fix: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExtraError, match=re.escape(fix)):
        export(fitted("photos"), to)
    if to == "torchvision":
        export(fitted("photos"), to, tmp_path / "line.py")


def test_onnx_of_unknown_dtypes() -> None:
    for dtype in ("complex64", "float8", "", 5, torch.complex64):
        with pytest.raises(OptionError, match="dtype must be one of"):
            exports.to_onnx(fitted("wine"), dtype)


@pytest.mark.parametrize("to", exports.TARGETS)
def test_files(to: str, tmp_path: Path) -> None:
    norm, path = fitted("photos"), tmp_path / "out"
    if to == "sklearn":
        with pytest.raises(OptionError, match="pickle"):
            export(norm, to, path)
        assert not path.exists()
        return
    assert export(norm, to, path) is None
    want = exports.content(norm, to)
    assert path.read_bytes() == (want if isinstance(want, bytes) else want.encode())
    with pytest.raises(SlabError, match="Cannot write"):
        export(norm, to, tmp_path / "no" / "where")


def test_sklearn_robust_and_clipped() -> None:
    norm = sn.fit(WINE, sn.Robust(0.1, 0.9, unit=True), split="train")
    scaler = exports.to_sklearn(norm)
    other = RobustScaler(quantile_range=(10, 90), unit_variance=True).fit(WINE)
    assert np.allclose(scaler.transform(WINE), other.transform(WINE), rtol=1e-12, atol=1e-12)
    clipped = sn.fit(WINE, sn.MinMax((-1, 1), clip=True), split="train")
    beyond = 3 * WINE
    want = clipped(torch.from_numpy(beyond)).numpy()
    assert within(exports.to_sklearn(clipped).transform(beyond), want, 1e-12)
    assert want.max() == 1


def test_what_cannot_clip() -> None:
    table = sn.fit(WINE, sn.ZScore(clip=(-3, 3)), split="train")
    with pytest.raises(OptionError, match="clip"):
        exports.to_sklearn(table)
    photos = sn.fit(FIRST, sn.ZScore(clip=(-3, 3)), "n c h w -> c", split="train")
    with pytest.raises(OptionError, match="clip"):
        exports.image_statistics(photos)


def test_names_of_a_table_go_along(tmp_path: Path) -> None:
    table = load_wine(as_frame=True).data
    table.to_parquet(tmp_path / "wine.parquet")
    norm = sn.fit(tmp_path / "wine.parquet", split="train")
    scaler = exports.to_sklearn(norm)
    assert scaler.feature_names_in_.tolist() == table.columns.tolist()
    assert np.allclose(scaler.transform(table), StandardScaler().fit_transform(table), rtol=1e-12)
    features = json.loads(exports.to_json(norm))["features"]
    assert [feature["name"] for feature in features] == table.columns.tolist()


def test_real_weights_go_along() -> None:
    x = load_wine().data
    weights = np.random.default_rng(1).random(len(x))
    norm = sn.fit(x, split="train", weights=weights)
    own = StandardScaler().fit(x, sample_weight=weights)
    scaler = exports.to_sklearn(norm)
    assert np.allclose(scaler.mean_, own.mean_, rtol=1e-12)
    assert np.allclose(scaler.scale_, own.scale_, rtol=1e-12)
    assert np.allclose(scaler.n_samples_seen_, own.n_samples_seen_, rtol=1e-12)
    plain = json.loads(exports.to_json(norm))
    assert abs(plain["features"][0]["count"] - weights.sum()) < 1e-9
    assert (plain["weights"], plain["samples"]) == ("real", 178)
