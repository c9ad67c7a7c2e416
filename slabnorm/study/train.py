"""One run: one network, trained once and measured."""

from __future__ import annotations

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
from slabnorm.report.records import CurvePoint, RunRecord
from slabnorm.study.data import Dataset
from slabnorm.study.evaluate import accuracy, train_eval_gap
from slabnorm.study.layers import NormFactory
from slabnorm.study.models import Build
from slabnorm.study.scaling import apply
from slabnorm.text import printable

ORDER_SEED = 1_000_003  # keeps the order of samples apart from the initial weights of the same seed
NOISE_SEED = 2_000_003
LOOKS_PER_EPOCH = 4
WARM_UP = 10


@dataclass(frozen=True)
class Run:
    """Which run: the input scheme, the norm, the batch size, the seed, and the learning rate's multiple."""

    scheme: str
    norm: str
    batch_size: int
    seed: int
    rate: float = 1.0


@dataclass(frozen=True)
class Rules:
    """How every run trains, whatever its norm.

    SGD with momentum, the linear scaling rule (Goyal et al. 2017), cosine to zero:

        rate(step) = learning_rate * batch_size / reference_batch * (1 + cos(pi * step / steps)) / 2

    Args:
        epochs: passes over the training split.
        target: the validation accuracy that "steps to" counts to, 0 to 1.
        learning_rate: at the reference batch size.
        reference_batch: in samples.
        momentum: of SGD.
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
    """What all runs of a study share: the model, the data, the fitted inputs and the rules."""

    build: Build
    data: Dataset
    layers: dict[str, nn.Module]
    rules: Rules
    _scaled: dict[str, Tensor] = field(default_factory=dict)

    def inputs(self, scheme: str) -> Tensor:
        """Return all samples under a scheme; the last scheme asked for is kept."""
        if scheme not in self._scaled:
            self._scaled = {scheme: apply(self.layers[scheme], self.data)}
        return self._scaled[scheme]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_scaled": {}}


def batches(order: Tensor, size: int) -> list[Tensor]:
    """Return an order of samples in batches; a last batch of a single sample is left out.

    A single sample has no statistics of its own over a batch, and would end the run.
    """
    parts = list(order.split(size))
    return parts[:-1] if len(parts) > 1 and size > 1 and len(parts[-1]) == 1 else parts


def orders(seed: int, samples: Tensor, epochs: int) -> Iterator[Tensor]:
    """Yield the order of the training samples of each epoch; it depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed + ORDER_SEED)
    for _ in range(epochs):
        yield samples[torch.randperm(len(samples), generator=generator)]


def start(build: Build, norm: str, seed: int) -> tuple[nn.Module, NormFactory]:
    """Return a fresh network whose weights outside the norm layers depend on the seed alone."""
    torch.manual_seed(seed)
    factory = NormFactory(norm)
    model = build(factory)
    torch.manual_seed(seed + NOISE_SEED)
    return model, factory


def settle(model: nn.Module, x: Tensor) -> None:
    """Give lazy layers the shapes of a batch, and weights from the random stream as it stands."""
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", SlabWarning)  # no statistics yet: that is what this is for
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
    """Run on one thread with a random stream of its own, and leave both as they were.

    One thread in every process, so that results do not depend on the number of workers.
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
        run: which one.
        tick: called after every step; whatever it raises ends the run.

    Returns:
        The record; a run that slabnorm or the model refuses is "failed", with the reason.
    """
    with quiet_corner(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SlabWarning)
        try:
            record = Training(bench, run).measure(tick)
        except SlabError as error:
            reason = error.problem + (f" (got {error.got})" if error.got else "")
            record = RunRecord(**vars(run), status="failed", reason=printable(reason, 300))
        # A user's model may raise anything; it costs this run and not the study.
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
        """Train to the end or to the first loss that is not finite, and return what was measured."""
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
        """Train; return whether the loss stopped being finite."""
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
        """Take one optimiser step, timed, and return the loss before it."""
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
        """Measure the validation accuracy in eval mode and note it on the curve."""
        seen = torch.as_tensor(self.split.validation)
        share = accuracy(self.model, self.x[seen], self.y[seen])
        self.curve.append(CurvePoint(len(self.times), epoch, share, sum(self.losses) / len(self.losses)))
        self.losses.clear()


def batches_of(test: Tensor, size: int) -> list[Tensor]:
    """Return positions within the test split in batches of the training batch size."""
    return batches(torch.arange(len(test)), size)
