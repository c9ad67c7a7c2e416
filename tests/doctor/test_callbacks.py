"""Callbacks of Lightning and transformers, and the log for TensorBoard: what they see, write and leave."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import math
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_post_hooks
from torch.utils.data import DataLoader, TensorDataset

import slabnorm as sn
from slabnorm.doctor.watch import NUMBERS, WatchRecord
from slabnorm.errors import ExtraError, OptionError

pl = pytest.importorskip("lightning.pytorch")
transformers = pytest.importorskip("transformers")
accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

# What these packages warn of is theirs.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("in_plain_torch")]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def hooks_of(model: nn.Module) -> int:
    counts = (len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return sum(counts) + len(_global_optimizer_post_hooks)


def batches(size: int = 16) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 4, generator=generator), torch.randint(2, (64,), generator=generator)
    return DataLoader(TensorDataset(x, y), size)


class Module(pl.LightningModule):
    """A user's: forward() is the network's, or never called."""

    def __init__(self, by_parts: bool = False, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network, self.by_parts = network or globals()["network"](), by_parts

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.network(x) if self.by_parts else self(x), y)

    def validation_step(self, batch: list[Tensor], number: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(module: Any, *callbacks: Any, folder: Path, size: int = 16, **options: Any) -> None:
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False} | options
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(callbacks=list(callbacks), default_root_dir=folder, **quiet, **options)
    trainer.fit(module, batches(size), batches())


def codes(record: WatchRecord) -> list[int]:
    return [finding.code for finding in record.findings]


# Lightning.


@pytest.mark.parametrize("by_parts", [False, True], ids=["forward", "parts"])
def test_a_healthy_lightning_training_is_healthy(by_parts, tmp_path, caplog):
    caplog.set_level(logging.INFO, "slabnorm")
    module, watching = Module(by_parts), sn.LightningWatch(every=2)
    before = hooks_of(module)
    assert watching.record is None
    fit(module, watching, folder=tmp_path)
    assert isinstance(watching, pl.Callback)
    assert watching.record.steps == 8
    assert watching.record.looks == [0, 2, 4, 6]
    assert watching.record.passes == {1: 8}
    assert watching.record.updates == {"network.1": 1}
    assert watching.record.findings == ()
    assert watching.record.notes == ()
    assert hooks_of(module) == before
    said = [(entry.levelname, entry.getMessage()) for entry in caplog.records if entry.name == "slabnorm"]
    assert said == [("INFO", str(watching.record))]


def test_what_lightning_trained_is_what_it_trains_without(tmp_path):
    seen, alone = Module(), Module()
    fit(seen, sn.LightningWatch(every=1), folder=tmp_path)
    fit(alone, folder=tmp_path)
    for (name, a), b in zip(seen.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("by_parts", [False, True], ids=["forward", "parts"])
def test_accumulation_in_lightning_is_found(by_parts, tmp_path):
    watching = sn.LightningWatch()
    fit(Module(by_parts), watching, folder=tmp_path, size=8, accumulate_grad_batches=4)
    assert watching.record.steps == 4
    assert watching.record.passes == {4: 4}
    assert [(f.code, dict(f.numbers)["forwards"]) for f in watching.record.findings] == [(307, 4)]


def test_a_frozen_norm_that_moves_is_found_in_lightning(tmp_path, caplog):
    module, watching = Module(), sn.LightningWatch()
    module.network[1].requires_grad_(False)
    fit(module, watching, folder=tmp_path)
    assert [(f.code, f.layer) for f in watching.record.findings] == [(103, "network.1")]
    said = [entry for entry in caplog.records if entry.name == "slabnorm"]
    assert [entry.levelname for entry in said] == ["WARNING"]
    assert "103 warning  network.1" in said[0].getMessage()


def test_an_evaluation_in_train_mode_is_found_in_lightning(tmp_path):
    class Forgets(Module):
        def on_validation_model_eval(self) -> None:
            """Where others call eval()."""

    watching = sn.LightningWatch()
    fit(Forgets(), watching, folder=tmp_path, num_sanity_val_steps=0)
    assert watching.record.without_gradients == {"network.1": 8}  # 4 batches after each of 2 epochs
    assert codes(watching.record) == [101]


def test_an_encoder_that_follows_another_one_is_no_evaluation_in_lightning(tmp_path):
    class Pair(Module):
        def __init__(self) -> None:
            super().__init__(by_parts=True)
            self.key = copy.deepcopy(self.network)

        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            with torch.no_grad():
                key = self.key(batch[0])
            return F.mse_loss(self.network(batch[0]), key)

    watching = sn.LightningWatch()
    fit(Pair(), watching, folder=tmp_path)
    assert watching.record.without_gradients == {}
    assert watching.record.findings == ()


def test_two_views_of_a_batch_are_two_passes_in_lightning(tmp_path):
    class Views(Module):
        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            return F.mse_loss(self.network(batch[0]), self.network(batch[0] + 1))

    watching = sn.LightningWatch()
    fit(Views(), watching, folder=tmp_path)
    assert watching.record.passes == {2: 8}
    assert watching.record.healthy


def test_a_wrapper_that_calls_what_calls_the_model_is_one_pass():
    class Redirected(Module):
        """As Lightning runs a model in DistributedDataParallel: forward() is the training step, once."""

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            return self.network(x) if y is None else F.cross_entropy(self(x), y)

    model = Redirected()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with sn.watch(model) as record:
        for x, y in batches():
            model(x, y).backward()
            optimizer.step()
    assert record.passes == {1: 4}
    assert record.findings == ()


def test_hooks_leave_lightning_with_an_exception(tmp_path, caplog):
    caplog.set_level(logging.INFO, "slabnorm")

    class Breaks(Module):
        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            if number == 2:
                raise ZeroDivisionError
            return super().training_step(batch, number)

    module, watching = Breaks(), sn.LightningWatch(every=1, log_dir=tmp_path / "log")
    before = hooks_of(module)
    with pytest.raises(ZeroDivisionError):
        fit(module, watching, folder=tmp_path)
    assert hooks_of(module) == before
    watching.on_exception()  # Lightning may say so twice
    assert len([entry for entry in caplog.records if entry.name == "slabnorm"]) == 1
    assert watching.record.steps == 2
    assert scalars(tmp_path / "log") == expected(watching.record)


# TensorBoard.


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard reads in a log."""
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(record: WatchRecord) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for name, track in record.tracks.items():
        for key in NUMBERS:
            values = zip(record.looks, getattr(track, key), strict=True)
            some = [(step, value) for step, value in values if not math.isnan(value)]
            if some:
                found[f"slabnorm.{key}/{name}"] = some
    return found


