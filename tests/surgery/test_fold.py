"""fold(): the same outputs without the norms; what is left, and why; nothing half done."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import slabnorm as sn
from slabnorm.errors import ModelError, OptionError, VerificationError
from slabnorm.surgery import flow
from tests.surgery.nets import CifarBlock, ResNet, vgg
from tests.surgery.states import assert_unchanged, state_of

fold_module: Any = __import__("sys").modules["slabnorm.surgery.fold"]


def trained(model: nn.Module) -> nn.Module:
    """Give every norm statistics and weights worth telling apart; return the model in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None and value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.data = (drawn.square() + 0.1 if name == "running_var" else drawn).to(value.dtype)
    return model.eval()


def eval_norm(norm: Any, x: Tensor) -> Tensor:
    """The formula of a batch norm in eval mode, in float64, with channels on axis 1."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    mean, var = (t.double().reshape(shape) for t in (norm.running_mean, norm.running_var))
    y = (x - mean) / (var + norm.eps).sqrt()
    if norm.weight is not None:
        y = y * norm.weight.detach().double().reshape(shape)
    return y if norm.bias is None else y + norm.bias.detach().double().reshape(shape)


BEFORE: dict[str, tuple[Callable[[], nn.Module], Callable[[int], nn.Module], tuple[int, ...]]] = {
    "1-D": (lambda: nn.Conv1d(4, 6, 3), nn.BatchNorm1d, (3, 4, 9)),
    "2-D": (lambda: nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d, (3, 4, 7, 8)),
    "3-D": (lambda: nn.Conv3d(4, 6, 2), nn.BatchNorm3d, (2, 4, 3, 4, 3)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding="same"), nn.BatchNorm2d, (3, 4, 7, 8)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6, dilation=2), nn.BatchNorm2d, (3, 6, 7, 8)),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), sn.BatchNorm, (3, 4, 7, 8)),
    "transposed 1-D": (lambda: nn.ConvTranspose1d(4, 6, 3, bias=False), nn.BatchNorm1d, (3, 4, 9)),
    "transposed groups": (
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), nn.BatchNorm2d, (3, 4, 5, 6),
    ),
    "transposed 3-D": (lambda: nn.ConvTranspose3d(4, 6, 2, groups=2), sn.BatchNorm, (2, 4, 3, 4, 3)),
    "not affine": (lambda: nn.Conv2d(4, 6, 1), lambda c: nn.BatchNorm2d(c, affine=False), (3, 4, 5, 6)),
    "no bias": (lambda: nn.Conv2d(4, 6, 1), lambda c: sn.BatchNorm(c, 1e-3, bias=False), (3, 4, 5, 6)),
    "linear": (lambda: nn.Linear(4, 6, bias=False), nn.BatchNorm1d, (8, 4)),
    "synchronised": (lambda: nn.Conv2d(4, 6, 1), nn.SyncBatchNorm, (3, 4, 5, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", BEFORE)
def test_into_the_layer_before(name: str) -> None:
    make, norm_of, shape = BEFORE[name]
    torch.manual_seed(0)
    model: Any = trained(nn.Sequential(make(), norm_of(6), nn.ReLU()))
    layer, norm, weight, x = model[0], model[1], model[0].weight, torch.randn(shape)
    wide = copy.deepcopy(model[0]).double()
    want = eval_norm(norm, wide(x.double())).relu()
    report = sn.fold(model, batch=x)
    assert [change.names for change in report.changed] == [("1",)]
    assert (type(model[1]), model[1].training) == (nn.Identity, False)
    assert (model[0], model[0].weight) == (layer, layer.weight)
    assert model[0].weight is weight
    assert isinstance(model[0].bias, nn.Parameter)
    assert (model(x) - want).abs().max() <= 2e-6 * want.abs().max()
    assert report.difference is not None
    assert report.difference < 1e-6


def test_in_float64_to_rounding() -> None:
    torch.manual_seed(0)
    model: Any = trained(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)).double())
    x = torch.randn(3, 4, 7, 8, dtype=torch.float64)
    want = eval_norm(model[1], model[0](x))
    sn.fold(model)
    assert (model(x) - want).abs().max() <= 1e-14 * want.abs().max()


def test_equals_torchs_own_fusion() -> None:
    torch.manual_seed(0)
    conv: Any = trained(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)))
    line: Any = trained(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    wanted = fuse_conv_bn_eval(*copy.deepcopy(conv)), fuse_linear_bn_eval(*copy.deepcopy(line))
    sn.fold(conv), sn.fold(line, batch=torch.randn(5, 4))
    for mine, want in zip((conv[0], line[0]), wanted, strict=True):
        torch.testing.assert_close(mine.weight, want.weight, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(mine.bias, want.bias, rtol=1e-6, atol=1e-6)


AFTER: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "2-D": (lambda: nn.BatchNorm2d(4), lambda: nn.Conv2d(4, 6, 3, bias=False), (3, 4, 7, 8)),
    "groups": (lambda: sn.BatchNorm(4), lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 7, 8)),
    "circular": (
        lambda: nn.BatchNorm2d(4),
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        (3, 4, 7, 8),
    ),
    "same, of one pixel": (
        lambda: nn.BatchNorm2d(4),
        lambda: nn.Conv2d(4, 6, 1, padding="same"),
        (3, 4, 7, 8),
    ),
    "linear": (lambda: nn.BatchNorm1d(4), lambda: nn.Linear(4, 6), (8, 4)),
}


@pytest.mark.parametrize("name", AFTER)
def test_into_the_layer_after(name: str) -> None:
    norm_of, make, shape = AFTER[name]
    torch.manual_seed(0)
    model: Any = trained(nn.Sequential(nn.Tanh(), norm_of(), make()))
    x, wide = torch.randn(shape), copy.deepcopy(model[2]).double()
    want = wide(eval_norm(model[1], x.double().tanh()))
    report = sn.fold(model, batch=x)
    assert "which follows" in report.changed[0].note
    assert (model(x) - want).abs().max() <= 2e-6 * want.abs().max()


def test_two_norms_into_one_layer() -> None:
    torch.manual_seed(0)
    model: Any = trained(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    x, wide = torch.randn(3, 4, 7, 8), copy.deepcopy(model[1]).double()
    want = eval_norm(model[2], wide(eval_norm(model[0], x.double())))
    report = sn.fold(model, batch=x)
    assert [change.difference is not None and change.difference < 1e-6 for change in report.changed] == [
        True
    ] * 2
    assert (model(x) - want).abs().max() <= 2e-6 * want.abs().max()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "leaky_relu": F.leaky_relu, "silu": F.silu, "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "sigmoid": torch.sigmoid, "tanh": torch.tanh,
    "hardswish": F.hardswish,
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_survives(name: str) -> None:
    torch.manual_seed(0)
    model: Any = trained(nn.Sequential(nn.Conv2d(4, 6, 3), sn.BatchNorm(6, activation=name)))
    x, wide = torch.randn(3, 4, 7, 8), copy.deepcopy(model[0]).double()
    want = ACTIVATIONS[name](eval_norm(model[1], wide(x.double())))
    sn.fold(model, batch=x)
    assert type(model[1]).__module__.startswith("torch.nn")
    assert (model(x) - want).abs().max() <= 2e-6 * want.abs().max()


def test_an_activation_in_between_keeps_a_norm_out_of_the_layer_after_it() -> None:
    model = trained(nn.Sequential(sn.BatchNorm(4, activation="relu"), nn.Conv2d(4, 6, 3)))
    assert "relu lies between them" in sn.fold(model).left[0].reason


@pytest.mark.parametrize("fast", [False, True], ids=["torch's", "accelerated"])
@pytest.mark.parametrize(
    ("make", "norms"),
    [(ResNet, 6), (vgg, 2), (lambda: nn.Sequential(nn.Conv2d(3, 6, 1), CifarBlock(6)), 3)],
    ids=["resnet", "vgg", "cifar"],
)
def test_networks(make: Callable[[], nn.Module], norms: int, fast: bool) -> None:
    torch.manual_seed(0)
    model, x = trained(make()), torch.randn(4, 3, 8, 8)
    want = copy.deepcopy(model).double()(x.double())
    if fast:
        assert sn.accelerate(model, always=True).fused
    report = sn.fold(model, batch=x)
    assert (len(report.changed), report.left) == (norms, ())
    assert max(change.difference or 0 for change in report.changed) < 1e-5
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (twin(x) - want).norm() <= 1e-5 * want.norm()
    sn.restore(model)
    assert (model(x) - want).norm() <= 1e-5 * want.norm()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert sn.fold(model, batch=x).changed == ()


class Two(nn.Module):
    """A convolution and a norm, put together by the test."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.other, self.bn, self.run = (
            nn.Conv2d(4, 4, 3),
            nn.Conv2d(4, 4, 3),
            nn.BatchNorm2d(4),
            run,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def _kept(self: Any, x: Tensor) -> Tensor:
    self.last = self.conv(x)
    return self.bn(self.last)


