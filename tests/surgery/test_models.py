"""Whole models, accelerated and plain: the same numbers, the same training, and the way back."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import slabnorm as sn
from tests.surgery.foreign import CancellingNorm, LlamaRMSNorm
from tests.surgery.nets import NETS, BasicBlock, assert_close, build, encoder, step, twins

FUSED = {
    "resnet": {"relu": 3, "residual + relu": 2, "": 1},
    "cifar": {"relu": 1, "residual + relu": 1, "": 1},
    "unet": {"silu": 7},
    "vgg": {"relu": 2},
    "named sequential": {"hardswish": 1},
    "post-norm": {"residual": 4},
    "encoder": {"": 5},
}


@pytest.mark.parametrize("name", NETS)
def test_numbers_and_training(name: str) -> None:
    model, x = build(name)
    fast, plain = twins(model)
    report = sn.accelerate(fast, verify=x, always=True)
    counts: dict[str, int] = {}
    for norm in report.replaced:
        took = " + ".join([*(["residual"] if norm.residual else []), *filter(None, [norm.activation])])
        counts[took] = counts.get(took, 0) + 1
    assert counts == FUSED[name]
    assert not report.left
    optimisers = [torch.optim.SGD(m.parameters(), 0.05) for m in (fast, plain)]
    for _ in range(3):
        assert_close(step(fast, x), step(plain, x))
        for optimiser in optimisers:
            optimiser.step()
    fast.eval(), plain.eval()
    with torch.no_grad():  # the transformer's fast path reads weights and eps of its norms itself
        got, want = fast(x), plain(x)
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert_close(step(fast, x), step(plain, x), 2e-4)


@pytest.mark.parametrize("name", NETS)
def test_restore_goes_back(name: str) -> None:
    model, x = build(name)
    untouched = copy.deepcopy(model)
    references = dict(model.named_modules())
    sn.accelerate(model, always=True)
    sn.restore(model)
    for (key, was), (other, now) in zip(untouched.named_modules(), model.named_modules(), strict=True):
        assert key == other
        assert references[key] is now
        assert type(now) is type(was)
        for table in ("__dict__", "_parameters", "_buffers"):
            mine, before = (vars(m) if table == "__dict__" else getattr(m, table) for m in (now, was))
            assert list(mine) == list(before)
        assert now._non_persistent_buffers_set == was._non_persistent_buffers_set
    for got, want in zip(step(model, x).values(), step(untouched, x).values(), strict=True):
        assert torch.equal(got, want)
    sn.restore(model)  # nothing to do


@pytest.mark.parametrize("name", NETS)
def test_twice_is_once(name: str) -> None:
    model, _ = build(name)
    first = sn.accelerate(model, always=True)
    classes = [type(module) for module in model.modules()]
    second = sn.accelerate(model, always=True)
    assert [type(module) for module in model.modules()] == classes
    assert (len(second.replaced), second.already) == (0, len(first.replaced))


def test_nothing_moves() -> None:
    """Parameters, buffers, hooks, modes and references are the same objects."""
    model, x = build("resnet")
    model(x)
    model.layer1.bn1.weight.requires_grad_(False)
    model.layer2.eval()
    seen: list[torch.Tensor] = []
    model.layer1.bn1.register_forward_hook(lambda module, args, y: seen.append(y.detach().clone()))
    tensors = {id(t) for t in (*model.parameters(), *model.buffers())}
    keys, modes = list(model.state_dict()), [m.training for m in model.modules()]
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    report = sn.accelerate(model, always=True)
    assert tensors <= {id(t) for t in (*model.parameters(), *model.buffers())}
    assert list(model.state_dict()) == keys
    assert [m.training for m in model.modules()] == modes
    assert not model.layer1.bn1.weight.requires_grad
    assert {id(p) for p in optimiser.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    assert isinstance(model.layer1, BasicBlock)
    assert isinstance(model.layer1.bn1, nn.BatchNorm2d)
    assert isinstance(model.layer1.bn1, sn.BatchNorm)
    hooked = next(norm for norm in report.replaced if norm.names == ("layer1.bn1",))
    assert hooked.activation is None
    assert "hook" in hooked.note
    model(x)
    assert bool((seen[0] < 0).any())  # the norm's output, not the activation's


def test_report() -> None:
    model = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.LocalResponseNorm(2)})
    model["c"] = model["a"]
    report = sn.accelerate(model, always=True)
    assert [norm.names for norm in report.replaced] == [("a", "c")]
    assert [(norm.names, norm.kind) for norm in report.left] == [(("b",), "LocalResponseNorm")]
    assert json.loads(json.dumps(report.as_dict()))["replaced"][0]["was"] == "BatchNorm1d"
    lines = str(report).splitlines()
    assert lines[0] == "1 replaced, 0 of them fused, 1 left"
    assert lines[1].split() == ["a,", "c", "BatchNorm1d", "->", "BatchNorm"]
    assert "its outputs differ from every norm that slabnorm knows" in lines[2]
    assert lines[3] == "left: LocalResponseNorm (1)"


def test_the_report_counts_the_classes_that_it_left_and_says_why() -> None:
    model = nn.Sequential(*(CancellingNorm(4) for _ in range(5)), nn.SyncBatchNorm(4), LlamaRMSNorm(4))
    report = str(sn.accelerate(model))
    assert "1 replaced, 0 of them fused, 6 left" in report
    assert "  6  LlamaRMSNorm    -> RMSNorm  recognised by its results" in report
    assert report.count("resembles LayerNorm, but its outputs differ in train mode with means far from") == 5
    assert report.splitlines()[-2] == "left: CancellingNorm (5), SyncBatchNorm (1)"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padding_masks_in_the_fast_path() -> None:
    """In eval mode torch's encoder makes nested tensors, which its own layer norm takes."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8)).eval()
    fast, plain = twins(model)
    sn.accelerate(fast, always=True)
    x, mask = torch.randn(3, 5, 8), torch.arange(5)[None] >= torch.tensor([[5], [3], [2]])
    with torch.no_grad():
        got, want = (m(x, src_key_padding_mask=mask) for m in (fast, plain))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert encoder()  # the same without
