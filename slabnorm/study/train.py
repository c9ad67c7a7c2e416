"""A run: one network, trained once and measured."""

from __future__ import annotations

import copy
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slabnorm.errors import SlabError, SlabWarning
from slabnorm.report.study import CurvePoint, RunRecord
from slabnorm.study.data import Dataset, Split
from slabnorm.study.models import Build, NormFactory
from slabnorm.study.scaling import apply
from slabnorm.text import printable

ORDER_SEED = 1_000_003  # makes the order of samples independent of the initial weights of the same seed
NOISE_SEED = 2_000_003
LOOKS_PER_EPOCH = 4
WARM_UP = 10  # steps that are not timed
CHUNK = 1024  # samples that are evaluated at once


@dataclass(frozen=True)
class Run:
    """A run: its input scheme, norm, batch size and seed, and the factor of its learning rate."""

    scheme: str
    norm: str
    batch_size: int
    seed: int
    rate: float = 1.0


class Paced(Protocol):
    """What a run says of its pace: samples per step, seed, and the factor of the learning rate."""

    @property
    def batch_size(self) -> int:
        """Samples per step."""

    @property
    def seed(self) -> int:
        """Decides the order of the samples."""

    @property
    def rate(self) -> float:
        """A factor of the learning rate."""


@dataclass(frozen=True)
class Rules:
    """How every run is trained, under any norm.

    SGD with momentum, the linear scaling rule (Goyal et al. 2017), cosine to zero:

        rate(step) = learning_rate * batch_size / reference_batch * (1 + cos(pi * step / steps)) / 2

    Args:
        epochs: passes over the training split.
        target: the validation accuracy up to which steps are counted, from 0 to 1.
        learning_rate: the learning rate at the reference batch size.
        reference_batch: the reference batch size.
        momentum: the momentum of SGD.
        looks: how often the validation split is looked at in the whole training; by default four times an
            epoch.
    """

    epochs: int = 3
    target: float = 0.9
    learning_rate: float = 0.1
    reference_batch: int = 128
    momentum: float = 0.9
    looks: int | None = None

    def rate(self, step: int, steps: int, batch_size: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        start = self.learning_rate * batch_size / self.reference_batch
        return start * 0.5 * (1 + math.cos(math.pi * step / steps))

    def looks_after(self, steps: int) -> set[int]:
        """Return after which steps the validation split is looked at; an epoch has `steps`."""
        if self.looks is None:
            looks = [round(steps * k / LOOKS_PER_EPOCH) for k in range(1, LOOKS_PER_EPOCH + 1)]
            return {epoch * steps + look for epoch in range(self.epochs) for look in looks}
        return {round(steps * self.epochs * k / self.looks) for k in range(1, self.looks + 1)}


@dataclass
class Bench:
    """What all runs of a study share: the model, the data, the fitted input layers and the rules."""

    build: Build
    data: Dataset
    layers: dict[str, nn.Module]
    rules: Rules
    _scaled: dict[str, Tensor] = field(default_factory=dict)

    def inputs(self, scheme: str) -> Tensor:
        """Return all samples under an input scheme; those of the last scheme are kept."""
        if scheme not in self._scaled:
            self._scaled = {scheme: apply(self.layers[scheme], self.data)}
        return self._scaled[scheme]

    def do(self, run: Run, tick: Callable[[], None]) -> RunRecord:
        """Train and measure one network."""
        return run_once(self, run, tick)

    def steps(self, run: Run) -> int:
        """Return how many optimiser steps a run takes."""
        return -(-len(self.data.split.train) // run.batch_size) * self.rules.epochs

    def revive(self, kept: dict[str, Any]) -> RunRecord:
        """Return a record from what the ledger has kept of it."""
        curve = tuple(CurvePoint(**point) for point in kept["curve"])
        return RunRecord(**{**kept, "curve": curve, "notes": tuple(kept["notes"])})

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_scaled": {}}


def batches(order: Tensor, size: int) -> list[Tensor]:
    """Return samples in batches of a size; a last batch of one sample is left out.

    Batch norm cannot train on a batch of one sample.
    """
    parts = list(order.split(size))
    return parts[:-1] if len(parts) > 1 and size > 1 and len(parts[-1]) == 1 else parts


def orders(seed: int, samples: Tensor, epochs: int) -> Iterator[Tensor]:
    """Yield the order of the training samples in each epoch, which depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed + ORDER_SEED)
    for _ in range(epochs):
        yield samples[torch.randperm(len(samples), generator=generator)]


def start(build: Build, norm: str, seed: int) -> tuple[nn.Module, NormFactory]:
    """Return a new network whose weights outside the norm layers depend on the seed alone."""
    torch.manual_seed(seed)
    factory = NormFactory(norm)
    model = build(factory)
    torch.manual_seed(seed + NOISE_SEED)
    return model, factory


def settle(model: nn.Module, x: Tensor) -> None:
    """Give lazy layers their shapes, by running the network on a batch."""
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", SlabWarning)  # about norms that have no statistics yet
            model.eval()(x)


def fingerprint(model: nn.Module, factory: NormFactory) -> str:
    """Return a hash of the weights outside the norm layers."""
    inside = {id(p) for layer in factory.made for p in layer.parameters()}
    digest = hashlib.sha256()
    for parameter in model.parameters():
        if id(parameter) not in inside:
            digest.update(parameter.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def quiet_corner() -> Iterator[None]:
    """Run a block on one thread with random numbers of its own, and restore both.

    Every process uses one thread, so that results do not depend on the number of workers.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def run_once(bench: Bench, run: Run, tick: Callable[[], None]) -> RunRecord:
    """Train and measure one network.

    Args:
        bench: what all runs share.
        run: the run.
        tick: a function to call after every step; anything that it raises ends the run.

    Returns:
        The record. If slabnorm or the model raises an error, the run has "failed", and the record says why.
    """
    with quiet_corner(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SlabWarning)
        try:
            record = measure(bench, run, tick)
        except SlabError as error:
            reason = error.problem + (f" ({error.got})" if error.got else "")
            record = RunRecord(**vars(run), status="failed", reason=printable(reason, 300))
        # The user's model may raise anything. That costs this run, but not the whole study.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            record = RunRecord(**vars(run), status="failed", reason=printable(reason, 300))
    said = [str(w.message).split("\n")[0] for w in caught if issubclass(w.category, SlabWarning)]
    return RunRecord(**{**vars(record), "notes": tuple(dict.fromkeys(printable(s, 300) for s in said))})


class Training:
    """One network in training.

    Args:
        model: the network.
        x, y: all samples as the network sees them, and the class of each; of text, windows of letters and the
            letters that follow.
        split: which samples are for training, validation and test.
        rules: how it is trained.
        run: its batch size, its seed, and the factor of its learning rate.
        watch: a function to call with this object at every look.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        split: Split,
        rules: Rules,
        run: Paced,
        watch: Callable[[Training], None] = lambda training: None,
    ) -> None:
        self.model, self.x, self.y, self.split = model, x, y, split
        self.rules, self.run, self.watch = rules, run, watch
        self.optimiser = torch.optim.SGD(model.parameters(), lr=0.0, momentum=rules.momentum)
        self.times: list[float] = []
        self.losses: list[float] = []
        self.curve: list[CurvePoint] = []

    def train(self, tick: Callable[[], None]) -> bool:
        """Train, and return whether the loss became infinite or NaN."""
        samples = torch.as_tensor(self.split.train)
        for epoch, order in enumerate(orders(self.run.seed, samples, self.rules.epochs)):
            parts = batches(order, self.run.batch_size)
            looks = self.rules.looks_after(len(parts))
            for number, part in enumerate(parts, 1):
                self.model.train()
                loss = self.step(part, len(parts) * self.rules.epochs)
                tick()
                if not math.isfinite(loss):
                    return True
                if len(self.times) in looks:
                    self.look(epoch + number / len(parts))
        return False

    def step(self, part: Tensor, steps: int) -> float:
        """Take one optimiser step and time it; return the loss before it."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.run.rate * self.rules.rate(len(self.times), steps, self.run.batch_size)
        x, y = self.x[part], self.y[part]
        began = time.perf_counter()
        self.optimiser.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimiser.step()
        self.times.append(time.perf_counter() - began)
        self.losses.append(loss.item())
        return self.losses[-1]

    def look(self, epoch: float) -> None:
        """Measure the validation accuracy in eval mode, and add it to the curve."""
        seen = torch.as_tensor(self.split.validation)
        share = accuracy(self.model, self.x[seen], self.y[seen])
        self.curve.append(CurvePoint(len(self.times), epoch, share, sum(self.losses) / len(self.losses)))
        self.losses.clear()
        self.watch(self)


def begin(bench: Bench, run: Run) -> tuple[Training, str]:
    """Return a run's network before its first step, and the fingerprint of its weights."""
    x, y = bench.inputs(run.scheme), torch.as_tensor(bench.data.y)
    model, factory = start(bench.build, run.norm, run.seed)
    settle(model, x[torch.as_tensor(bench.data.split.train[:2])])
    weights = fingerprint(model, factory)
    return Training(model, x, y, bench.data.split, bench.rules, run), weights


def measure(bench: Bench, run: Run, tick: Callable[[], None]) -> RunRecord:
    """Train to the end, or to the first loss that is not finite, and return the measurements."""
    training, weights = begin(bench, run)
    diverged = training.train(tick)
    test = torch.as_tensor(training.split.test)
    x, y, times = training.x[test], training.y[test], training.times
    reached = (point.step for point in training.curve if point.accuracy >= bench.rules.target)
    return RunRecord(
        **vars(run),
        status="diverged" if diverged else "done",
        reason=f"the loss was not finite at step {len(times)}" if diverged else "",
        test_accuracy=accuracy(training.model, x, y),
        gap=train_eval_gap(training.model, x, y, batches_of(test, run.batch_size)),
        steps=len(times),
        steps_to_target=next(reached, None),
        seconds_per_step=median(times[min(WARM_UP, len(times) // 2) :]),
        curve=tuple(training.curve),
        weights=weights,
    )


def batches_of(test: Tensor, size: int) -> list[Tensor]:
    """Return positions within the test split in batches of the training batch size."""
    return batches(torch.arange(len(test)), size)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of samples that are classified correctly in eval mode, with frozen statistics.

    Args:
        model: the network, which stays in eval mode.
        x: normalised samples.
        y: class numbers, one for each sample or for each position of it.
    """
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(part).argmax(1) == truth).sum())
            for part, truth in zip(x.split(CHUNK), y.split(CHUNK), strict=True)
        )
    return right / y.numel()


def train_eval_gap(model: nn.Module, x: Tensor, y: Tensor, parts: list[Tensor]) -> float:
    """Return the accuracy in train mode minus that in eval mode, as a share, on the same samples.

    In train mode the samples come in the batches `parts`. They go through a copy of the model, so that its
    running statistics do not change.

    Args:
        model: the network, which stays in eval mode.
        x, y: normalised samples and class numbers.
        parts: the positions of the samples in each batch.
    """
    seen = torch.cat(parts)
    evaluated = accuracy(model, x[seen], y[seen])
    training = copy.deepcopy(model).train()
    # With gradients: without them slabnorm would warn of train mode, as of a forgotten eval().
    right = sum(int((training(x[part]).detach().argmax(1) == y[part]).sum()) for part in parts)
    return right / y[seen].numel() - evaluated