def _twice(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.bn(y) + y


USED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "layer twice": (lambda self, x: self.bn(self.conv(self.conv(x))), "conv is used elsewhere"),
    "layer beside": (
        lambda self, x: self.bn(self.conv(x)) + self.conv(x),
        "conv is used elsewhere",
    ),
    "norm twice": (lambda self, x: self.bn(self.conv(x)) + self.bn(self.other(x)), "more than once"),
    "norm unused": (lambda self, x: self.conv(x), "not used"),
    "output twice": (_twice, "no layer makes its input for it alone"),
    "output kept": (_kept, "no layer makes its input for it alone"),
    "sum": (lambda self, x: self.bn(self.conv(x) + self.other(x)), "no layer makes its input for it alone"),
    "statistics beside": (
        lambda self, x: self.bn(self.conv(x)) + x[:, :, 2:, 2:] * self.bn.running_var.reshape(-1, 1, 1),
        "used elsewhere, too",
    ),
    "weight beside": (
        lambda self, x: self.bn(self.conv(x)) + self.conv.weight.mean(),
        "shares its weights",
    ),
}


@pytest.mark.parametrize("seen", ["trace", "run"])
@pytest.mark.parametrize("name", USED)
def test_what_the_flow_does_not_allow(name: str, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a trace and by a recorded run, each of them alone."""
    run, why = USED[name]
    torch.manual_seed(0)
    model = trained(Two(run))
    if seen == "run":
        monkeypatch.setattr(flow, "_traced", lambda model, fixed: 1 / 0)
    x = torch.randn(2, 4, 9, 9)
    before = state_of(model)
    report = sn.fold(model, batch=x if seen == "run" else None)
    assert report.changed == ()
    assert why in report.left[0].reason
    assert_unchanged(model, before)


def hooked(model: Any) -> nn.Module:
    model[0].register_forward_hook(lambda *seen: None)
    return model


def hooked_above(model: Any) -> nn.Module:
    inner = nn.Sequential(model[0])
    inner.register_forward_hook(lambda *seen: None)
    return nn.Sequential(inner, model[1])


def tied(model: Any) -> nn.Module:
    twin = nn.Conv2d(4, 4, 3)
    twin.weight = model[0].weight
    return nn.Sequential(*model, twin)


def pruned(model: Any) -> nn.Module:
    prune.l1_unstructured(model[0], "weight", 2)
    return model


class Own(nn.BatchNorm2d):
    """Somebody's own batch norm."""


ALONE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "hook": (lambda: hooked(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))), "0 has hooks"),
    "hook above": (
        lambda: hooked_above([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]),
        "no layer makes its input for it alone",
    ),
    "tied": (lambda: tied([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]), "0 shares its weights"),
    "pruned": (lambda: pruned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))), "parameters elsewhere"),
    "batch statistics": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        "no running statistics",
    ),
    "subclass": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3), Own(4)), "it may compute something else"),
    "zeros": (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)),
        "pads with zeros",
    ),
    "zeros by name": (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding="same")),
        "pads with zeros",
    ),
    "transposed after": (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 3)),
        "pads with zeros",
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_is_left(name: str) -> None:
    make, why = ALONE[name]
    for batch in (None, torch.randn(2, 4, 9, 9)):
        if batch is not None and name == "pruned":
            continue  # what pruning makes of a weight cannot be copied
        model = trained(make())
        before = state_of(model)
        report = sn.fold(model, batch=batch)
        assert report.changed == ()
        assert why in report.left[0].reason
        assert why in str(report)
        assert_unchanged(model, before)


