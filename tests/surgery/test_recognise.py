"""Norms of other classes: recognised by their results, computed by slabnorm, and left where they differ."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import slabnorm as sn
from slabnorm.kernels import using
from slabnorm.surgery import recognise as recognition
from slabnorm.surgery.recognise import recognise
from tests.surgery import foreign
from tests.surgery.nets import assert_close, step

C = 6
ROWS, IMAGES = (3, 5, C), (4, C, 5, 3)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def _per_channel(t: Tensor) -> Tensor:
    return t.reshape(1, -1, 1, 1)


def _normal(x: Tensor, dims: tuple[int, ...], weight: Any = 1.0, bias: Any = 0.0) -> Tensor:
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(dims, keepdim=True) + 1e-5).sqrt() * weight + bias


def _channels(x: Tensor, t: dict[str, Tensor], dims: tuple[int, ...], groups: int = 1) -> Tensor:
    parts = x.reshape(x.shape[0], groups, -1, *x.shape[2:]) if groups > 1 else x
    y = _normal(parts, tuple(d + 1 for d in dims) if groups > 1 else dims).reshape(x.shape)
    return y * _per_channel(t["weight"]) + _per_channel(t["bias"])


def _frozen(x: Tensor, t: dict[str, Tensor]) -> Tensor:
    mean, var, weight, bias = (_per_channel(t[k]) for k in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


# Each with its input, how it is called, and its formula in train mode.
Formula = Callable[[Tensor, dict[str, Tensor]], Tensor]
NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, Formula]] = {
    "Llama": (lambda: foreign.LlamaRMSNorm(C), ROWS, "RMSNorm", lambda x, t: _rms(x, t["weight"])),
    "T5": (lambda: foreign.T5LayerNorm(C), ROWS, "RMSNorm", lambda x, t: _rms(x, t["weight"])),
    "Gemma": (
        lambda: foreign.GemmaRMSNorm(C),
        ROWS,
        "RMSNorm(weight + 1)",
        lambda x, t: _rms(x, 1 + t["weight"]),
    ),
    "torchvision's frozen": (
        lambda: foreign.FrozenBatchNorm2d(C),
        IMAGES,
        "BatchNorm(fixed statistics)",
        _frozen,
    ),
    "DETR's frozen": (
        lambda: foreign.DetrFrozenBatchNorm2d(C),
        IMAGES,
        "BatchNorm(fixed statistics)",
        _frozen,
    ),
    "PoolFormer": (
        lambda: foreign.PoolFormerGroupNorm(C),
        IMAGES,
        "GroupNorm(1 group)",
        lambda x, t: _channels(x, t, (1, 2, 3)),
    ),
    "BiT": (
        lambda: foreign.BitGroupNormActivation(C),
        IMAGES,
        "GroupNorm(2 groups)",
        lambda x, t: _channels(x, t, (1, 2, 3), 2).clamp(min=0),
    ),
    "timm's LayerNorm2d": (
        lambda: foreign.LayerNorm2d(C),
        IMAGES,
        "LayerNorm(over channels)",
        lambda x, t: _channels(x, t, (1,)),
    ),
    "timm's BatchNormAct2d": (
        lambda: foreign.BatchNormAct2d(C),
        IMAGES,
        "BatchNorm",
        lambda x, t: _channels(x, t, (0, 2, 3)).clamp(min=0),
    ),
    "another activation": (
        lambda: foreign.BatchNormAct2d(C, nn.Softsign()),
        IMAGES,
        "BatchNorm",
        lambda x, t: nn.functional.softsign(_channels(x, t, (0, 2, 3))),
    ),
    "super-resolution": (
        lambda: foreign.ChannelNorm(C),
        IMAGES,
        "LayerNorm(over channels)",
        lambda x, t: _normal(x, (1,), t["g"], t["b"]),
    ),
    "OLMo": (lambda: foreign.OlmoLayerNorm(C), ROWS, "LayerNorm", lambda x, t: _normal(x, (-1,))),
}


def twins(name: str) -> tuple[Any, Any, Tensor]:
    """Return an adopted module and its like, and an input with means far from 0."""
    make, shape, _, _ = NORMS[name]
    plain = foreign.randomised(make())
    fast = copy.deepcopy(plain)
    report = sn.accelerate(fast, always=True)
    assert len(report.replaced) == 1
    generator = torch.Generator().manual_seed(1)
    return fast, plain, 3 + 2 * torch.randn(shape, generator=generator)


def by_slabnorm(y: Tensor) -> bool:
    """Whether slabnorm computed a result; its backward may stand behind that of an activation."""
    nodes: list[Any] = [y.grad_fn]
    for _ in range(3):
        nodes += [below for node in nodes if node is not None for below, _ in node.next_functions[:1]]
    return any(type(node).__name__ == "_NormalizeBackward" for node in nodes)


@pytest.mark.parametrize("name", NORMS)
def test_recognised_and_computed_by_its_formula(name: str) -> None:
    make, _, words, formula = NORMS[name]
    found = recognise(make())
    assert found.reason == ""
    assert str(found.computes) == words
    fast, plain, x = twins(name)
    kind = type(plain)
    assert isinstance(fast, kind)
    assert type(fast).__name__ == kind.__name__
    tensors = {key: t.double() for key, t in fast.state_dict().items()}
    leaves = {key: tensors[key].requires_grad_() for key, _ in fast.named_parameters()}
    wide = x.double().requires_grad_()
    x.requires_grad_()
    y, wanted = fast(x), formula(wide, tensors)
    assert by_slabnorm(y)
    direction = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    got = torch.autograd.grad(y, [x, *fast.parameters()], direction)
    want = torch.autograd.grad(wanted, [wide, *leaves.values()], direction.double())
    for a, b in zip((y, *got), (wanted, *want), strict=True):
        assert (a - b).abs().max() <= 3e-6 * b.abs().max()
    assert (y - plain(x)).abs().max() <= 3e-6 * y.abs().max()


@pytest.mark.parametrize("name", NORMS)
def test_training_evaluation_and_the_way_back(name: str) -> None:
    fast, plain, x = twins(name)
    assert list(fast.state_dict()) == list(plain.state_dict())
    for _ in range(3):
        got, want = ({**step(m, x), "d ": x} for m in (fast, plain))
        assert_close(got, want)
        with torch.no_grad():
            for m in (fast, plain):
                for p in m.parameters():
                    p.sub_(0.1 * p.grad)
    fast.eval(), plain.eval()
    assert_close({**step(fast, x), "d ": x}, {**step(plain, x), "d ": x})
    for key, t in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[key], t, rtol=1e-5, atol=1e-5)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(twin) is type(fast)
        assert torch.equal(twin(x), fast(x))
        assert by_slabnorm(twin(x.clone().requires_grad_()))
    sn.restore(fast)
    assert type(fast) is type(plain)
    assert list(vars(fast)) == list(vars(plain))
    plain.load_state_dict(fast.state_dict())
    assert torch.equal(fast(x), plain(x))


def test_what_is_said_of_it() -> None:
    gemma = recognise(foreign.GemmaRMSNorm(C, 1e-4)).computes
    assert gemma is not None
    assert (gemma.weight, gemma.shift, gemma.eps_name, gemma.eps) == ("weight", 1, "eps", 1e-4)
    detr = recognise(foreign.DetrFrozenBatchNorm2d(C)).computes
    assert detr is not None
    assert (detr.mean, detr.var, detr.eps_name, detr.eps) == ("running_mean", "running_var", None, 1e-5)
    batch = recognise(foreign.BatchNormAct2d(C)).computes
    assert batch is not None
    assert (batch.momentum_name, batch.momentum, batch.counter) == ("momentum", 0.1, "num_batches_tracked")
    assert (batch.source, batch.after) == ("running", "act")


def test_names_mean_nothing() -> None:
    """Roles follow from what is computed, not from what things are called."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.gain = nn.Parameter(torch.ones(C)), nn.Parameter(torch.ones(C))
            self.weight_decay, self.tiny = 1e-5, 1e-5

        def forward(self, x: Tensor) -> Tensor:
            x = x - x.mean(-1, keepdim=True)
            return self.bias * x / (x.square().mean(-1, keepdim=True) + self.tiny).sqrt() + self.gain

    found = recognise(Odd()).computes
    assert found is not None
    assert (found.layer, found.weight, found.bias, found.eps_name) == ("LayerNorm", "bias", "gain", "tiny")


