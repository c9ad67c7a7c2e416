"""check(): what it measures, and that the model stays as it is."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import slabnorm as sn
from slabnorm.doctor.probes import examine
from slabnorm.errors import ExtraError, ModelError, SlabError

pytestmark = pytest.mark.usefixtures("in_plain_torch")
RNG = np.random.default_rng(0)


def network(norm: type[nn.Module] = nn.BatchNorm1d) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8, bias=False), norm(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def x(samples: int = 64) -> Tensor:
    return torch.randn(samples, 4, generator=torch.Generator().manual_seed(3))


def codes(record: sn.doctor.check) -> list[int]:
    return [finding.code for finding in record.findings]


# The model stays as it is.


def test_nothing_of_the_model_changes():
    model = network()
    model(x()).sum().backward()
    model[1].eval()
    model[0].register_forward_hook(lambda module, given, output: None)
    before, gradients = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    batch = x()
    sn.check(model, batch)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True))
    assert [module.training for module in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert torch.equal(batch, x())
    assert not batch.requires_grad


def test_a_norm_that_is_frozen_is_no_norm_that_was_left_in_eval_mode():
    model = network()
    model[1].eval()
    assert 102 in codes(sn.check(model, x()))
    model[1].train()
    sn.freeze(model)
    assert codes(sn.check(model, x())) == []
    assert [layer.frozen for layer in examine(model, x()).norms] == [True]


def test_random_numbers_stay_as_they_are():
    model = network()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x) + float(np.random.rand()) + random.random()

    sn.check(nn.Sequential(Noisy(), model), x())
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()) == expected


def test_a_model_that_raises_leaves_no_hooks():
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            raise ValueError(f"no {tuple(self.inner(x).shape)}")

    model = Breaks()
    with pytest.raises(ModelError, match="does not run on the batch") as caught:
        sn.check(model, x())
    assert "ValueError: no (64, 2)" in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_what_cannot_be_copied_is_said():
    model = network()
    model.handle = (number for number in range(3))
    with pytest.raises(ModelError, match="cannot be copied"):
        sn.check(model, x())
    with pytest.raises(ModelError, match=r"needs a torch\.nn\.Module"):
        sn.check("model", x())


def test_a_model_that_runs_in_train_mode_alone_is_noted():
    class Trains(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert self.training, "only to train"
            return x

    record = sn.check(nn.Sequential(Trains(), network()), x())
    assert any("does not run in eval mode: AssertionError: only to train" in note for note in record.notes)


# What is measured.


def test_distributions_are_those_of_numpy():
    model, batch = network(), x()
    record = examine(model, batch)
    given = model[0](batch).detach().double().numpy()
    seen = record.layer("1").input
    np.testing.assert_allclose(seen.mean, given.mean(0), atol=1e-6)
    np.testing.assert_allclose(seen.var, given.var(0), rtol=1e-5)
    assert (seen.min, seen.max) == (given.min(), given.max())
    assert (seen.count, seen.samples, seen.nonfinite) == (64, 64, 0)
    assert record.layer("1").before == "0"
    assert record.layer("1").alone
    assert record.layer("4").before == "3"
    assert record.samples == 64
    assert [layer.name for layer in record.layers] == ["0", "1", "2", "3", "4"]


def test_targets_and_times_are_no_features():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
            return self.net(input=x) * time[:, None] - labels

    model = Net()
    record = sn.check(model, {"x": x(), "time": torch.full((64,), 999.0), "labels": 1e4 * torch.ones(64, 2)})
    assert record.healthy, record
    assert codes(sn.check(model, (300 * x(), torch.ones(64), torch.ones(64, 2))))[0] == 401


def test_values_that_are_not_finite_are_counted_and_left_out():
    batch = x()
    batch[0, 0], batch[1, 2] = math.nan, math.inf
    seen = examine(nn.Sequential(nn.Linear(4, 2)), batch).inputs[0]
    assert seen.nonfinite == 2
    assert math.isfinite(sum(seen.mean))


def test_images_have_channels_second_and_sequences_last():
    images = torch.from_numpy(RNG.normal(size=(8, 3, 5, 6)).astype("float32"))
    seen = examine(nn.Conv2d(3, 4, 3), images).inputs[0]
    np.testing.assert_allclose(seen.mean, images.double().mean((0, 2, 3)), atol=1e-6)
    assert seen.count == 8 * 5 * 6
    words = torch.from_numpy(RNG.normal(size=(8, 5, 3)).astype("float32"))
    seen = examine(nn.Linear(3, 2), words).inputs[0]
    np.testing.assert_allclose(seen.mean, words.double().mean((0, 1)), atol=1e-6)


def test_the_gap_is_that_of_the_layer():
    model = network()
    with torch.no_grad():
        model[1].running_mean.fill_(0.3), model[1].running_var.fill_(2.0), model[1].weight.fill_(1.5)
    given = model[0](x()).detach()
    trained, evaluated = copy.deepcopy(model[1]).train()(given), copy.deepcopy(model[1]).eval()(given)
    expected = float((evaluated - trained).detach().norm() / trained.detach().norm())
    assert examine(model, x()).layer("1").norm.gap == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("norm", "shape", "elements"),
    [
        (nn.BatchNorm2d(8), (6, 8, 4, 5), 120),
        (nn.InstanceNorm2d(8), (6, 8, 4, 5), 20),
        (nn.GroupNorm(2, 8), (6, 8, 4, 5), 80),
        (nn.LayerNorm((4, 5)), (6, 8, 4, 5), 20),
        (nn.RMSNorm(5), (6, 8, 4, 5), 5),
        (sn.BatchNorm(8), (6, 8, 4, 5), 120),
        (sn.InstanceNorm(8), (6, 8, 4, 5), 20),
        (sn.GroupNorm(2, 8), (6, 8, 4, 5), 80),
        (sn.LayerNorm((4, 5)), (6, 8, 4, 5), 20),
        (sn.SlabNorm("n c h w -> n h", affine=""), (6, 8, 4, 5), 40),
    ],
    ids=lambda value: type(value).__module__.split(".")[0] + type(value).__name__
    if isinstance(value, nn.Module) else None,
)  # fmt: skip
def test_elements_of_a_slab_are_counted(norm, shape, elements):
    record = examine(nn.Sequential(norm), torch.from_numpy(RNG.normal(size=shape).astype("float32")))
    assert record.layer("0").norm.elements == elements


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (nn.BatchNorm1d, sn.BatchNorm),
        (nn.LayerNorm, sn.LayerNorm),
        (nn.RMSNorm, sn.RMSNorm),
        (lambda width: nn.GroupNorm(2, width), lambda width: sn.GroupNorm(2, width)),
    ],
    ids=["batch", "layer", "rms", "group"],
)
def test_our_norms_are_looked_at_like_those_of_torch(theirs, ours):
    for change in ({}, {"momentum": 0.99}, {"eps": 1e-30}):
        records = []
        for norm in (theirs, ours):
            model = network(norm)
            for name, value in change.items():
                if hasattr(model[1], name):
                    setattr(model[1], name, value)
            records.append(
                sn.check(model, 300 * x(), torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1))
            )
        assert codes(records[0]) == codes(records[1])
        assert [f.numbers for f in records[0].findings] == [
            tuple((name, pytest.approx(value, rel=1e-3)) for name, value in f.numbers)
            for f in records[1].findings
        ]


def test_accelerated_models_are_looked_at_like_the_original():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.99), nn.ReLU())
    batch = torch.from_numpy(RNG.normal(size=(16, 3, 8, 8)).astype("float32"))
    before = codes(sn.check(model, batch))
    sn.accelerate(model)
    assert codes(sn.check(model, batch)) == before == [204, 301]


def test_norms_of_ones_own_are_known_by_what_they_compute():
    class Root(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    class NoRMSNorm(Root):
        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x

    assert examine(network(NoRMSNorm), x()).norms == []
    model = network(Root)
    record = examine(model, x(), torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1))
    norm = record.layer("1").norm
    assert (norm.family, norm.eps, norm.elements, norm.centers) == ("rms", 1e-6, 8, False)
    assert record.decayed == ["1"]


def test_norms_of_transformers_are_known_with_their_weights():
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    gemma = pytest.importorskip("transformers.models.gemma.modeling_gemma")
    for norm, eps in ((t5.T5LayerNorm(8, eps=1e-5), 1e-5), (gemma.GemmaRMSNorm(8), 1e-6)):
        model = network(lambda width, norm=norm: norm)
        found = examine(model, x()).layer("1").norm
        assert (found.family, found.eps, found.elements, found.weight) == ("rms", eps, 8, [1.0] * 8)
        assert codes(sn.check(model, x())) == []
    assert norm.weight.tolist() == [0.0] * 8  # Gemma's, to which 1 is added


def test_batch_norms_of_ones_own_pool_samples():
    class Own(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.gain, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

        def forward(self, x: Tensor) -> Tensor:
            centred = x - x.mean(0)
            return centred / (centred.square().mean(0) + 1e-5).sqrt() * self.gain + self.shift

    record = examine(network(Own), x())
    norm = record.layer("1").norm
    assert (norm.family, norm.pools_samples, norm.tracks, norm.elements) == ("batch", True, False, 64)
    assert 104 in codes(sn.check(network(Own), x()))


# Ways in.


def test_batches_are_tensors_tuples_or_dicts():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(a + b)}

    model = Sum()
    records = [examine(model, batch) for batch in ((x(), x()), {"a": x(), "b": x()})]
    assert records[0].as_dict() == records[1].as_dict()
    assert len(records[0].inputs) == 2
    assert records[0].mates[""] == pytest.approx(0.0, abs=1e-6)


def test_decay_of_norms_is_found_by_group():
    model = network()
    norm, rest = list(model[1].parameters()), [p for p in model.parameters() if p.dim() == 2]
    all_of_it = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    apart = torch.optim.AdamW([{"params": rest}, {"params": norm, "weight_decay": 0.0}], weight_decay=0.01)
    assert codes(sn.check(model, x(), all_of_it)) == [302]
    assert codes(sn.check(model, x(), apart)) == []


def test_a_module_in_two_places_is_one_layer():
    model = network()
    model.append(nn.Linear(2, 8, bias=False)).append(model[1])
    record = examine(model, x())
    (norm,) = record.norms
    assert (norm.calls, norm.norm.updates) == (2, 2)
    found = sn.check(model, x()).findings[0]
    assert found.code == 205
    assert "calls it 2 times" in found.text


def test_what_is_added_between_layers_keeps_a_bias_alive():
    class Block(nn.Module):
        def __init__(self, joined: bool) -> None:
            super().__init__()
            self.linear, self.norm, self.joined = nn.Linear(4, 4), nn.BatchNorm1d(4), joined

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return self.norm(y) + y if self.joined else self.norm(y)

    assert codes(sn.check(Block(joined=False), x())) == [301]
    assert codes(sn.check(Block(joined=True), x())) == []  # the bias also goes around the norm


def test_a_bias_in_front_of_fixed_statistics_has_an_effect_and_is_not_reported():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)).double()
    batch = x().double()
    for _ in range(50):
        model(batch)
    assert codes(sn.check(model, batch)) == [301]
    sn.freeze(model, affine=True)
    assert codes(sn.check(model, batch)) == []
    # y = weight (W x + b - mean) / sqrt(var + eps) + bias, whose gradient by b is not 0.
    model(batch).sum().backward()
    norm, given = model[1], batch @ model[0].weight.T + model[0].bias
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    passed = (scale * (given - norm.running_mean) + norm.bias > 0).double()
    expected = (passed * scale * model[3].weight).sum(0)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(model[0].bias.grad, expected)


def test_a_layer_of_two_norms_is_not_reported_whether_or_not_the_graph_knows_both():
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.a, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            with torch.no_grad():
                other = self.b(y)
            return self.a(y) + other

    assert codes(sn.check(Twins(), x())) == []


def test_what_is_added_between_norms_keeps_the_first_alive():
    class Block(nn.Module):
        def __init__(self, joined: bool) -> None:
            super().__init__()
            self.first, self.second, self.joined = nn.BatchNorm1d(4), nn.BatchNorm1d(4), joined

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y) + y if self.joined else self.second(y)

    for joined in (False, True):
        model = Block(joined)
        model(x()).square().sum().backward()
        assert (model.first.weight.grad.abs().max() < 0.01) == (not joined)  # but for eps
        assert codes(sn.check(model, x())) == ([] if joined else [304])


def test_functions_are_seen_by_what_they_do():
    class Pools(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.batch_norm(x, None, None, training=True)

    (finding,) = sn.check(nn.Sequential(nn.Linear(4, 4), Pools(), nn.Linear(4, 2)), x()).findings
    assert (finding.code, finding.layer) == (104, "1")


def test_noise_is_no_dependence_on_other_samples():
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    record = sn.check(nn.Sequential(Noise(), nn.Linear(4, 2)), x())
    assert record.healthy
    assert any("are random" in note for note in record.notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rounding_is_no_dependence_on_other_samples(dtype):
    layers = [nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(6)]
    tokens = torch.from_numpy(RNG.normal(size=(16, 10, 32))).to(dtype)
    assert 104 not in codes(sn.check(nn.Sequential(*layers).to(dtype), tokens))
    pooling = nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8, track_running_stats=False)).to(dtype)
    assert 104 in codes(sn.check(pooling, tokens[:, 0]))


def test_a_model_without_norms_gets_an_answer():
    record = sn.check(nn.Linear(4, 2), x())
    assert record.healthy
    assert record.norms == 0
    assert record.verdict == "Linear, with no norm layers: nothing found."
    assert any("no norm layers that are known" in note for note in record.notes)
    assert codes(sn.check(nn.Linear(4, 2), 300 * x())) == [401]


def test_assert_healthy_raises_what_was_found():
    bad = network()
    bad[1].momentum = 0.99
    sn.assert_healthy(network(), x())
    with pytest.raises(AssertionError, match="204 warning"):
        sn.assert_healthy(bad, x())
    sn.assert_healthy(bad, x(), allow=(204,))
    train = 5 + 2 * x(500)
    sn.assert_healthy(nn.Linear(4, 2), train[:64], reference=train)
    with pytest.raises(AssertionError, match="408 "):
        sn.assert_healthy(nn.Linear(4, 2), train[:64] + 3, reference=train)


# Inputs compared with a reference.


def test_inputs_are_compared_with_a_reference():
    train = torch.from_numpy(RNG.normal(5.0, 2.0, size=(500, 4)).astype("float32"))
    model, batch = nn.Linear(4, 2), train[:64]
    norm = sn.fit(train, split="train")
    assert codes(sn.check(model, batch, reference=norm)) == []
    assert codes(sn.check(model, batch, reference=train)) == []  # that it overlaps is no finding here
    moved = sn.check(model, batch + 3, reference=norm)
    assert codes(moved)[0] == 408
    assert "the mean of feature" in moved.findings[0].text
    assert dict(moved.findings[0].numbers)["shift"] > 1
    assert codes(sn.check(model, norm(batch), reference=norm)) == [402]
    assert codes(sn.check(model, batch + 3)) == []  # without a reference nobody can know


def test_without_scipy_inputs_are_not_compared(monkeypatch):
    def missing(*given: object) -> None:
        raise ExtraError("Audit needs the package scipy.stats", "", "pip install 'slabnorm[study]'")

    monkeypatch.setattr("slabnorm.doctor.reference.audit", missing)
    record = sn.check(nn.Linear(4, 2), x(), reference=sn.fit(x(), split="train"))
    assert record.healthy
    assert any("were not compared" in note and "scipy" in note for note in record.notes)


def test_an_input_norm_in_the_model_is_a_reference():
    train = torch.from_numpy(RNG.normal(5.0, 2.0, size=(500, 4)).astype("float32"))
    model = nn.Sequential(sn.fit(train, split="train"), nn.Linear(4, 2))
    assert codes(sn.check(model, train[:64])) == []
    found = sn.check(model, model[0](train[:64])).findings
    assert [(finding.code, finding.layer) for finding in found] == [(402, "0")]


def test_a_reference_of_other_features_is_noted():
    norm = sn.fit(torch.from_numpy(RNG.normal(size=(50, 3))), split="train")
    record = sn.check(nn.Linear(4, 2), x(), reference=norm)
    assert record.healthy
    assert any("do not compare" in note for note in record.notes)
    with pytest.raises(SlabError):
        sn.check(nn.Linear(4, 2), x(), reference="no such file.npy")


# Healthy architectures have no warning.


def _trained(model: nn.Module, batch: Tensor, count: int = 25) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with sn.watch(model, every=5) as seen:
        for _ in range(count):
            optimizer.zero_grad()
            outputs = model(batch)
            outputs.square().mean().backward()
            optimizer.step()
    assert seen.healthy, seen
    return model


def test_a_resnet_is_healthy():
    from benchmarks.networks import BasicBlock, ResNet18

    model = ResNet18()
    model.conv1, model.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
    model.blocks, model.fc = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 16, 2)), nn.Linear(16, 10)
    batch = torch.from_numpy(RNG.normal(size=(32, 3, 8, 8)).astype("float32"))
    assert sn.check(model, batch).healthy
    _trained(model, batch)
    for mode in (True, False):
        record = sn.check(model.train(mode), batch)
        assert record.healthy, record


def test_a_unet_is_healthy_unless_its_groups_are_channels():
    from benchmarks.networks import UNet

    batch = torch.from_numpy(RNG.normal(size=(4, 3, 8, 8)).astype("float32"))
    record = sn.check(_trained(UNet(64), batch, count=3), batch)
    assert record.healthy, record
    assert set(codes(sn.check(UNet(32), batch))) == {305}  # 32 groups of its 32 channels: instance norm


def test_a_transformer_is_healthy():
    from benchmarks.networks import Transformer

    words = torch.from_numpy(RNG.integers(0, 20, size=(8, 12)))
    model = _trained(Transformer(20, 12, width=32, depth=3), words)
    for mode in (True, False):
        record = sn.check(model.train(mode), words)
        assert record.healthy, record


HUGGING_FACE = {
    "resnet": ("ResNetForImageClassification", "ResNetConfig", "pixel_values",
               {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", "pixel_values",
                 {"hidden_sizes": [16, 32], "depths": [1, 2], "num_stages": 2}),
    "vit": ("ViTForImageClassification", "ViTConfig", "pixel_values",
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
             "image_size": 16, "patch_size": 8}),
    "clip": ("CLIPForImageClassification", "CLIPConfig", "pixel_values",
             {"vision_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                                "intermediate_size": 64, "image_size": 16, "patch_size": 8}}),
    "bert": ("BertForSequenceClassification", "BertConfig", "input_ids",
             {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "intermediate_size": 64}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", "input_ids",
              {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
               "intermediate_size": 64}),
}  # fmt: skip


@pytest.mark.filterwarnings("default")
def test_a_unet_of_diffusers_is_healthy():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(16, 32), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ).train()  # fmt: skip
    clean = torch.from_numpy(RNG.normal(size=(8, 3, 8, 8)).astype("float32"))
    noise = torch.from_numpy(RNG.normal(size=(8, 3, 8, 8)).astype("float32"))
    batch = {"sample": (clean + noise) / 2**0.5, "timestep": torch.arange(0, 800, 100)}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with sn.watch(model, every=3) as seen:
        for _ in range(6):
            optimizer.zero_grad()
            (model(**batch).sample - noise).square().mean().backward()
            optimizer.step()
    record = sn.check(model, batch)
    assert seen.healthy, seen
    assert record.healthy, record
    assert record.norms > 10


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_models_of_transformers_are_healthy(name):
    transformers = pytest.importorskip("transformers")
    model_of, config_of, key, sizes = HUGGING_FACE[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_of)(getattr(transformers, config_of)(**sizes)).train()
    if key == "pixel_values":
        batch = {key: torch.from_numpy(RNG.normal(size=(32, 3, 16, 16)).astype("float32"))}
    else:
        batch = {key: torch.from_numpy(RNG.integers(0, 50, size=(16, 10)))}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with sn.watch(model, every=5) as seen:
        for _ in range(25):
            optimizer.zero_grad()
            model(**batch).logits.square().mean().backward()
            optimizer.step()
    record = sn.check(model, batch)
    assert seen.healthy, seen
    assert record.healthy, record
    assert record.norms > 0
    assert sn.check(model.eval(), batch).healthy


def test_lazy_layers_need_their_sizes_first():
    model, x = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d()), torch.randn(16, 4)
    for look in (sn.check, sn.fixes):
        with pytest.raises(ModelError, match="lazy layers that have no sizes yet"):
            look(model, x)
    model(x)
    assert sn.check(model, x).norms == 1