def test_zeros_may_be_padded_where_the_norm_does_not_shift() -> None:
    torch.manual_seed(0)
    for layer in (nn.Conv2d(4, 6, 3, padding=1), nn.ConvTranspose2d(4, 6, 3, 2, groups=2)):
        model: Any = trained(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4, bias=False), layer))
        model[1].running_mean.zero_()
        x = torch.randn(2, 4, 5, 5)
        want = copy.deepcopy(layer).double()(eval_norm(model[1], x.double().relu()))
        assert len(sn.fold(model, batch=x).changed) == 1
        assert (model(x) - want).abs().max() <= 2e-6 * want.abs().max()


def test_a_norm_of_tokens_behind_a_linear_is_none_of_its_outputs() -> None:
    """Of (batch, tokens, features) the norm takes the tokens, as many as features here."""
    model = trained(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)))
    assert "may give it three axes" in sn.fold(model).left[0].reason
    assert "3 axes" in sn.fold(model, batch=torch.randn(2, 5, 4)).left[0].reason
    assert len(sn.fold(model, batch=torch.randn(2, 4)).changed) == 1


@dataclass
class Features:
    """An output of a class of its own, of which pytree knows nothing."""

    first: Tensor
    last: Tensor


def _returned(self: Any, x: Tensor) -> Any:
    y = self.conv(x)
    return Features(y, self.bn(y))


