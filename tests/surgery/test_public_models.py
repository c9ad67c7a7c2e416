"""Public models, from their libraries, small and with random weights: what surgery does to each of them.

A new function of surgery gets a test here that goes over MODELS. Libraries are imported when a model is
built: two to six seconds each, once.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import slabnorm as sn
from slabnorm.surgery.recognise import recognise
from tests.surgery.foreign import randomised

pytestmark = pytest.mark.filterwarnings("ignore")  # what the libraries warn of

Batch = dict[str, Any] | tuple[Tensor, ...]

LANGUAGE = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 32,
}  # fmt: skip
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
KEY_VALUE = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}


def _of_transformers(config: str, model: str, batch: Batch, **options: Any) -> tuple[nn.Module, Batch]:
    library = pytest.importorskip("transformers")
    return getattr(library, model)(getattr(library, config)(**options)), batch


def _words(length: int = 7) -> Tensor:
    return torch.randint(3, 40, (2, length))


def _resnet() -> tuple[nn.Module, Batch]:
    sizes: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8}
    images = {"pixel_values": torch.randn(2, 3, 32, 32)}
    return _of_transformers("ResNetConfig", "ResNetModel", images, layer_type="basic", **sizes)


def _convnext() -> tuple[nn.Module, Batch]:
    sizes: dict[str, Any] = {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2}
    return _of_transformers(
        "ConvNextConfig", "ConvNextModel", {"pixel_values": torch.randn(2, 3, 32, 32)}, **sizes
    )


def _vit() -> tuple[nn.Module, Batch]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    images = {"pixel_values": torch.randn(2, 3, 16, 16)}
    return _of_transformers(
        "ViTConfig", "ViTModel", images, image_size=16, patch_size=4, **sizes, **NO_DROPOUT
    )


def _bert() -> tuple[nn.Module, Batch]:
    return _of_transformers("BertConfig", "BertModel", {"input_ids": _words()}, **LANGUAGE, **NO_DROPOUT)


def _llama() -> tuple[nn.Module, Batch]:
    batch = {"input_ids": _words(), "use_cache": False}
    return _of_transformers("LlamaConfig", "LlamaForCausalLM", batch, **LANGUAGE, **KEY_VALUE)


def _gemma() -> tuple[nn.Module, Batch]:
    batch = {"input_ids": _words(), "use_cache": False}
    return _of_transformers("GemmaConfig", "GemmaForCausalLM", batch, **LANGUAGE, **KEY_VALUE)


def _t5() -> tuple[nn.Module, Batch]:
    batch = {"input_ids": _words(), "decoder_input_ids": _words(5), "use_cache": False}
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return _of_transformers("T5Config", "T5ForConditionalGeneration", batch, dropout_rate=0.0, **sizes)


def _poolformer() -> tuple[nn.Module, Batch]:
    sizes: dict[str, Any] = {
        "hidden_sizes": [8, 12], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [7, 3],
        "strides": [4, 2], "padding": [2, 1], "mlp_ratio": 2.0,
    }  # fmt: skip
    images = {"pixel_values": torch.randn(2, 3, 32, 32)}
    return _of_transformers("PoolFormerConfig", "PoolFormerModel", images, **sizes)


def _bit() -> tuple[nn.Module, Batch]:
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 16], "depths": [1, 1], "num_groups": 4}
    return _of_transformers("BitConfig", "BitModel", {"pixel_values": torch.randn(2, 3, 32, 32)}, **sizes)


def _diffusers_unet() -> tuple[nn.Module, Batch]:
    pytest.importorskip("diffusers")
    model = import_module("diffusers").UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=8,
    )  # fmt: skip
    return model, {"sample": torch.randn(2, 3, 8, 8), "timestep": torch.tensor(3)}


def _monai_unet() -> tuple[nn.Module, Batch]:
    nets = pytest.importorskip("monai.networks.nets.unet")
    sizes = {"channels": (4, 8), "strides": (2,), "num_res_units": 1}
    return nets.UNet(spatial_dims=3, in_channels=1, out_channels=2, **sizes), (torch.randn(2, 1, 8, 8, 8),)


def _monai_segresnet() -> tuple[nn.Module, Batch]:
    nets = pytest.importorskip("monai.networks.nets.segresnet")
    sizes = {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)}
    model = nets.SegResNet(spatial_dims=3, in_channels=1, out_channels=2, **sizes)
    return model, (torch.randn(2, 1, 8, 8, 8),)


# The table: every model with its batch, its norms, and what accelerate makes of them.
MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, Batch]], dict[str, int]]] = {
    "ResNet": (_resnet, {"BatchNorm2d -> BatchNorm + relu": 3, "BatchNorm2d -> BatchNorm": 3}),
    "ConvNeXt": (
        _convnext,
        {
            "ConvNextLayerNorm -> LayerNorm(over channels)": 2,
            "ConvNextLayerNorm -> LayerNorm": 2,
            "LayerNorm -> LayerNorm": 1,
        },
    ),
    "ViT": (_vit, {"LayerNorm -> LayerNorm": 5}),
    "BERT": (_bert, {"LayerNorm -> LayerNorm": 5}),
    "Llama": (_llama, {"LlamaRMSNorm -> RMSNorm": 5}),
    "Gemma": (_gemma, {"GemmaRMSNorm -> RMSNorm(weight + 1)": 5}),
    "T5": (_t5, {"T5LayerNorm -> RMSNorm": 7}),
    "PoolFormer": (_poolformer, {"PoolFormerGroupNorm -> GroupNorm(1 group)": 4}),
    "BiT": (_bit, {"BitGroupNormActivation -> GroupNorm(4 groups) + relu": 7}),
    "UNet of diffusers": (
        _diffusers_unet,
        {"GroupNorm -> GroupNorm + silu": 9, "GroupNorm -> GroupNorm": 12},
    ),
    "UNet of MONAI": (_monai_unet, {"InstanceNorm3d -> InstanceNorm": 3}),
    "SegResNet of MONAI": (_monai_segresnet, {"GroupNorm -> GroupNorm + relu": 7}),
}


@cache
def _built(name: str) -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    model, batch = MODELS[name][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, batch


def build(name: str) -> tuple[nn.Module, Batch]:
    """Return a model of the table with weights worth telling apart, and its batch."""
    return copy.deepcopy(_built(name))


def results(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Return outputs of a step, gradients of parameters, and floating-point buffers after it."""
    model.zero_grad()
    torch.manual_seed(0)
    y = model(**batch) if isinstance(batch, dict) else model(*batch)
    outputs = [t for t in pytree.tree_leaves(dict(y) if hasattr(y, "keys") else y) if isinstance(t, Tensor)]
    sum((t * torch.linspace(-1, 1, t.numel()).reshape(t.shape)).sum() for t in outputs).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    return [t.detach().clone() for t in (*outputs, *gradients, *buffers)]


