"""Norm layers to and from Keras, Flax and ONNX, against the real packages; and Gemma's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import slabnorm as sn
from slabnorm.errors import OptionError, StatisticsError
from slabnorm.surgery import (
    from_flax,
    from_gemma,
    from_keras,
    from_onnx,
    to_flax,
    to_gemma,
    to_keras,
    to_onnx,
)

# Keras's variables have an __array__ of before NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
C, COUNT = 6, 5 * 3 * 4


@pytest.fixture(scope="module")
def keras() -> Iterator[Any]:
    """Keras on top of NumPy, which compiles nothing; its import takes 3 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "numpy")
        yield pytest.importorskip("keras")


@pytest.fixture(scope="module")
def flax() -> Any:
    return pytest.importorskip("flax.linen")


class Own(nn.BatchNorm2d):
    """Somebody's own batch norm."""


def accelerated() -> nn.Module:
    norm = nn.BatchNorm2d(C)
    sn.accelerate(norm)
    return norm


def drawn(layer: Any) -> Any:
    """Give a layer weights and statistics worth telling apart; return it in eval mode."""
    generator = torch.Generator().manual_seed(3)
    for name, value in (*layer.named_parameters(), *layer.named_buffers()):
        if value.is_floating_point():
            fill = torch.randn(value.shape, generator=generator)
            value.data = (fill.square() + 0.1 if "var" in name else fill).to(value.dtype)
    return layer.eval()


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: sn.BatchNorm(C, 2e-3, 0.2),
    "batch of torch": lambda: nn.BatchNorm2d(C),
    "batch, accelerated": accelerated,
    "batch without weight and bias": lambda: sn.BatchNorm(C, affine=False),
    "batch without bias": lambda: nn.BatchNorm2d(C, bias=False),
    "group": lambda: sn.GroupNorm(3, C, 1e-3),
    "layer": lambda: sn.LayerNorm(C, 1e-4),
    "layer without bias": lambda: nn.LayerNorm(C, bias=False),
    "rms": lambda: sn.RMSNorm(C, 1e-4),
    "rms of the dtype": lambda: nn.RMSNorm(C),
}
OF_CHANNELS = ("batch", "group", "instance")  # on axis 1; the others normalise the last axis


def data(name: str) -> tuple[Tensor, np.ndarray]:
    """Return the same data for a layer and with channels last."""
    x = 2 * torch.randn(5, C, 3, 4, generator=torch.Generator().manual_seed(4)) + 1
    last = x.movedim(1, -1).contiguous()
    return (x if name.startswith(OF_CHANNELS) else last), last.numpy()


def channels_last(name: str, y: Tensor) -> np.ndarray:
    return (y.movedim(1, -1) if name.startswith(OF_CHANNELS) else y).detach().numpy()


def assert_close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), want, rtol=2e-5, atol=2e-5)


def made_by_keras(keras: Any, kind: str, options: dict[str, Any], values: Any, shape: Any) -> Any:
    layer = getattr(keras.layers, kind)(**options)
    layer.build(shape)
    layer.set_weights(values)
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_keras_computes_the_same(name: str, keras: Any) -> None:
    layer, (x, last) = drawn(LAYERS[name]()), data(name)
    kind, options, values = to_keras(layer)
    theirs = made_by_keras(keras, kind, options, values, last.shape)
    assert_close(keras.ops.convert_to_numpy(theirs(last, training=False)), channels_last(name, layer(x)))
    back = from_keras(kind, theirs.get_config(), theirs.get_weights()).eval()
    torch.testing.assert_close(back(x), layer(x), rtol=1e-6, atol=1e-6)
    assert not name.startswith("batch") or back.momentum == layer.momentum


@pytest.mark.parametrize("name", LAYERS)
def test_flax_computes_the_same(name: str, flax: Any) -> None:
    layer, (x, last) = drawn(LAYERS[name]()), data(name)
    kind, options, values = to_flax(layer)
    theirs = getattr(flax, kind)(**options)
    assert_close(theirs.apply(values, last), channels_last(name, layer(x)))
    if "without weight and bias" not in name:
        back = from_flax(kind, options, values).eval()
        torch.testing.assert_close(back(x), layer(x), rtol=1e-6, atol=1e-6)
        assert not name.startswith("batch") or back.momentum == layer.momentum


def run_onnx(
    kind: str, options: dict[str, Any], values: dict[str, np.ndarray], x: np.ndarray, outputs: int = 1
) -> Any:
    """Run one node by ONNX Runtime where it knows the operator, else by ONNX's own reference."""
    shapes = {"Y": x.shape, "mean": (C,), "var": (C,)}
    names = list(shapes)[:outputs]
    node = onnx.helper.make_node(kind, ["X", *values], names, **options)
    floats = onnx.TensorProto.FLOAT
    given = onnx.helper.make_tensor_value_info("X", floats, x.shape)
    made = [onnx.helper.make_tensor_value_info(name, floats, shapes[name]) for name in names]
    held = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = onnx.helper.make_graph([node], "norm", [given], made, held)
    opset = 23 if kind == "RMSNormalization" else 21
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    if kind in ("RMSNormalization", "GroupNormalization") or outputs > 1:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model).run(None, {"X": x})
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"X": x})


