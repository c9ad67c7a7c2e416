"""What the doctor prints as a fix heals the run: it is applied to the script with the bug, not repaired.

A script's header says how its fix is known to heal: `sn.fixes` applies it, the tests here run what is
printed, the repair is what is printed, or why nothing of this is so.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import slabnorm as sn
from slabnorm.doctor.bugs import Bug, bugs
from slabnorm.doctor.bugs.task import accuracy, digits, explained, network, table, train
from slabnorm.errors import DataWarning

pytestmark = pytest.mark.usefixtures("in_plain_torch")
BY_NAME = {bug.name: bug for bug in bugs()}
APPLIED, REPAIR = "by sn.fixes", "by the repair, "
NOT_TESTED = {
    "not tested, the repair does what the printed words say": 16,
    "not tested, the printed words say only where to look": 7,
    "not tested, the printed fix needs two processes": 1,
    "not tested, nothing is found": 2,
}
FAINT = ("averaged_weights", "buffers_not_saved", "converted_deviation", "momentum_too_small")
# Before which call of which function a script's model is as the finding says: (name, number of the call).
AT_CHECK, AT_TRAIN = ("check", 0), ("train", 0)
WHEN = {
    "decay_on_norms": AT_TRAIN, "eps_vanishes": AT_CHECK, "freeze_undone": ("train", 1),
    "frozen_by_gradients": ("train", 1), "half_statistics": AT_CHECK, "layer_left_in_eval": AT_TRAIN,
    "momentum_of_keras": AT_TRAIN, "redundant_bias": AT_CHECK,
}  # fmt: skip


def before(
    monkeypatch: pytest.MonkeyPatch, bug: Bug, name: str, cure: Callable[..., Any], call: int | None = 0
) -> None:
    """Have a script's call of a function come after a cure with the same arguments; None: every call."""
    original, calls = getattr(bug.module, name), Counter[str]()

    def cured(model: Any, *args: Any, **options: Any) -> Any:
        if call is None or calls[name] == call:
            cure(model, *args, **options)
        calls[name] += 1
        return original(model, *args, **options)

    monkeypatch.setattr(bug.module, name, cured)


@pytest.mark.parametrize("name", [bug.name for bug in bugs() if bug.healed == APPLIED])
def test_fixes_heals_the_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug, applied = BY_NAME[name], []
    x = (0.05 if name in FAINT else 1.0) * digits().x

    def cure(model: nn.Module, batch: Any, *_: Any, optimizer: Any = None, **__: Any) -> None:
        found = sn.fixes(model, batch[:256], optimizer, loader=x.split(100) if at == "accuracy" else None)
        applied.append(found.apply())

    at, call = WHEN.get(name, ("accuracy", 0))
    before(monkeypatch, bug, at, cure, call)
    case = bug.run(repaired=False)
    assert [fix.code for record in applied for fix in record.fixed].count(bug.rule) >= 1
    assert bug.healthy(case.metric)


def do(bug: Bug, **names: Any) -> Any:
    """Run a printed fix, which the header holds; that it is printed is tested with the bug set."""
    line = re.findall(r"`(.*?)`", bug.healed)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # of pixels that never vary
        return eval(line, {"sn": sn, **names})


def first_layer(norm: nn.Module) -> Callable[..., None]:
    """Return a cure that puts a fitted layer before a model."""
    return lambda model, *_, **__: model.register_forward_pre_hook(lambda _, args: (norm(args[0]),))