IMPOSTORS = [
    (
        foreign.CancellingNorm,
        "it resembles LayerNorm, but its outputs differ in train mode with means far from 0",
    ),
    (foreign.HalfCentredNorm, "its outputs differ from every norm that slabnorm knows"),
    (foreign.UnbiasedNorm, "its outputs differ from every norm that slabnorm knows"),
    (foreign.AbsoluteNorm, "it resembles LayerNorm, but its outputs differ in train mode"),
    (foreign.StuckNorm, "it resembles LayerNorm, but its gradients differ in train mode"),
    (foreign.ClippedNorm, "it resembles LayerNorm, but its outputs differ in train mode with large values"),
    (
        foreign.FlooredNorm,
        "it resembles LayerNorm, but its outputs differ in train mode with variances as small as eps",
    ),
    (foreign.ForgivingNorm, "it resembles LayerNorm, but its outputs differ in train mode with a NaN"),
    (foreign.NoisyNorm, "its outputs differ from every norm that slabnorm knows"),
    (foreign.DroppingNorm, "its outputs differ from every norm that slabnorm knows"),
    (foreign.TanhNorm, "its outputs differ from every norm that slabnorm knows"),
    (foreign.BiasedBatchNorm, "it resembles BatchNorm, but its buffers differ in train mode"),
    (foreign.PrintingNorm, "its forward prints"),
    (foreign.CountingNorm, "its forward changes its attributes"),
    (foreign.ClassCountingNorm, "its forward changes ClassCountingNorm.calls"),
    (foreign.ListingNorm, "its forward changes CALLS"),
    (foreign.OverwritingNorm, "its forward changes its input"),
    (foreign.RaisingNorm, "its forward does not take one tensor and return one of its shape"),
    (foreign.ConditionedNorm, "its forward does not take one tensor and return one of its shape"),
]