def _kept_in_an_object(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    self.last = Features(y, y)
    return self.bn(y)


@pytest.mark.parametrize("run", [_returned, _kept_in_an_object])
@pytest.mark.parametrize("traced", [True, False])
def test_what_an_object_holds_is_used(run: Any, traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not traced:
        monkeypatch.setattr(flow, "_traced", lambda model, fixed: 1 / 0)
    report = sn.fold(trained(Two(run)), batch=None if traced else torch.randn(2, 4, 6, 6))
    assert "no layer makes its input for it alone" in report.left[0].reason


def _written(self: Any, x: Tensor) -> Tensor:
    x = x.tanh()
    y = self.bn(x)
    x += 1
    return self.conv(y) + x[:, :, 2:, 2:]


def test_an_input_that_others_write_to() -> None:
    """The norm hands its output on, an identity its input."""
    model, x = trained(Two(_written)), torch.randn(2, 4, 6, 6)
    before = state_of(model)
    assert "its input is used elsewhere" in sn.fold(model).left[0].reason
    assert "its input is written to" in sn.fold(model, batch=x).left[0].reason
    assert_unchanged(model, before)
    skip = trained(Two(lambda self, x: self.conv(self.bn(x)) + x[:, :, 2:, 2:]))
    assert len(sn.fold(skip, batch=x).changed) == 1


@pytest.mark.parametrize("with_batch", [True, False])
def test_a_layer_whose_output_was_written_to(with_batch: bool) -> None:
    """The norm does not take what the first convolution made, but can go into the second."""
    torch.manual_seed(0)
    model: Any = trained(
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3))
    )
    x = torch.randn(2, 4, 8, 8)
    want = copy.deepcopy(model).double()(x.double())
    report = sn.fold(model, batch=x if with_batch else None)
    assert report.changed[0].note == "into 3, which follows"
    assert (model(x) - want).abs().max() <= 2e-6 * want.abs().max()


def test_outputs_that_cannot_be_compared() -> None:
    model = trained(Two(lambda self, x: self.bn(self.conv(x)).argmax(1)))
    report = sn.fold(model, batch=torch.randn(2, 4, 6, 6))
    assert str(report).startswith("1 folded without a check")
    assert report.difference is None
    assert report.changed[0].difference is not None


class Untraceable(Two):
    def __init__(self) -> None:
        super().__init__(lambda self, x: self.bn(self.conv(x if bool(x.mean() > -9) else -x)).relu())


class Optional(Two):
    """With a second argument the output of the convolution is used twice."""

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return self.bn(y) if more is None else self.bn(y) + y * more


