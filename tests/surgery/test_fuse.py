"""What is fused and what is not: every way to write it, and every way to get it wrong."""

from __future__ import annotations

import contextlib
import importlib
import linecache
import operator
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import slabnorm as sn
from slabnorm.errors import ModelError
from tests.surgery.nets import assert_close, step, twins


class Base(nn.Module):
    """A convolution, two norms, activations; a subclass writes forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv2 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.norm2 = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.relu, self.relu_ = nn.ReLU(), nn.ReLU(inplace=True)
        self.gelu, self.tanh_gelu = nn.GELU(), nn.GELU(approximate="tanh")
        self.leaky, self.steep = nn.LeakyReLU(), nn.LeakyReLU(0.3)
        self.function, self.flag, self.calls = F.silu, True, 0
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True)])

    __hash__ = nn.Module.__hash__


class Fused:
    """Ways to write what is fused."""

    def module(self, x):
        return self.relu(self.norm(x))

    def inplace_module(self, x):
        x = self.norm(x)
        x = self.relu_(x)
        return x * 2

    def function(self, x):
        return F.relu(self.norm(x), inplace=True)

    def torch_function(self, x):
        return torch.sigmoid(self.norm(x))

    def method(self, x):
        return self.norm(x).relu()

    def method_inplace(self, x):
        y = self.norm(x)
        y = y.tanh_()
        return y

    def gelu_exact(self, x):
        return F.gelu(self.norm(x))

    def gelu_tanh(self, x):
        return F.gelu(self.norm(x), approximate="tanh")

    def gelu_module(self, x):
        return self.tanh_gelu(self.norm(x))

    def leaky_relu(self, x):
        return F.leaky_relu(self.norm(x), 0.01)

    def leaky_module(self, x):
        return self.leaky(self.norm(x))

    def function_in_an_attribute(self, x):
        return self.function(self.norm(x))

    def hardswish(self, x):
        return F.hardswish(self.norm(x))

    def sum_alone(self, x):
        return x + self.norm(self.conv(x))

    def sum_by_name(self, x):
        y = self.norm(x)
        y = torch.add(y, x)
        return y

    def sum_by_method(self, x):
        return self.norm(x).add_(x)

    def sum_by_operator(self, x):
        return operator.iadd(self.norm(x), x).relu()

    def sum_then_activation(self, x):
        y = self.norm(x)
        y += x
        return self.relu(y)

    def sum_within(self, x):
        return F.silu(x + self.norm(self.conv(x)))

    def another_name(self, x):
        h = self.norm(x)
        y = self.relu(h)
        return y

    def in_a_list(self, x):
        for _ in range(2):
            x = self.relu(self.norms[0](x))
        return F.relu(self.norms[-1](x))

    def under_a_branch(self, x, scale=None):
        if self.training and scale is None:
            y = self.norm(x)
            y = self.relu(y)
        else:
            y = self.relu(self.norm(x)) * 2
        return y

    def in_a_context(self, x):
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            return self.relu(self.norm(x))

    def inside_other_calls(self, x):
        return self.conv2(self.relu(self.norm(self.conv(x)))).mean(1, keepdim=True) + x


class Apart:
    """What stays apart, because it means something else."""

    def other_slope(self, x):
        return F.leaky_relu(self.norm(x), 0.2) + self.steep(self.norm2(x))

    def read_twice(self, x):
        y = self.norm(x)
        z = self.relu(y)
        return y + z

    def read_later(self, x):
        y = self.norm(x)
        z = self.relu(y)
        return z * y.sum()

    def scaled_sum(self, x):
        return torch.add(self.norm(x), x, alpha=2)

    def residual_is_changed(self, x):
        x = x * 1
        x += self.norm(x)
        return x

    def seen_by_a_closure(self, x):
        y = self.norm(x)

        def later():
            return y

        y = self.relu(y)
        return y + later()

    def caught(self, x):
        y = x
        try:
            y = self.norm(x)
            y = self.relu(y) if self.flag else self.missing(y)
        except AttributeError:
            pass
        return y

    def suppressed(self, x):
        y = x
        with contextlib.suppress(AttributeError):
            y = self.norm(x)
            y = self.relu(y)
        return y

    def left_by_break(self, x):
        y = x
        for _ in range(2):
            y = self.norm(y)
            if self.flag:
                break
            y = self.relu(y)
        return y

    def input_changes_meanwhile(self, x):
        h = x * 1
        y = self.norm(h)
        h = self.relu_(h)
        y = y + h
        return y

    def input_changes_in_the_sum(self, x):
        h = x * 1
        return self.norm(h) + self.relu_(h)

    def norm_again_meanwhile(self, x):
        y = self.norm(self.conv(x))
        y = y + self.norm(self.conv2(x))
        return self.relu(y)

    def other_arguments(self, x):
        return self.relu(self.norm(input=x))

    def shadowed(self, x):
        F = types.SimpleNamespace(relu=lambda y: -y)
        return F.relu(self.norm(x))

    def locals_are_read(self, x):
        y = self.norm(x)
        z = locals()["y"]
        y = self.relu(y)
        return y + z


def _net(function: types.FunctionType) -> nn.Module:
    """Return a module of a class of its own with this forward."""
    torch.manual_seed(0)
    kind = type("Net", (Base,), {"forward": function, "__module__": __name__})
    net = kind()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def _methods(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if isinstance(value, types.FunctionType)]


def _compare(net: nn.Module, backward: bool = True) -> sn.surgery.Acceleration:
    fast, plain = twins(net)
    report = sn.accelerate(fast, always=True)
    x = 1 + torch.randn(4, 4, 5, 5)
    run = step if backward else _forward
    for _ in range(2):
        assert_close(run(fast, x), run(plain, x))
    fast.eval(), plain.eval()
    assert_close(run(fast, x), run(plain, x))
    return report


def _forward(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    y = net(x).detach()
    return {"y": y, "d ": y}


@pytest.mark.parametrize("name", _methods(Fused))
def test_fused(name: str) -> None:
    report = _compare(_net(vars(Fused)[name]))
    assert report.fused


@pytest.mark.parametrize("name", _methods(Apart))
def test_apart(name: str) -> None:
    # What changes a norm's input in place afterwards has no backward, in torch either.
    report = _compare(_net(vars(Apart)[name]), backward="change" not in name)
    norm = next(n for n in report.replaced if n.names == ("norm",))
    # y + norm(x) has nothing in between: that sum is fused, where the first norm's is not.
    assert norm.became == ("BatchNorm + residual" if name == "norm_again_meanwhile" else "BatchNorm")


def _forward_of(net: nn.Module) -> list[str]:
    """Return what runs while a net runs: norms and activations by kind, in order."""
    calls: list[str] = []

    def note(module: nn.Module, args: object) -> None:
        calls.append(type(module).__name__)

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        net(torch.randn(4, 4, 5, 5))
    finally:
        handle.remove()
    return calls


def test_global_hooks_see_every_module() -> None:
    net = _net(vars(Fused)["module"])
    before = _forward_of(net)
    sn.accelerate(net, always=True)
    assert _forward_of(net) == before


def test_hooks_put_on_later() -> None:
    """A hook on the norm or the activation sees what it would have seen."""
    for name in ("norm", "relu"):
        net, plain = twins(_net(vars(Fused)["sum_then_activation"]))
        report = sn.accelerate(net, always=True)
        assert report.fused
        x, seen = torch.randn(4, 4, 5, 5), []
        for model in (net, plain):
            getattr(model, name).register_forward_hook(lambda m, args, y, seen=seen: seen.append(y.clone()))
            model(x)
        torch.testing.assert_close(seen[0], seen[1])


def test_modules_exchanged_later() -> None:
    net, plain = twins(_net(vars(Fused)["module"]))
    sn.accelerate(net, always=True)
    for model in (net, plain):
        model.relu = nn.Tanh()
    x = torch.randn(4, 4, 5, 5)
    assert_close(step(net, x), step(plain, x))
    for model in (net, plain):
        model.norm = nn.Identity()
    assert_close(step(net, x), step(plain, x))


def test_called_on_its_own() -> None:
    """Outside its place in the forward, a fused norm is a norm."""
    net, plain = twins(_net(vars(Fused)["module"]))
    sn.accelerate(net, always=True)
    x = torch.randn(4, 4, 5, 5)
    torch.testing.assert_close(net.norm(x), plain.norm(x))
    assert bool((net.norm(x) < 0).any())


class Residual(nn.Module):
    """Adds whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor, r: Tensor | float) -> Tensor:
        return F.relu(self.norm(x) + r)


