"""An accelerated model in the places models go: files, copies, compilers, checkpoints, processes."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import slabnorm as sn
from slabnorm.surgery import norms
from tests.cases import draw
from tests.surgery.nets import ResNet, assert_close, build, step, twins


def _accelerated(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    model, x = build(name)
    fast, plain = twins(model)
    sn.accelerate(fast, always=True)
    return fast, plain, x


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": _saved}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", ["resnet", "named sequential", "post-norm"])
def test_copies(name: str, way: str) -> None:
    fast, plain, x = _accelerated(name)
    fast(x), plain(x)
    twin = COPIES[way](fast)
    assert [type(m) for m in twin.modules()] == [type(m) for m in fast.modules()]
    mine, theirs = ({t.data_ptr() for t in m.state_dict().values()} for m in (twin, fast))
    assert not mine & theirs
    assert_close(step(twin, x), step(fast, x), 0)
    assert_close(step(twin, x), step(fast, x), 0)
    sn.restore(twin)
    assert [type(m) for m in twin.modules()] == [type(m) for m in plain.modules()]
    plain.load_state_dict(fast.state_dict())
    assert_close(step(twin, x), step(plain, x), 0)


@pytest.mark.parametrize("name", ["resnet", "post-norm"])
def test_checkpoints_both_ways(name: str) -> None:
    fast, plain, x = _accelerated(name)
    for _ in range(2):
        fast(x)
    plain.load_state_dict(fast.state_dict())
    fast.eval(), plain.eval()
    assert_close(step(fast, x), step(plain, x))
    other = copy.deepcopy(fast)
    other.load_state_dict(plain.state_dict())
    assert_close(step(other, x), step(fast, x), 0)


@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_compile(name: str) -> None:
    fast, plain, x = _accelerated(name)
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    for _ in range(2):
        y = compiled(x)
        assert (y - plain(x)).abs().max() <= 1e-4 * y.abs().max()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[key], value, rtol=1e-4, atol=1e-5)


def test_functional_call() -> None:
    fast, plain, x = _accelerated("resnet")
    state = {key: value.clone() for key, value in plain.state_dict().items()}
    state["layer1.bn1.weight"] = state["layer1.bn1.weight"] + 1
    got, want = functional_call(fast, dict(state), x), functional_call(plain, dict(state), x)
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    """Recomputed blocks give the same gradients; their batches count once."""

    class Checkpointed(ResNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = checkpoint(self.layer1, self.relu(self.bn1(self.conv1(x))), use_reentrant=reentrant)
            return self.fc(self.layer2(x).mean((2, 3)))

    torch.manual_seed(0)
    fast, once = twins(Checkpointed())
    assert len(sn.accelerate(fast, always=True).fused) == 5
    once.__class__ = ResNet
    x = torch.randn(4, 3, 8, 8)
    assert_close(step(fast, x), step(once, x))
    assert int(fast.layer1.bn1.num_batches_tracked) == 1


def test_autocast() -> None:
    fast, plain, x = _accelerated("resnet")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = fast(x), plain(x)
    assert got.dtype == want.dtype
    assert (got - want).abs().max() <= 5e-2 * want.abs().max()


def test_autocast_of_a_gpu_widens_group_and_layer_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch has it there: computed in float32, and float32 comes out."""
    monkeypatch.setattr(norms, "_widened", lambda x: x.dtype == torch.bfloat16)
    x = draw((2, 8, 5, 5), dtype=torch.bfloat16)
    plain = nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU(), nn.LayerNorm((5, 5)))
    fast = copy.deepcopy(plain)
    sn.accelerate(fast, always=True)
    got, want = fast(x), plain(x.float())
    assert got.dtype == torch.float32
    assert (got - want).abs().max() <= 1e-5


def test_module_lists_and_initialisers_still_find_norms() -> None:
    """Code that looks for torch's classes works on an accelerated model as before."""
    fast, _, x = _accelerated("resnet")
    found = [m for m in fast.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(found) == 6
    for norm in found:
        nn.init.zeros_(norm.weight)
        norm.reset_running_stats()
    batches = [x, x + 1]
    torch.optim.swa_utils.update_bn(batches, fast)
    assert all(int(norm.num_batches_tracked) == 2 for norm in found)
    changed = nn.SyncBatchNorm.convert_sync_batchnorm(fast)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in changed.modules()) == 6
    changed.eval()(x)  # the call sites stay, and take any norm


def test_data_parallel(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        fast, plain, x = _accelerated("resnet")
        wrapped = nn.parallel.DistributedDataParallel(fast)
        got, want = step(wrapped, x), step(plain, x)
        assert_close({key.replace("module.", ""): value for key, value in got.items()}, want)
        assert not sn.accelerate(wrapped, always=True).replaced
        sn.restore(wrapped)
        assert type(fast.bn1) is nn.BatchNorm2d
    finally:
        dist.destroy_process_group()