def test_a_model_that_cannot_be_traced_is_run() -> None:
    torch.manual_seed(0)
    model, x = trained(Untraceable()), torch.randn(2, 4, 6, 6)
    want = copy.deepcopy(model).double()(x.double())
    assert "cannot be traced (TypeError" in sn.fold(model).left[0].reason.replace("TraceError", "TypeError")
    assert len(sn.fold(model, batch={"x": x}).changed) == 1
    assert (model(x) - want).abs().max() <= 2e-6 * want.abs().max()


def test_a_branch_that_a_batch_does_not_take_counts_too() -> None:
    model, x = trained(Optional(lambda: None)), torch.randn(2, 4, 6, 6)
    for batch in (None, x, (x, torch.ones(()))):
        assert "no layer makes its input for it alone" in sn.fold(model, batch=batch).left[0].reason


def test_frozen_norms_are_folded() -> None:
    torch.manual_seed(0)
    model: Any = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    x, want = (
        torch.randn(2, 4, 6, 6),
        eval_norm(model[1], copy.deepcopy(model[0]).double()(torch.zeros(1, 4, 6, 6).double())),
    )
    sn.freeze(model)
    assert len(sn.fold(model, batch=x).changed) == 1
    assert (model(torch.zeros(1, 4, 6, 6)) - want).abs().max() <= 2e-6 * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model: Any = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))).to(dtype)
    norm, weight = copy.deepcopy(model[1]), model[0].weight.detach().double()
    report = sn.fold(model, batch=torch.randn(2, 4, 6, 6, dtype=dtype))
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    assert torch.equal(model[0].weight, (weight * scale.reshape(-1, 1, 1, 1)).to(dtype))
    assert model[0].bias.dtype == dtype
    assert report.difference is not None


def test_memory_order_and_frozen_weights_stay() -> None:
    model: Any = trained(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)))
    model = model.to(memory_format=torch.channels_last).requires_grad_(False)
    sn.fold(model)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].bias.requires_grad


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.bn, self.head = layer, nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.layer(x)).relu().mean((2, 3)))


def test_input_statistics_go_into_the_first_layer() -> None:
    torch.manual_seed(0)
    raw = torch.randint(0, 256, (16, 4, 9, 9), dtype=torch.uint8)
    inputs = sn.fit(raw, "zscore", "n c h w -> c", split="train")
    model: Any = trained(Net(nn.Conv2d(4, 6, 3, groups=2)))
    want = copy.deepcopy(model).double()(inputs(raw.double()))
    report = sn.fold(model, batch=raw, inputs=inputs)
    assert [change.names for change in report.changed] == [("bn",), ("layer",)]
    assert "raw data" in report.changed[1].note
    for x in (raw, raw.float()):
        assert (model(x) - want).abs().max() <= 1e-5 * want.abs().max()
    assert pickle.loads(pickle.dumps(model))(raw).shape == (16, 3)


def test_input_statistics_pass_a_norm_that_is_folded() -> None:
    torch.manual_seed(0)
    raw = 3 + 2 * torch.randn(40, 4, dtype=torch.float64)
    inputs, model = sn.fit(raw, split="train"), trained(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)))
    want = copy.deepcopy(model).double()(inputs(raw))
    sn.fold(model.double(), batch=(raw,), inputs=inputs)
    assert (model(raw) - want).abs().max() <= 1e-12 * want.abs().max()
    line = trained(nn.Linear(4, 3)).double()
    want = copy.deepcopy(line)(inputs(raw))
    sn.fold(line, inputs=inputs)
    assert (line(raw) - want).abs().max() <= 1e-12 * want.abs().max()