@pytest.mark.parametrize("name", MODELS)
def test_accelerate(name: str) -> None:
    model, batch = build(name)
    plain = copy.deepcopy(model)
    report = sn.accelerate(model, verify=batch, always=True)
    assert report.verified
    assert Counter(f"{norm.was} -> {norm.became}" for norm in report.replaced) == MODELS[name][1]
    assert report.left == ()
    assert [type(m).__name__ for m in model.modules()] == [type(m).__name__ for m in plain.modules()]
    for training in (True, False):
        model.train(training), plain.train(training)
        found, wanted = results(model, batch), results(plain, batch)
        largest = max(float(t.abs().max()) for t in wanted)
        for a, b in zip(found, wanted, strict=True):
            assert (a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-6 * largest
    sn.restore(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


@torch.no_grad()
def evaluated(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Return outputs in eval mode."""
    y = model.eval()(**batch) if isinstance(batch, dict) else model.eval()(*batch)
    return [t for t in pytree.tree_leaves(dict(y) if hasattr(y, "keys") else y) if isinstance(t, Tensor)]


def off(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return by how much outputs differ, as a share of their size."""
    moved = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, wanted, strict=True))
    return (moved / sum(float(b.double().square().sum()) for b in wanted)) ** 0.5


# What each model's norms are already, by slabnorm's words, and how many of them say so.
SAME: dict[str, tuple[str, dict[str, int], int]] = {
    "ResNet": ("batch", {}, 6),
    "ConvNeXt": ("n c ... -> n ...", {}, 2),
    "ViT": ("layer", {}, 5),
    "BERT": ("layer", {}, 5),
    "Llama": ("rms", {}, 5),
    "Gemma": ("rms", {}, 5),
    "T5": ("rms", {}, 7),
    "PoolFormer": ("group", {"g": 1}, 4),
    "BiT": ("group", {"g": 4}, 7),
    "UNet of diffusers": ("group", {"g": 4}, 21),
    "UNet of MONAI": ("instance", {}, 3),
    "SegResNet of MONAI": ("group", {"g": 8}, 7),
}


@pytest.mark.parametrize("name", MODELS)
def test_convert_to_the_same(name: str) -> None:
    model, batch = build(name)
    wanted = evaluated(model, batch)
    to, sizes, count = SAME[name]
    second = name == "ConvNeXt"  # its other norms have the channels last
    report = sn.convert(
        model, to, where=lambda _, m: not second or getattr(m, "data_format", "") == "channels_first", **sizes
    )
    assert len(report.changed) == count, report
    assert not any("another function" in changed.note for changed in report.changed), report
    assert off(evaluated(model, batch), wanted) <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_convert_to_another(name: str) -> None:
    model, batch = build(name)
    wanted = evaluated(model, batch)
    to = "layer" if SAME[name][0] in ("rms", "group", "instance") else "rms"
    report = sn.convert(model, to, batch=batch)
    assert report.changed
    assert report.difference == pytest.approx(off(evaluated(model, batch), wanted), rel=1e-3)
    results(model.train(), batch)


@pytest.mark.parametrize("name", MODELS)
def test_fold(name: str) -> None:
    model, batch = build(name)
    wanted = evaluated(model, batch)
    report = sn.fold(model, batch=batch)
    assert len(report.changed) == (6 if name == "ResNet" else 0), report
    assert off(evaluated(model, batch), wanted) <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_freeze(name: str) -> None:
    model, batch = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kinds, asks = [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    report = sn.freeze(model, affine=True)
    model.train()
    for changed in report.changed:
        frozen = model.get_submodule(changed.names[0])
        assert not any(p.requires_grad for p in frozen.parameters(False))
    results(model, batch)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    sn.unfreeze(model)
    assert [type(m) for m in model.modules()] == kinds
    assert [p.requires_grad for p in model.parameters()] == asks
    assert all(module.training for module in model.modules())


def test_recalibrate() -> None:
    model, batch = build("ResNet")
    given: dict[str, Tensor] = {}
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    hooks = [
        m.register_forward_pre_hook(lambda _, x, name=name: given.update({name: x[0].double()}))
        for name, m in norms.items()
    ]
    results(model.train(), batch)
    for hook in hooks:
        hook.remove()
    report = sn.recalibrate(model, [batch])
    assert len(report.changed) == 6
    for name, norm in norms.items():
        torch.testing.assert_close(
            norm.running_mean.double(), given[name].mean((0, 2, 3)), rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(
            norm.running_var.double(), given[name].var((0, 2, 3)), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", [name for name in MODELS if name != "ResNet"])
def test_recalibrate_leaves_models_without_running_statistics(name: str) -> None:
    model, batch = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert (
        sn.recalibrate(model, [batch], call=lambda m, b: m(**b) if isinstance(b, dict) else m(*b)).changed
        == ()
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_norm_of_detr_is_recognised() -> None:
    library = pytest.importorskip("transformers.models.detr.modeling_detr")
    norm = randomised(library.DetrFrozenBatchNorm2d(6))
    fast = copy.deepcopy(norm)
    assert str(recognise(norm).computes) == "BatchNorm(fixed statistics)"
    sn.accelerate(fast, always=True)
    x = 3 + torch.randn(2, 6, 5, 4)
    scale = norm.weight.double() / (norm.running_var.double() + 1e-5).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    wanted = x.double() * scale[:, None, None] + shift[:, None, None]
    assert (fast(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
