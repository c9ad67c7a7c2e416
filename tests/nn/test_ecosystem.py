"""The named layers under tools that look for torch.nn's: found, counted, converted, frozen, filtered."""

from __future__ import annotations

import copy
import importlib
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.optim.swa_utils import AveragedModel, update_bn

import slabnorm as sn
from tests.cases import draw

pytestmark = pytest.mark.usefixtures("in_plain_torch")

LAYERS: list[tuple[sn.SlabNorm, type[nn.Module]]] = [
    (sn.BatchNorm(4), _BatchNorm),
    (sn.InstanceNorm(4), _InstanceNorm),
    (sn.GroupNorm(2, 4), nn.GroupNorm),
    (sn.LayerNorm(4), nn.LayerNorm),
    (sn.RMSNorm(4), nn.RMSNorm),
]


@pytest.mark.parametrize(("layer", "kind"), LAYERS, ids=lambda v: type(v).__name__)
def test_named_layers_are_instances_and_compute_nothing_of_torchs(
    layer: sn.SlabNorm, kind: type[nn.Module]
) -> None:
    for twin in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(twin, kind)
        assert isinstance(twin, sn.SlabNorm)
    assert not isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d)
    for name in ("__init__", "forward", "reset_parameters", "reset_running_stats", "extra_repr"):
        assert getattr(type(layer), name).__module__.startswith("slabnorm.")
    others = {other for _, other in LAYERS} - {kind}
    assert not isinstance(layer, tuple(others))
    assert not isinstance(sn.SlabNorm("n c -> c", c=3), _BatchNorm)


class Net(nn.Module):
    """Two batch norms and a layer norm, slabnorm's or torch's."""

    def __init__(self, ours: bool) -> None:
        super().__init__()
        batch: Any = sn.BatchNorm if ours else nn.BatchNorm2d
        self.conv, self.bn = nn.Conv2d(3, 4, 3), batch(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 5, 1), batch(5, momentum=0.3)
        self.ln = (sn.LayerNorm if ours else nn.LayerNorm)(5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn(self.conv(x)).relu()))
        return self.ln(y.mean((2, 3)))