@pytest.mark.parametrize("name", [*LAYERS, "instance", "layer of two axes"])
def test_onnx_computes_the_same(name: str) -> None:
    more = {
        "instance": lambda: sn.InstanceNorm(C, 1e-3, affine=True),
        "layer of two axes": lambda: nn.LayerNorm((4, C)),
    }
    layer, (x, _) = drawn({**LAYERS, **more}[name]()), data(name)
    kind, options, values = to_onnx(layer)
    y = run_onnx(kind, options, values, x.numpy())[0]
    assert_close(y, layer(x).detach().numpy())
    back = from_onnx(kind, options, values).eval()
    torch.testing.assert_close(back(x), layer(x), rtol=1e-6, atol=1e-6)
    inputs = list(values.values())
    torch.testing.assert_close(from_onnx(kind, options, inputs).eval()(x), layer(x), rtol=1e-6, atol=1e-6)
    if name == "batch":
        assert back.momentum == layer.momentum


def stepped(layer: nn.Module, x: Tensor) -> nn.Module:
    """Train the running statistics of a layer with one batch."""
    layer.train()(x)
    return layer.eval()


def test_training_goes_on_in_keras(keras: Any) -> None:
    """One batch enters the running statistics alike, once Bessel's correction is taken out of them."""
    layer, (x, last) = drawn(sn.BatchNorm(C, momentum=0.2)), data("batch")
    theirs = made_by_keras(keras, *to_keras(layer, count=COUNT), last.shape)
    theirs(last, training=True)
    stepped(layer, x)
    for got, want in zip(theirs.get_weights(), to_keras(layer, count=COUNT).values, strict=True):
        assert_close(got, want)
    back: Any = from_keras("BatchNormalization", theirs.get_config(), theirs.get_weights(), count=COUNT)
    assert_close(back.running_var, layer.running_var.numpy())
    biased = layer.running_var.numpy() * (COUNT - 1) / COUNT
    assert_close(theirs.get_weights()[3], biased)
    assert abs(biased / to_keras(layer).values[3] - 1).max() > 0.01  # without a count it is left


def test_training_goes_on_in_flax(flax: Any) -> None:
    layer, (x, last) = drawn(nn.BatchNorm2d(C, momentum=0.2)), data("batch")
    kind, options, values = to_flax(layer, count=COUNT)
    options["use_running_average"] = False
    _, after = getattr(flax, kind)(**options).apply(values, last, mutable=["batch_stats"])
    stepped(layer, x)
    want = to_flax(layer, count=COUNT).values["batch_stats"]
    for key in ("mean", "var"):
        assert_close(after["batch_stats"][key], want[key])
    back: Any = from_flax(kind, options, {**values, **after}, count=COUNT)
    assert_close(back.running_var, layer.running_var.numpy())


def test_training_goes_on_in_onnx() -> None:
    layer, (x, _) = drawn(nn.BatchNorm2d(C, momentum=0.2)), data("batch")
    kind, options, values = to_onnx(layer, count=COUNT)
    _, mean, var = run_onnx(kind, {**options, "training_mode": 1}, values, x.numpy(), 3)
    stepped(layer, x)
    want = to_onnx(layer, count=COUNT).values
    assert_close(mean, want["input_mean"])
    assert_close(var, want["input_var"])


def test_defaults_are_those_of_the_packages(keras: Any, flax: Any) -> None:
    one, two = np.ones(2, "float32"), [np.ones(2, "float32")] * 2
    for kind, weights in (
        ("BatchNormalization", two * 2), ("LayerNormalization", two), ("GroupNormalization", two),
        ("RMSNormalization", [one]),
    ):  # fmt: skip
        groups = {"groups": 2} if kind == "GroupNormalization" else {}
        theirs = getattr(keras.layers, kind)(**groups)
        mine: Any = from_keras(kind, groups, weights)
        assert mine.eps == theirs.epsilon
        assert kind != "BatchNormalization" or mine.momentum == pytest.approx(1 - theirs.momentum)
    params: dict[str, Any] = {"params": {"scale": one, "bias": one}, "batch_stats": {"mean": one, "var": one}}
    for kind in ("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm"):
        groups = {"num_groups": 2} if kind == "GroupNorm" else {}
        mine = from_flax(kind, groups, params)
        assert mine.eps == getattr(flax, kind)(**groups).epsilon
    schema = onnx.defs.get_schema("BatchNormalization")
    mine = from_onnx("BatchNormalization", {}, two * 2)
    assert mine.eps == pytest.approx(schema.attributes["epsilon"].default_value.f)
    assert mine.momentum == pytest.approx(1 - schema.attributes["momentum"].default_value.f)


