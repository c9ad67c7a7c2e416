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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slabnorm.errors import SlabError, SlabWarning
from slabnorm.report.study import CurvePoint, RunRecord
from slabnorm.study.data import Dataset
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
    """

    epochs: int = 3
    target: float = 0.9
    learning_rate: float = 0.1
    reference_batch: int = 128
    momentum: float = 0.9

    def rate(self, step: int, steps: int, batch_size: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        start = self.learning_rate * batch_size / self.reference_batch
        return start * 0.5 * (1 + math.cos(math.pi * step / steps))


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
            record = Training(bench, run).measure(tick)
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
    """The state of one run."""

    def __init__(self, bench: Bench, run: Run) -> None:
        self.rules, self.run, self.split = bench.rules, run, bench.data.split
        self.x, self.y = bench.inputs(run.scheme), torch.as_tensor(bench.data.y)
        self.model, factory = start(bench.build, run.norm, run.seed)
        settle(self.model, self.x[torch.as_tensor(self.split.train[:2])])
        self.weights = fingerprint(self.model, factory)
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.0, momentum=self.rules.momentum)
        self.times: list[float] = []
        self.losses: list[float] = []
        self.curve: list[CurvePoint] = []

    def measure(self, tick: Callable[[], None]) -> RunRecord:
        """Train to the end, or to the first loss that is not finite, and return the measurements."""
        diverged = self.train(tick)
        test = torch.as_tensor(self.split.test)
        reached = (point.step for point in self.curve if point.accuracy >= self.rules.target)
        timed = self.times[min(WARM_UP, len(self.times) // 2) :]
        return RunRecord(
            **vars(self.run),
            status="diverged" if diverged else "done",
            reason=f"the loss was not finite at step {len(self.times)}" if diverged else "",
            test_accuracy=accuracy(self.model, self.x[test], self.y[test]),
            gap=train_eval_gap(self.model, self.x[test], self.y[test], batches_of(test, self.run.batch_size)),
            steps=len(self.times),
            steps_to_target=next(reached, None),
            seconds_per_step=median(timed),
            curve=tuple(self.curve),
            weights=self.weights,
        )

    def train(self, tick: Callable[[], None]) -> bool:
        """Train, and return whether the loss became infinite or NaN."""
        samples = torch.as_tensor(self.split.train)
        for epoch, order in enumerate(orders(self.run.seed, samples, self.rules.epochs)):
            parts = batches(order, self.run.batch_size)
            looks = {round(len(parts) * k / LOOKS_PER_EPOCH) for k in range(1, LOOKS_PER_EPOCH + 1)}
            for number, part in enumerate(parts, 1):
                self.model.train()
                loss = self.step(part, len(parts) * self.rules.epochs)
                tick()
                if not math.isfinite(loss):
                    return True
                if number in looks:
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


def batches_of(test: Tensor, size: int) -> list[Tensor]:
    """Return positions within the test split in batches of the training batch size."""
    return batches(torch.arange(len(test)), size)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of samples that are classified correctly in eval mode, with frozen statistics.

    Args:
        model: the network, which stays in eval mode.
        x: normalised samples.
        y: class numbers.
    """
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(part).argmax(1) == truth).sum())
            for part, truth in zip(x.split(CHUNK), y.split(CHUNK), strict=True)
        )
    return right / len(y)


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
    return right / len(seen) - evaluated