def nets() -> tuple[Net, Net]:
    torch.manual_seed(0)
    theirs, ours = Net(False), Net(True)
    for parameter in theirs.parameters():
        with torch.no_grad():
            parameter.add_(0.2 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    mine, its = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(its)
    for key, value in mine.items():
        torch.testing.assert_close(value, its[key], rtol=1e-5, atol=1e-6)


def test_update_bn_recomputes_the_statistics_and_warns_of_nothing() -> None:
    ours, theirs = nets()
    batches = [draw((4, 3, 6, 6), seed=seed) + seed for seed in range(3)]
    for net in (ours, theirs):
        net(100 + batches[0])  # what is to be forgotten
        net.eval()
        update_bn(batches, net)
    assert_same(ours, theirs)
    assert [ours.bn.momentum, ours.bn2.momentum] == [0.1, 0.3]
    assert int(ours.bn2.num_batches_tracked) == 3
    assert not ours.training


@pytest.mark.parametrize("use_buffers", [True, False])
def test_averaged_models(use_buffers: bool) -> None:
    ours, theirs = nets()
    averages = [AveragedModel(net, use_buffers=use_buffers) for net in (ours, theirs)]
    for seed in range(2):
        for net, average in zip((ours, theirs), averages, strict=True):
            net(draw((4, 3, 6, 6), seed=seed))
            average.update_parameters(net)
    assert_same(*averages)
    averages[0].eval()(draw((4, 3, 6, 6)))


def test_convert_sync_batchnorm_takes_weights_statistics_and_mode_along() -> None:
    ours, _ = nets()
    ours(draw((4, 3, 6, 6)))
    ours.eval()
    want, state = ours(draw((4, 3, 6, 6), seed=1)), copy.deepcopy(ours.state_dict())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(ours)
    assert [type(converted.bn), type(converted.bn2)] == [nn.SyncBatchNorm] * 2
    assert (converted.bn2.momentum, converted.bn2.training) == (0.3, False)
    assert all(torch.equal(value, state[key]) for key, value in converted.state_dict().items())
    torch.testing.assert_close(converted(draw((4, 3, 6, 6), seed=1)), want, rtol=1e-5, atol=1e-6)


def test_fusion_into_a_convolution() -> None:
    ours, theirs = nets()
    for net in (ours, theirs):
        net(draw((4, 3, 6, 6)))
        net.eval()
    x = draw((4, 3, 6, 6), seed=1)
    fused = fuse_conv_bn_eval(ours.conv, ours.bn)
    torch.testing.assert_close(fused(x), theirs.bn(theirs.conv(x)), rtol=1e-5, atol=1e-5)


def test_fusion_as_fold_does_it() -> None:
    """torch's two functions give a layer of slabnorm's norm what `fold` gives it."""
    ours, _ = nets()
    ours(draw((4, 3, 6, 6)))
    line: Any = nn.Sequential(nn.Linear(3, 4), sn.BatchNorm(4))
    line(draw((9, 3)))
    ours.eval(), line.eval()
    want = [fuse_conv_bn_eval(ours.conv, ours.bn), fuse_conv_bn_eval(ours.conv2, ours.bn2)]
    want += [fuse_linear_bn_eval(*line)]  # type: ignore[list-item]
    assert len(sn.fold(ours).changed) == 2
    assert len(sn.fold(line, batch=draw((9, 3))).changed) == 1
    for mine, its in zip((ours.conv, ours.conv2, line[0]), want, strict=True):
        torch.testing.assert_close(mine.weight, its.weight, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(mine.bias, its.bias, rtol=1e-6, atol=1e-6)


def test_an_averaged_model_is_recomputed_by_update_bn_and_by_recalibrate() -> None:
    """Of one batch both take the same mean and variance, whoever computes the norm."""
    x, found = draw((4, 3, 6, 6)), []
    for net in nets():
        net.train()(draw((4, 3, 6, 6), seed=1))
        for recompute in (update_bn, lambda loader, model: sn.recalibrate(model, loader)):
            average = AveragedModel(net)
            average.update_parameters(net)
            recompute([x], average)
            assert int(average.module.bn.num_batches_tracked) == 1
            found.append(average)
    for average in found[1:]:
        assert_same(average, found[0])


def test_freezing_loops_and_filters_of_weight_decay_find_them() -> None:
    ours, theirs = nets()

    def found(net: nn.Module) -> tuple[list[str], list[str]]:
        frozen = [name for name, module in net.named_modules() if isinstance(module, _BatchNorm)]
        kept = [nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _BatchNorm, _InstanceNorm]  # as transformers asks
        decayed = [
            f"{name}.{key}"
            for name, module in net.named_modules()
            if not isinstance(module, tuple(kept))
            for key in module._parameters
        ]
        return frozen, decayed

    assert found(ours) == found(theirs)
    assert found(ours)[0] == ["bn", "bn2"]
    for net in (ours, theirs):
        net(draw((4, 3, 6, 6), seed=1))
    for module in ours.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    before = copy.deepcopy(ours.state_dict())
    for net in (ours, theirs):
        net(draw((4, 3, 6, 6)))  # trains the statistics of one of the two
        net.eval()
    assert torch.equal(ours.bn.running_var, before["bn.running_var"])
    assert not torch.equal(theirs.bn.running_var, before["bn.running_var"])


def test_torch_func_takes_running_statistics_out() -> None:
    ours, theirs = nets()
    x = draw((4, 3, 6, 6))
    for net in (ours, theirs):
        torch.func.replace_all_batch_norm_modules_(net)
        assert net.bn.running_mean is None
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_an_instance_norms_statistics_from_before_torch_0_4_are_explained() -> None:
    old = {"running_mean": torch.zeros(4), "running_var": torch.ones(4)}
    for layer in (sn.InstanceNorm(4), nn.InstanceNorm1d(4)):
        with pytest.raises(RuntimeError, match="set track_running_stats=True in InstanceNorm"):
            layer.load_state_dict(dict(old))


def test_accelerate_has_nothing_to_do_with_slabnorms_own_layers() -> None:
    class Own(sn.GroupNorm):
        pass

    model = nn.Sequential(*(copy.deepcopy(layer) for layer, _ in LAYERS), Own(2, 4), nn.LayerNorm(4))
    kinds = [type(layer) for layer in model]
    report = sn.accelerate(model)
    assert [norm.names for norm in report.replaced] == [("6",)]
    assert (report.left, report.already) == ((), 0)
    assert [type(layer) for layer in model[:6]] == kinds[:6]
    assert sn.accelerate(model).already == 1
    sn.restore(model)
    assert [type(layer) for layer in model] == kinds


def test_transformers_leaves_the_same_parameters_without_weight_decay() -> None:
    trainer = pytest.importorskip("transformers.trainer")
    layers = pytest.importorskip("transformers.pytorch_utils").ALL_LAYERNORM_LAYERS
    ours, theirs = nets()
    decayed = trainer.get_parameter_names(ours, layers)
    assert decayed == trainer.get_parameter_names(theirs, layers)
    assert "ln.weight" not in decayed
    assert "conv.weight" in decayed
    names = trainer.Trainer.get_decay_parameter_names
    before = names(None, theirs)
    sn.accelerate(theirs)
    assert names(None, theirs) == names(None, ours) == before


@pytest.mark.parametrize("which", ["accelerated", "slabnorm's"])
def test_fvcore_recomputes_precise_statistics(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `_BatchNorm`s it knows those of torch.nn alone; slabnorm's are made known to it in its own list."""
    precise = pytest.importorskip("fvcore.nn.precise_bn")
    ours, theirs = nets()
    if which == "accelerated":
        ours = copy.deepcopy(theirs)
        assert len(sn.accelerate(ours, always=True).replaced) == 3
    else:
        assert precise.get_bn_modules(ours) == []
        monkeypatch.setattr(precise, "BN_MODULE_TYPES", (*precise.BN_MODULE_TYPES, _BatchNorm))
    batches = [draw((size, 3, 6, 6), seed=size) + size for size in (4, 2, 6)]
    for net in (ours, theirs):
        net(100 + batches[0])  # what is to be forgotten
        precise.update_bn_stats(net, batches, 3)
    assert_same(*(nn.ModuleList([net.bn, net.bn2]) for net in (ours, theirs)))
    inputs = torch.cat([theirs.conv(batch) for batch in batches]).double()
    torch.testing.assert_close(ours.bn.running_mean.double(), inputs.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    assert [ours.bn.momentum, ours.bn2.momentum] == [0.1, 0.3]


def _timm() -> Any:
    """Return timm's layers, where timm can be imported: it needs a torchvision of torch's own build."""
    try:
        return importlib.import_module("timm.layers")
    except Exception as error:  # a torchvision of another build raises RuntimeError
        pytest.skip(f"timm cannot be imported: {type(error).__name__}: {error}")


def test_timm_freezes_batch_norm() -> None:
    layers = _timm()
    _, theirs = nets()
    theirs.bn2 = copy_values(theirs.bn2, layers.BatchNormAct2d(5))
    ours = copy.deepcopy(theirs)
    report = sn.accelerate(ours, always=True)
    assert [norm.became for norm in report.replaced] == ["BatchNorm + relu", "BatchNorm + relu", "LayerNorm"]
    for net in (ours, theirs):
        net(draw((4, 3, 6, 6), seed=1))
    frozen = [layers.freeze_batch_norm_2d(net) for net in (ours, theirs)]
    assert [type(net.bn) for net in frozen] == [type(frozen[1].bn)] * 2
    assert [type(net.bn2) for net in frozen] == [layers.FrozenBatchNormAct2d] * 2
    assert_same(*frozen)
    x = draw((4, 3, 6, 6), seed=2)
    torch.testing.assert_close(frozen[0](x), frozen[1](x), rtol=1e-5, atol=1e-5)
    # Frozen ones are recognised by their results.
    assert str(sn.accelerate(frozen[0], always=True)).count("recognised by its results") == 2
    torch.testing.assert_close(frozen[0](x), frozen[1](x), rtol=1e-5, atol=1e-5)


def copy_values(source: nn.Module, target: nn.Module) -> nn.Module:
    target.load_state_dict(source.state_dict())
    return target


@pytest.mark.filterwarnings("ignore")  # what the library warns of
def test_lightnings_stochastic_weight_averaging_recomputes_the_statistics() -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Task(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return (self.net(batch) - batch.mean((2, 3)).sum(1, keepdim=True)).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05)

    batches = [draw((4, 3, 6, 6), seed=seed) + seed for seed in range(3)]
    tasks = [Task(net) for net in nets()]
    for task in tasks:
        averaging = lightning.callbacks.StochasticWeightAveraging(0.01, swa_epoch_start=1, annealing_epochs=1)
        trainer = lightning.Trainer(
            max_epochs=4, accelerator="cpu", callbacks=[averaging], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(task, torch.utils.data.DataLoader(batches, batch_size=None))
    assert_same(*tasks)
    ours, theirs = (task.net for task in tasks)
    assert ours.bn.momentum == theirs.bn.momentum == 0.1
    assert int(ours.bn.num_batches_tracked) == 3  # counted anew, under the averaged weights