def test_groups_of_one_channel_and_of_a_size(flax: Any) -> None:
    one = [np.ones(C, "float32")] * 2
    mine: Any = from_keras("GroupNormalization", {"groups": -1}, one)
    assert mine.num_groups == C
    both = {"params": dict(zip(("scale", "bias"), one, strict=True))}
    mine = from_flax("GroupNorm", {"num_groups": None, "group_size": 2}, both)
    assert mine.num_groups == 3
    last = data("group")[1]
    assert_close(
        flax.GroupNorm(num_groups=None, group_size=2).apply(both, last),
        channels_last("group", mine(data("group")[0])),
    )


def test_half_precision_travels_as_float32() -> None:
    layer = drawn(sn.BatchNorm(C).bfloat16())
    assert all(value.dtype == np.float32 for value in to_keras(layer).values)
    assert to_flax(layer).values["params"]["scale"].tolist() == layer.weight.float().tolist()
    ours: Any = from_keras("RMSNormalization", {}, [layer.weight])
    assert torch.equal(ours.weight, layer.weight.float())
    assert from_keras("RMSNormalization", {}, [np.ones(C)]).weight.dtype == torch.float64


def test_half_precision_of_jax_becomes_float32(flax: Any) -> None:
    import jax.numpy as jnp

    scale = jnp.asarray([1.0, 1.0078125], jnp.bfloat16)
    layer: Any = from_flax("RMSNorm", {}, {"params": {"scale": scale}})
    assert layer.weight.dtype == torch.float32
    assert layer.weight.tolist() == [1.0, 1.0078125]


def test_gemma() -> None:
    """As Gemma computes it: in float32, multiplied by 1 + weight."""
    torch.manual_seed(0)
    weight, x = (0.01 * torch.randn(8)).bfloat16(), torch.randn(5, 8)
    want = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + weight.double())
    layer = from_gemma(weight)
    assert layer.weight is not None
    assert layer.weight.dtype == torch.float32
    torch.testing.assert_close(layer(x).double(), want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(to_gemma(layer), weight.float(), rtol=0, atol=1e-7)
    for wrong in (sn.LayerNorm(8), sn.RMSNorm(8, elementwise_affine=False)):
        with pytest.raises(OptionError, match="Gemma"):
            to_gemma(wrong)


@pytest.mark.parametrize("to", [to_keras, to_flax, to_onnx])
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: sn.BatchNorm(C, activation="relu"), "activation"),
        (lambda: sn.BatchNorm(C, momentum=None), "momentum=None"),
        (lambda: sn.BatchNorm(C, track_running_stats=False), "without running statistics"),
        (lambda: nn.Linear(2, 2), "no layer for Linear"),
        (lambda: Own(C), "no layer for Own"),
        (lambda: sn.InstanceNorm(C, track_running_stats=True), "no layer for InstanceNorm"),
    ],
    ids=["activation", "average", "untracked", "linear", "subclass", "instance"],
)
def test_what_has_no_counterpart(to: Any, make: Any, why: str) -> None:
    with pytest.raises(OptionError, match=why):
        to(make())


def test_mistakes() -> None:
    one = np.ones(C, "float32")
    for wrong, why in (
        (lambda: to_keras(nn.LayerNorm((2, C))), "one axis"),
        (lambda: to_flax(nn.LayerNorm((2, C))), "one axis"),
        (lambda: to_keras(nn.RMSNorm(C, elementwise_affine=False)), "always has a weight"),
        (lambda: from_keras("LayerNormalization", {"axis": [1, 2]}, [one, one]), "axis"),
        (lambda: from_keras("LayerNormalization", {"scale": False, "center": False}, []), "its size"),
        (lambda: from_keras("LayerNormalization", {"rms_scaling": True}, [one]), "rms_scaling=True"),
        (
            lambda: from_keras("LayerNormalization", {"rms_scaling": True, "center": False}, [one]),
            "rms_scaling=True",
        ),
        (lambda: from_keras("SpectralNormalization", {}, [one, one]), "no layer for 'SpectralNormalization'"),
        (lambda: from_flax("WeightNorm", {}, {"params": {"scale": one}}), "no layer for 'WeightNorm'"),
        (lambda: from_flax("LayerNorm", {}, {}), "its size"),
        (lambda: from_onnx("LpNormalization", {}, [one]), "no layer for 'LpNormalization'"),
        (lambda: from_onnx("LayerNormalization", {"axis": 1}, [one, one]), "from axis 1 on"),
    ):
        with pytest.raises(OptionError, match=why):
            wrong()
    with pytest.raises(StatisticsError, match="A variance of 1 values"):
        to_onnx(nn.BatchNorm2d(C), count=1)