@pytest.mark.parametrize(
    ("make", "kind", "why"),
    [
        (lambda: Net(nn.Conv2d(4, 6, 3, padding=1)), OptionError, "pads"),
        (lambda: nn.Sequential(nn.Tanh(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), ModelError, "no one layer"),
        (lambda: Two(lambda self, x: self.bn(self.conv(x)) + self.other(x)), ModelError, "no one layer"),
        (lambda: Net(nn.ConvTranspose2d(4, 6, 3)), OptionError, "not a Linear"),
    ],
    ids=["zeros", "activation", "branches", "transposed"],
)
def test_input_statistics_that_do_not_fit_change_nothing(
    make: Callable[[], nn.Module], kind: type[Exception], why: str
) -> None:
    raw = torch.randn(8, 4, 9, 9)
    model, inputs = trained(make()), sn.fit(raw + 5, "zscore", "n c h w -> c", split="train")
    before = state_of(model)
    for batch in (None, raw):
        with pytest.raises(kind, match=why):
            sn.fold(model, batch=batch, inputs=inputs)
        assert_unchanged(model, before)


def test_train_mode_and_what_is_no_model() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    with pytest.raises(ModelError, match=r"the model \(Sequential\) is in train mode"):
        sn.fold(model.train())
    model.eval()[1].train()
    with pytest.raises(ModelError, match=r"1 \(BatchNorm2d\) is in train mode\n  fix: call model.eval"):
        sn.fold(model)
    with pytest.raises(ModelError, match=r"needs a torch\.nn\.Module"):
        sn.fold("model")  # type: ignore[arg-type]


@pytest.mark.parametrize("step", ["first weights", "last weights", "interrupt", "effect", "batch"])
def test_whatever_fails_changes_nothing(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = trained(ResNet()), torch.randn(2, 3, 8, 8)
    sn.accelerate(model, always=True)
    before = state_of(model)
    give, calls = fold_module._give, []

    def broken(*args: Any) -> None:
        calls.append(args)
        if len(calls) == (1 if step == "first weights" else 6):
            raise KeyboardInterrupt if step == "interrupt" else ValueError("broken")
        give(*args)

    wanted: type[BaseException] = KeyboardInterrupt if step == "interrupt" else ValueError
    if step == "batch":
        x, wanted = x[:, :2], ModelError
    elif step == "effect":
        monkeypatch.setattr(fold_module.effect, "after", lambda *args: 1 / 0)
        wanted = ZeroDivisionError
    else:
        monkeypatch.setattr(fold_module, "_give", broken)
    with pytest.raises(wanted):
        sn.fold(model, batch=x)
    assert_unchanged(model, before)


def test_what_overflows_is_compared_where_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth in float64 is finite where half precision is not: that leaves no room for other errors."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).half().eval()
    x = torch.arange(20.0).reshape(5, 4).half() / 10
    with torch.no_grad():
        model[0].weight[1] = 30000
    right, allowed = model(x), []
    assert right[:, 1].isinf().any()
    assert right[:, 0].isfinite().all()
    compared = fold_module.difference
    monkeypatch.setattr(
        fold_module, "difference", lambda old, new: allowed.append(compared(old, new)) or allowed[-1]
    )
    assert "folded and checked" in str(sn.fold(model, batch=x))
    assert max(allowed) < 1e-2


def test_a_fold_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a share of 1e-6, which float32 does not show beside its own rounding, and by what is NaN."""
    right = fold_module._folded
    for wrong in (1 + 1e-4, 1 + 3e-6, float("nan")):

        def folded(*args: Any, wrong: float = wrong) -> tuple[Tensor, Tensor]:
            weight, bias = right(*args)
            return weight, bias * wrong

        monkeypatch.setattr(fold_module, "_folded", folded)
        model, x = trained(vgg()), torch.randn(2, 3, 8, 8)
        before = state_of(model)
        with pytest.raises((VerificationError, ModelError), match=r"does not compute|out of the range"):
            sn.fold(model, batch=x)
        assert_unchanged(model, before)


def test_the_record_says_whether_it_was_checked() -> None:
    model, x = trained(vgg()), torch.randn(2, 3, 8, 8)
    twin = copy.deepcopy(model)
    unchecked, checked = sn.fold(twin), sn.fold(model, batch=x)
    assert str(unchecked).startswith("2 folded without a check, 0 left\n  1  BatchNorm2d  -> Identity")
    assert unchecked.difference is None
    assert str(checked).startswith("2 folded and checked, 0 left; the model's outputs differ by")
    assert checked.as_dict()["changed"][0]["names"] == ["1"]
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, its)