@pytest.mark.parametrize(
    "residual",
    [
        torch.ones(4),
        torch.ones(1, 1),
        1.5,
        torch.ones(8, 4, dtype=torch.float64),
        torch.ones(8, 4).bfloat16(),
    ],
    ids=["row", "one", "number", "float64", "bfloat16"],
)
def test_residuals_that_do_not_fit(residual: Tensor | float) -> None:
    fast, plain = twins(Residual())
    assert sn.accelerate(fast, always=True).replaced[0].became == "BatchNorm + residual + relu"
    x = torch.randn(8, 4)
    got, want = fast(x, residual), plain(x, residual)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want)


def test_one_norm_with_two_ends() -> None:
    """Two call sites end differently: one is fused, the other stays apart."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(x)) + torch.tanh(self.norm(x)) + self.norm(x)

    fast, plain = twins(Two())
    sn.accelerate(fast, always=True)
    x = torch.randn(8, 4)
    for _ in range(2):
        assert_close(step(fast, x), step(plain, x))


def test_shared_modules() -> None:
    """One norm in two places, one activation everywhere: the same object everywhere afterwards."""
    torch.manual_seed(0)
    norm, relu = nn.BatchNorm1d(4), nn.ReLU()
    net = nn.Sequential(nn.Linear(4, 4), norm, relu, nn.Linear(4, 4), norm, relu, nn.Sequential(norm, relu))
    fast, plain = twins(net)
    report = sn.accelerate(fast, always=True)
    assert [n.names for n in report.replaced] == [("1", "4", "6.0")]
    assert fast[1] is fast[4] is fast[6][0]
    x = torch.randn(8, 4)
    for _ in range(2):
        assert_close(step(fast, x), step(plain, x))


def test_sequences_stay_sequences() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Sigmoid())
    fast, plain = twins(net)
    sn.accelerate(fast, always=True)
    x = torch.randn(2, 3, 4, 4)
    for part in (slice(0, 2), slice(0, 3), slice(1, 1)):
        torch.testing.assert_close(fast[part](x), plain[part](x))
    assert isinstance(fast[2], nn.ReLU)
    for model in (fast, plain):
        model.append(nn.BatchNorm2d(4)).insert(2, nn.Identity())
    torch.testing.assert_close(fast(x), plain(x))
    assert len(fast) == len(plain)


def test_what_runs_stays_the_forward() -> None:
    """Nothing is traced: counters count, branches on the mode stay, and no forward runs meanwhile."""

    class Counting(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.scale = nn.BatchNorm1d(4), 1.0

        def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
            self.calls += 1
            x = F.relu(self.norm(x))
            return x * self.scale * (2 if twice else 1) if self.training else x.neg()

    net = Counting()
    assert sn.accelerate(net, always=True).fused
    assert net.calls == 0
    x = torch.randn(8, 4)
    y = net(x)
    net.scale = 3.0
    torch.testing.assert_close(net(x), 3 * y)
    torch.testing.assert_close(net(x, twice=True), 6 * y)
    assert bool((net.eval()(x) <= 0).all())
    assert net.calls == 4


def test_super_and_free_variables() -> None:
    factor = torch.tensor(2.0)

    class Parent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * factor

    class Child(Parent):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.relu(self.norm(x)))

    fast, plain = twins(Child())
    assert sn.accelerate(fast, always=True).fused
    x = torch.randn(8, 4)
    torch.testing.assert_close(fast(x), plain(x))


def test_no_source_no_fusion() -> None:
    code = "def forward(self, x):\n    return F.relu(self.norm(x))\n"
    scope: dict[str, types.FunctionType] = {}
    exec(compile(code, "<nowhere>", "exec"), {"F": F}, scope)
    fast, plain = twins(_net(scope["forward"]))
    report = sn.accelerate(fast, always=True)
    assert not report.fused
    assert "source" in next(n.note for n in report.replaced if n.names == ("norm",))
    x = torch.randn(4, 4, 5, 5)
    assert_close(step(fast, x), step(plain, x))


def test_source_that_is_not_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was edited after it was imported says nothing about the code that runs."""
    folder = tmp_path
    text = (
        "from torch import nn\nimport torch.nn.functional as F\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.norm = nn.BatchNorm1d(4)\n\n"
        "    def forward(self, x):\n        return F.relu(self.norm(x)) + 1\n"
    )
    (folder / "edited_net.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    net = importlib.import_module("edited_net").Net()
    (folder / "edited_net.py").write_text(text.replace("+ 1", "+ 2"))
    linecache.checkcache()
    try:
        fast, plain = twins(net)
        report = sn.accelerate(fast, always=True)
        assert not report.fused
        x = torch.randn(8, 4)
        torch.testing.assert_close(fast(x), plain(x))
    finally:
        sys.modules.pop("edited_net")


def test_nothing_stays_half_changed(monkeypatch: pytest.MonkeyPatch) -> None:

    module = importlib.import_module("slabnorm.surgery.accelerate")
    net = _net(vars(Fused)["module"])
    classes = [type(m) for m in net.modules()]
    tables = [(list(vars(m)), list(m._buffers), list(m._parameters)) for m in net.modules()]
    real, count = module.become, 0

    def fails(*args: object) -> None:
        nonlocal count
        count += 1
        real(*args)
        if count == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "become", fails)
    with pytest.raises(KeyboardInterrupt):
        sn.accelerate(net, always=True)
    assert [type(m) for m in net.modules()] == classes
    assert [(list(vars(m)), list(m._buffers), list(m._parameters)) for m in net.modules()] == tables


def test_tracebacks_point_at_the_users_line() -> None:
    net = _net(vars(Fused)["sum_then_activation"])
    sn.accelerate(net, always=True)
    with pytest.raises(ValueError, match="expected 4D input") as caught:
        net(torch.randn(4, 4))
    first = vars(Fused)["sum_then_activation"].__code__.co_firstlineno
    lines = [(str(e.path), e.lineno + 1) for e in caught.traceback]
    assert (__file__, first + 1) in lines


def test_verification_error_is_a_model_error() -> None:
    assert issubclass(sn.errors.VerificationError, ModelError)