@pytest.mark.parametrize(("kind", "reason"), IMPOSTORS, ids=lambda v: getattr(v, "__name__", ""))
def test_impostors_are_left_without_a_trace(
    kind: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    norm = foreign.randomised(kind(C))
    before = copy.deepcopy(norm)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    report = sn.accelerate(nn.Sequential(norm))
    assert [(left.kind, left.reason) for left in report.left] == [(kind.__name__, reason)]
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert type(norm) is kind
    assert list(vars(norm)) == list(vars(before))
    for key, t in before.state_dict().items():
        assert torch.equal(norm.state_dict()[key], t)
    assert capsys.readouterr() == ("", "")
    assert (foreign.CALLS, foreign.ClassCountingNorm.calls, getattr(norm, "calls", 0)) == ([], 0, 0)


def test_what_is_no_norm_is_not_reported() -> None:
    report = sn.accelerate(nn.Sequential(foreign.LayerScale(C), nn.PReLU(C), nn.Linear(C, C)))
    assert (report.replaced, report.left) == ((), ())


def _eps(norm: Any) -> None:
    norm.variance_epsilon = 0.5


def _pruned(norm: Any) -> None:
    prune.l1_unstructured(norm, "weight", 3)


def _narrow(norm: Any) -> None:
    norm.weight = nn.Parameter(norm.weight.detach()[:1].clone())


def _without(norm: Any) -> None:
    norm.weight = None


def _wide(norm: Any) -> None:
    norm.double()


def _replaced(norm: Any) -> None:
    norm.forward = lambda x: x + 1


def _shadowed(norm: Any) -> None:
    norm.extra = 3


@pytest.mark.parametrize(
    "change", [_eps, _pruned, _narrow, _wide, _replaced, _shadowed], ids=lambda f: f.__name__[1:]
)
def test_a_module_that_changes_runs_its_own_forward(change: Callable[[Any], None]) -> None:
    fast, plain, x = twins("Llama")
    change(fast), change(plain)
    y = fast(x)
    assert torch.equal(y, plain(x))
    assert not by_slabnorm(y)


def test_a_weight_that_is_taken_away_is_missed_as_before() -> None:
    fast, _, x = twins("Llama")
    _without(fast)
    with pytest.raises(TypeError, match="NoneType"):
        fast(x)


def test_a_class_that_is_patched_runs_the_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, _, x = twins("Llama")
    monkeypatch.setattr(foreign.LlamaRMSNorm, "forward", lambda self, x: x - 1)
    assert torch.equal(fast(x), x - 1)


def test_a_submodule_that_is_exchanged_runs() -> None:
    fast, plain, x = twins("timm's BatchNormAct2d")
    for norm in (fast, plain):
        norm.act = nn.Tanh()
    assert torch.equal(fast(x), plain(x))
    fast, plain, x = twins("timm's BatchNormAct2d")
    seen: list[Tensor] = []
    fast.act.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    fast(x)
    assert bool((seen[0] < 0).any())


def test_hooks_fire() -> None:
    fast, _, x = twins("Llama")
    seen: list[Tensor] = []
    fast.register_forward_hook(lambda module, args, y: seen.append(y))
    y = fast(x)
    assert seen == [y]
    assert by_slabnorm(y)


def test_inputs_of_other_kinds_stay_with_the_module() -> None:
    fast, plain, x = twins("Llama")
    others = [
        (x[0, 0], {}),  # one axis
        (x[None, None, None], {}),  # six
        (x.double(), {}),  # which it computes in float32
        (x.bfloat16(), {}),  # beside a float32 weight: it returns float32
        (x[:0], {}),
    ]
    for other, options in others:
        got, want = fast(other, **options), plain(other, **options)
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
        assert not by_slabnorm(got)
    assert torch.equal(fast(hidden_states=x), plain(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fast(x), plain(x))
    for bad in (x[..., :5], None):
        with pytest.raises((RuntimeError, AttributeError)) as theirs:
            plain(bad)
        with pytest.raises(theirs.type) as ours:
            fast(bad)
        assert str(ours.value) == str(theirs.value)


def test_one_value_per_channel_has_no_variance_as_before() -> None:
    fast, _, _ = twins("timm's BatchNormAct2d")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fast(torch.randn(1, C, 1, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["Llama", "T5", "Gemma", "torchvision's frozen"])
def test_half_precision_differs_by_rounding(name: str, dtype: torch.dtype) -> None:
    fast, plain, x = twins(name)
    fast.to(dtype), plain.to(dtype)
    x = (50 * x).to(dtype)  # whose squares float16 does not hold
    with torch.no_grad():
        got, want = fast(x), plain(x)
    assert got.dtype == want.dtype == dtype
    bound = 2 * torch.finfo(dtype).eps * float(want.abs().max())
    assert float((got.float() - want.float()).abs().max()) <= bound
    exact = NORMS[name][3](x.double(), {key: t.double() for key, t in fast.state_dict().items()})
    assert float((got.double() - exact).abs().max()) <= bound


def test_memory_orders_are_the_modules() -> None:
    fast, plain, x = twins("timm's LayerNorm2d")
    for laid in (x, x.contiguous(memory_format=torch.channels_last), x[..., ::2], x.transpose(2, 3)):
        got, want = fast(laid), plain(laid)
        assert got.stride() == want.stride()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    fast, plain, x = twins("Llama")
    for laid in (x, x.transpose(0, 1), x[::2]):
        assert fast(laid).stride() == plain(laid).stride()


def test_an_order_that_the_module_refuses_is_refused() -> None:
    plain = foreign.randomised(foreign.ViewNorm(C))
    fast = copy.deepcopy(plain)
    sn.accelerate(fast, always=True)
    x = torch.randn(3, 5, C)
    assert by_slabnorm(fast(x))
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)
    for norm in (fast, plain):
        with pytest.raises(RuntimeError, match="view"):
            norm(x.transpose(0, 1))


def test_an_adopted_module_is_recognised_as_it_is_now() -> None:
    fast, _, _ = twins("Llama")
    fast.variance_epsilon = 1e-3
    found = recognise(fast).computes
    assert found is not None
    assert (found.layer, found.eps) == ("RMSNorm", 1e-3)
    assert sn.accelerate(fast).already == 1


def test_recomputed_batches_count_once() -> None:
    fast, plain, x = twins("timm's BatchNormAct2d")
    x.requires_grad_()
    checkpoint(fast, x, use_reentrant=False).sum().backward()
    plain(x)
    assert int(fast.num_batches_tracked) == 1
    torch.testing.assert_close(fast.running_var, plain.running_var)


def test_a_thousand_modules_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    judge = recognition._judge
    monkeypatch.setattr(recognition, "_judge", lambda module: tried.append(module) or judge(module))
    model = nn.Sequential(*(foreign.LlamaRMSNorm(C, 3e-6) for _ in range(1000)))
    assert len(sn.accelerate(model).replaced) == 1000
    assert len(tried) == 1


def test_compiled_models_are_the_compilers() -> None:
    fast, plain, x = twins("Llama")
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    y = compiled(x)
    assert torch.equal(y, plain(x))
    assert not by_slabnorm(y)


def test_verified_in_a_model() -> None:
    norms = foreign.BatchNormAct2d(C), nn.Conv2d(C, C, 1), foreign.LayerNorm2d(C), nn.BatchNorm2d(C)
    model = nn.Sequential(nn.Conv2d(3, C, 3), *norms)
    report = sn.accelerate(model, verify=torch.randn(2, 3, 8, 8))
    became = [norm.became for norm in report.replaced]
    assert became == ["BatchNorm + relu", "LayerNorm(over channels)", "BatchNorm"]
    line = "  1  BatchNormAct2d  -> BatchNorm + relu          recognised by its results"
    assert str(report).splitlines()[1] == line
    assert sn.accelerate(model).already == 3
    sn.restore(model)
    assert [type(m) for m in model][1::2] == [foreign.BatchNormAct2d, foreign.LayerNorm2d]


def test_small_inputs_stay_with_the_module() -> None:
    plain = foreign.randomised(foreign.LlamaRMSNorm(C))
    fast = copy.deepcopy(plain)
    sn.accelerate(fast)
    small, large = torch.randn(6_000, C), torch.randn(7_000, C)
    assert torch.equal(fast(small), plain(small))
    assert not by_slabnorm(fast(small))
    assert by_slabnorm(fast(large))
    with torch.no_grad():
        assert torch.equal(fast(large), plain(large))
    assert sn.accelerate(fast, always=True).already == 1
    assert by_slabnorm(fast(small))


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("timm's LayerNorm2d", (8, C, 72, 72), False),
        ("timm's LayerNorm2d", (8, C, 73, 73), True),
        ("torchvision's frozen", (8, C, 140, 140), False),
        ("torchvision's frozen", (8, C, 150, 150), True),
        ("PoolFormer", (8, C, 150, 150), False),
        ("timm's BatchNormAct2d", (8, C, 73, 73), True),
    ],
)
def test_from_which_size_on(name: str, shape: tuple[int, ...], wanted: bool) -> None:
    norm = foreign.randomised(NORMS[name][0]())
    sn.accelerate(norm)
    assert by_slabnorm(norm(torch.randn(shape).requires_grad_())) is wanted
    if name != "timm's BatchNormAct2d":
        last = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
        assert by_slabnorm(norm(last)) is (name == "PoolFormer")


def test_kernels_compute_it() -> None:
    fast, plain, _ = twins("Llama")
    x = 3 + torch.randn(40, C)
    with using("cpu"):
        assert_close({**step(fast, x), "d ": x}, {**step(plain, x), "d ": x})