@pytest.mark.parametrize("name", ["constants_of_bytes", "outlier_sets_scale", "raw_pixels"])
def test_a_fitted_layer_heals_inputs_on_a_wrong_scale(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = BY_NAME[name]
    before(monkeypatch, bug, "train", lambda model, x, *_, **__: first_layer(do(bug, x_train=x))(model))
    assert bug.healthy(bug.run(repaired=False).metric)


def test_a_layer_fitted_on_the_training_data_heals_statistics_that_were_not_loaded(monkeypatch) -> None:
    bug = BY_NAME["statistics_not_loaded"]
    before(monkeypatch, bug, "accuracy", first_layer(do(bug, x_train=table("wine").x)))
    assert bug.healthy(bug.run(repaired=False).metric)


def test_a_layer_fitted_on_raw_pixels_heals_constant_features() -> None:
    bug, data = BY_NAME["constant_feature"], digits()
    noise = 0.01 * torch.randn(data.x_test.shape, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(do(bug, x_train=data.x), network(nn.Identity))
    train(model, data.x, data.y, rate=0.03)
    assert bug.healthy(accuracy(model.eval(), data.x_test + noise, data.y_test))


def test_a_fitted_layer_heals_an_input_that_was_left_raw(monkeypatch) -> None:
    bug, data = BY_NAME["missing_key"], digits()
    states = 400 + 200 * torch.randn(1797, 7, generator=torch.Generator().manual_seed(1))[:1200]
    norm = do(bug, x_train=torch.cat([(data.x - 0.3) / 0.4, states], 1))
    original = bug.module.network
    monkeypatch.setattr(bug.module, "network", lambda *args, **o: nn.Sequential(norm, original(*args, **o)))
    assert bug.healthy(bug.run(repaired=False).metric)


def test_a_constant_that_is_subtracted_in_float64_heals_cancellation() -> None:
    bug = BY_NAME["cancelled"]
    seconds = 240 * torch.rand(1200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, stamps = ((seconds - 120) / 70).float(), 1.7e9 + seconds
    x = sn.fit(stamps[:800], "zscore", split="train")(stamps).float()  # as the printed words say
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(1, affine=False), nn.Linear(1, 1))
    train(model, x[:800], y[:800], rate=0.05, epochs=4, loss=F.mse_loss)
    assert bug.healthy(explained(model(x[800:]).detach(), y[800:]))


def test_eval_heals_an_evaluation_in_train_mode(monkeypatch) -> None:
    bug = BY_NAME["eval_forgotten"]
    before(monkeypatch, bug, "accuracy", lambda model, *_, **__: do(bug, model=model))
    assert bug.healthy(bug.run(repaired=False).metric)


def test_train_heals_a_training_in_eval_mode(monkeypatch) -> None:
    bug = BY_NAME["train_forgotten"]
    before(monkeypatch, bug, "train", lambda model, *_, **__: do(bug, model=model), None)
    assert bug.healthy(bug.run(repaired=False).metric)


def test_layer_norm_heals_tiny_batches_of_features(monkeypatch) -> None:
    bug = BY_NAME["tiny_batches"]
    before(monkeypatch, bug, "train", lambda model, *_, **__: do(bug, model=model))
    assert bug.healthy(bug.run(repaired=False).metric)


def test_layers_of_slabnorm_heal_a_checkpointed_forward(monkeypatch) -> None:
    bug, original = BY_NAME["checkpointed"], network

    def converted() -> nn.Module:
        model = original()
        do(bug, model=model)
        return model

    monkeypatch.setattr(bug.module, "network", converted)
    assert bug.healthy(bug.run(repaired=False).metric)


def test_a_virtual_batch_heals_accumulated_gradients() -> None:
    bug, data = BY_NAME["accumulated"], digits()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def loss(model: nn.Module, part: Any) -> torch.Tensor:
        return F.cross_entropy(model(part[0]), part[1]) / 16

    for x, y in zip(data.x[:1184].split(32), data.y[:1184].split(32), strict=True):
        optimizer.zero_grad()
        parts = list(zip(x.chunk(16), y.chunk(16), strict=True))
        do(bug, model=model, parts=parts, loss=loss)
        optimizer.step()
    assert bug.healthy(accuracy(model.eval(), data.x_test, data.y_test))


@pytest.mark.parametrize("name", [bug.name for bug in bugs() if bug.healed.startswith(REPAIR)])
def test_the_repair_is_what_is_printed(name: str) -> None:
    bug = BY_NAME[name]
    code = re.findall(r"`(.*?)`", bug.healed)[0]
    assert code in Path(bug.module.__file__).read_text("utf-8").split('"""', 2)[2]


def test_the_headers_say_how_many_are_healed() -> None:
    ways = Counter(re.sub("`.*`", "...", bug.healed) for bug in bugs())
    applied, run = ways.pop(APPLIED), ways.pop("by the printed ..., which the tests run")
    assert (applied, run, ways.pop("by the repair, ...")) == (17, 12, 8)
    assert ways == NOT_TESTED