def text_in(folder: Path) -> str:
    events = accumulator.EventAccumulator(str(folder)).Reload()
    (event,) = events.Tensors("slabnorm.findings/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_tensorboard_reads_what_was_watched(tmp_path):
    module, watching = Module(), sn.LightningWatch(every=3, log_dir=tmp_path / "log")
    module.network[1].requires_grad_(False)
    fit(module, watching, folder=tmp_path)
    found = scalars(tmp_path / "log")
    assert found == expected(watching.record)
    assert [step for step, _ in found["slabnorm.spread/network.1"]] == [0, 3, 6]
    assert {"slabnorm.dead/network.2", "slabnorm.stale/network.1", "slabnorm.gradient/network.0"} < set(found)
    text = text_in(tmp_path / "log")
    assert "103 warning  network.1" in text
    assert all(line.startswith("    ") for line in text.splitlines())


def test_a_log_is_written_while_a_plain_loop_runs(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with sn.watch(model, every=1) as record, contextlib.closing(sn.TensorBoardLog(record, tmp_path)) as board:
        board.write()  # nothing was looked at yet
        for x, y in batches():
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            board.write()
            board.write()
    assert len(record.looks) == 4
    assert scalars(tmp_path) == expected(record)


def test_what_is_dropped_from_a_long_record_stays_in_the_log(tmp_path):
    model = nn.Linear(1, 1, bias=False)
    model(torch.ones(2, 1)).sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with sn.watch(model, every=1) as record, contextlib.closing(sn.TensorBoardLog(record, tmp_path)) as board:
        for _ in range(4100):
            optimizer.step()
            board.write()
    # At look 2001 every second one is dropped, and from then on every second step is looked at, to step 4000.
    assert record.looks == list(range(0, 4100, 4))
    written = [step for step, value in scalars(tmp_path)["slabnorm.gradient/model"] if value == 2.0]
    assert written == [*range(2001), *range(2002, 4001, 2), *range(4004, 4100, 4)]


def test_a_log_needs_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", f"{tmp_path}/a\0b"):
        with pytest.raises(OptionError, match="log_dir must be a folder"):
            sn.TensorBoardLog(WatchRecord("Net", 1), bad)
    module, watching = Module(), sn.LightningWatch(log_dir=tmp_path / "file")
    before = hooks_of(module)
    with pytest.raises(OptionError, match="log_dir"):
        fit(module, watching, folder=tmp_path)
    assert hooks_of(module) == before


# The Trainer of transformers.


class Classifier(nn.Module):
    """What Trainer takes: keyword arguments in, a dict with the loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.network(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Loop:
    """The events of a Trainer in its order, by its own handler, around a loop as its own.

    Trainer itself needs the package accelerate.
    """

    def __init__(self, model: nn.Module, *callbacks: Any, accumulate: int = 1, first: bool = True) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        self.model, self.optimizer, self.accumulate = model, optimizer, accumulate
        self.handler = transformers.trainer_callback.CallbackHandler(
            list(callbacks), model, None, optimizer, None
        )
        self.state = transformers.TrainerState(is_world_process_zero=first)
        self.call("on_init_end")

    def call(self, event: str) -> None:
        getattr(self.handler, event)(SimpleNamespace(), self.state, transformers.TrainerControl())

    def train(self, epochs: int = 2, size: int = 16, forget_eval: bool = False) -> None:
        self.call("on_train_begin")
        for _ in range(epochs):
            self.call("on_epoch_begin")
            for number, (x, labels) in enumerate(batches(size)):
                if number % self.accumulate == 0:
                    self.call("on_step_begin")
                self.model.train()
                self.model(x=x, labels=labels)["loss"].backward()
                if number % self.accumulate:
                    self.call("on_substep_end")
                if (number + 1) % self.accumulate == 0:
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    self.call("on_step_end")
            self.call("on_epoch_end")
            self.evaluate(forget_eval)
        self.call("on_train_end")

    def evaluate(self, forget_eval: bool) -> None:
        if not forget_eval:
            self.model.eval()
        with torch.no_grad():
            for x, labels in batches():
                self.model(x=x, labels=labels)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_healthy_training_of_transformers_is_healthy(accumulate, caplog, tmp_path):
    caplog.set_level(logging.INFO, "slabnorm")
    model, watching = Classifier(), sn.TrainerWatch(every=2, log_dir=tmp_path)
    before = hooks_of(model)
    Loop(model, watching, accumulate=accumulate).train()
    assert isinstance(watching, transformers.TrainerCallback)
    assert hooks_of(model) == before
    assert watching.record.steps == 8 // accumulate
    assert watching.record.passes == {accumulate: 8 // accumulate}
    assert codes(watching.record) == ([] if accumulate == 1 else [307])
    assert watching.record.healthy  # 307 is a note where batches are not small
    assert [e.getMessage() for e in caplog.records if e.name == "slabnorm"] == [str(watching.record)]
    assert scalars(tmp_path) == expected(watching.record)


def test_bugs_in_a_training_of_transformers_are_found(caplog):
    model, watching = Classifier(), sn.TrainerWatch()
    model.network[1].requires_grad_(False)
    Loop(model, watching).train(forget_eval=True)
    assert [(f.code, f.layer) for f in watching.record.findings] == [(101, "network.1"), (103, "network.1")]
    assert [e.levelname for e in caplog.records if e.name == "slabnorm"] == ["WARNING"]


def test_one_process_of_several_speaks_and_writes(caplog, tmp_path):
    model, watching = Classifier(), sn.TrainerWatch(log_dir=tmp_path / "log")
    Loop(model, watching, first=False).train(forget_eval=True)
    assert codes(watching.record) == [101]
    assert not [e for e in caplog.records if e.name == "slabnorm"]
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("how", ["closing", "next training", "deleted"])
def test_hooks_leave_transformers_after_an_exception(how):
    model = Classifier()
    before = hooks_of(model)
    loop = Loop(model, watching := sn.TrainerWatch())
    caught = pytest.raises(ValueError, match="size")
    with caught, contextlib.closing(watching) if how == "closing" else contextlib.nullcontext():
        loop.train(size=0)
    assert (hooks_of(model) == before) == (how == "closing")
    if how == "next training":
        loop.train()
    if how == "deleted":
        del caught, loop, watching
        gc.collect()
    assert hooks_of(model) == before


def test_the_trainer_of_transformers(tmp_path):
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    x, y = batches().dataset.tensors
    rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=16, per_device_eval_batch_size=16,
        eval_strategy="epoch", save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        logging_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    for frozen in (False, True):
        model, watching = Classifier(), sn.TrainerWatch(every=2, log_dir=tmp_path / f"log {frozen}")
        model.network[1].requires_grad_(not frozen)
        before = hooks_of(model)
        transformers.Trainer(
            model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[watching]
        ).train()
        assert watching.record.passes == {1: 8}
        assert codes(watching.record) == ([103] if frozen else [])
        assert hooks_of(model) == before
        assert scalars(tmp_path / f"log {frozen}") == expected(watching.record)


# The classes.


@pytest.mark.parametrize("name", ["LightningWatch", "TrainerWatch"])
def test_callbacks_are_pickled_by_their_name(name):
    made = getattr(sn, name)(every=7)
    again = pickle.loads(pickle.dumps(getattr(sn, name)))
    assert again is type(made) is getattr(sn.doctor.callbacks, name)
    assert (made.every, made.__class__.__qualname__) == (7, name)


@pytest.mark.parametrize(
    ("name", "missing", "fix"),
    [
        ("LightningWatch", "lightning.pytorch", "pip install lightning"),
        ("TrainerWatch", "transformers", "pip install 'transformers[torch]'"),
    ],
)
def test_a_missing_package_is_named(name, missing, fix, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(vars(sn), name, raising=False)
    monkeypatch.delitem(vars(sn.doctor.callbacks), name, raising=False)
    with pytest.raises(ExtraError, match=missing) as caught:
        getattr(sn, name)
    assert fix in str(caught.value)


def test_a_missing_tensorboard_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ExtraError, match="tensorboard") as caught:
        sn.TensorBoardLog(WatchRecord("Net", 1), tmp_path)
    assert "pip install 'slabnorm[tensorboard]'" in str(caught.value)
