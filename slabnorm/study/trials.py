"""A trial: one network of a claim, trained once and watched on the way."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import SlabWarning, StatisticsError
from slabnorm.report.study import CurvePoint
from slabnorm.study import networks
from slabnorm.study.data import SPLIT_SEED, Dataset, Split, stratified
from slabnorm.study.models import Build
from slabnorm.study.scaling import apply, fit_inputs
from slabnorm.study.train import (
    Rules,
    Training,
    accuracy,
    batches_of,
    quiet_corner,
    start,
    train_eval_gap,
)
from slabnorm.study.watch import CLIFF, LAST, WATCHERS, Watcher

RNN, TRANSFORMER = "recurrent", "transformer"
GAP_SAMPLES = 500  # of the test split, on which train mode is measured: in small batches it takes long
CONVOLUTIONAL = {"conv": networks.conv, "conv with head": networks.conv_with_head}


@dataclass(frozen=True)
class Trial:
    """One network to be trained once: all that decides its result, beside the data.

    Args:
        network: "mlp", "conv", "conv with head" or "conv per pixel" for images, "transformer" or "recurrent"
            for text.
        norm: the norm in it, by the names that `compare` has, or a pattern.
        scheme: how the inputs are scaled: "raw", "fixed", "minmax" or "zscore".
        depth, gain: of an mlp; see `networks.mlp`.
        batch_size: samples per step.
        rate: the learning rate of the first step, from which it falls to zero by a cosine.
        epochs: passes over the training split.
        seed: of weights and order.
        watch: what is looked at: names of WATCHERS during training, and of LAST at its end.
        samples: how many of the training samples an epoch has, the same ones in each; 0 for all.
        looks: how often the network is looked at in the whole training; 0 for four times an epoch.
        affine: False keeps the weight of every norm layer at 1 and its bias at 0.
    """

    network: str = "mlp"
    norm: str = "none"
    scheme: str = "zscore"
    depth: int = 2
    gain: float = 1.0
    batch_size: int = 128
    rate: float = 0.1
    epochs: int = 1
    seed: int = 0
    watch: tuple[str, ...] = ()
    samples: int = 0
    looks: int = 0
    affine: bool = True


@dataclass(frozen=True)
class TrialRecord:
    """What came of a trial.

    Args:
        status: "done"; "diverged": a loss that is not finite ended the training; or "refused": a norm layer
            found no statistics in a batch, as of one value per slab.
        accuracy: on the test split in eval mode, from 0 to 1.
        gap: the accuracy in train mode, in batches of the training batch size, minus that in eval mode, on at
            most GAP_SAMPLES of the test samples.
        curve: the looks at the validation split.
        seen: what each watcher saw, one list for each time it looked: before training and at every look, or
            once at the end.
        seconds: how long it took.
    """

    status: str
    accuracy: float
    gap: float
    curve: tuple[CurvePoint, ...]
    seen: dict[str, list[list[float]]]
    seconds: float

    @property
    def validation(self) -> float:
        """The validation accuracy at the end; 0 if the training diverged."""
        return self.curve[-1].accuracy if self.status == "done" and self.curve else 0.0

    def steps_to(self, target: float) -> float:
        """Return the steps to a validation accuracy, on straight lines between looks; inf for never."""
        before_step, before = 0, 0.0
        for point in self.curve:
            if point.accuracy >= target:
                share = (target - before) / (point.accuracy - before)
                return before_step + share * (point.step - before_step)
            before_step, before = point.step, point.accuracy
        return math.inf


class Windows(NamedTuple):
    """Windows of text, to learn which letter follows.

    Args:
        codes: (n, t + 1) numbers of letters; the network sees the first t and predicts the last t.
        split: which windows are for training, validation and test.
        letters: the letters, in the order of their numbers.
    """

    codes: Tensor
    split: Split
    letters: str


class Trials:
    """Does trials: what all of them share is the data.

    Args:
        data: labelled images.
        text: windows of text.
    """

    def __init__(self, data: Dataset, text: Windows) -> None:
        self.data, self.text = data, text
        self._scaled: dict[str, Tensor] = {}

    def do(self, trial: Trial, tick: Callable[[], None]) -> TrialRecord:
        """Train and measure one network, on one thread and with random numbers of its own."""
        began = time.perf_counter()
        with quiet_corner(), warnings.catch_warnings():
            # What slabnorm warns of (a batch left out of the running statistics) shows in what is measured.
            warnings.simplefilter("ignore", SlabWarning)
            x, y, split = self._samples(trial)
            model, factory = start(self._build(trial), trial.norm, trial.seed)
            if not trial.affine:
                for layer in factory.made:
                    layer.requires_grad_(False)
            watching = Watching(trial.watch)
            rules = Rules(trial.epochs, 0.0, 1.0, trial.batch_size, looks=trial.looks or None)
            training = Training(model, x, y, split, rules, trial, watching)
            try:
                watching(training)
                diverged = training.train(tick)
                watching.end(training)
            except StatisticsError:
                return TrialRecord("refused", 0.0, 0.0, (), watching.seen, time.perf_counter() - began)
            test = torch.as_tensor(split.test)
            # At random: a split may be sorted by class, and batches of one class have other statistics.
            order = torch.randperm(len(test), generator=torch.Generator().manual_seed(SPLIT_SEED))
            few = test[order[:GAP_SAMPLES]]
            return TrialRecord(
                status="diverged" if diverged else "done",
                accuracy=accuracy(model, x[test], y[test]),
                gap=train_eval_gap(model, x[few], y[few], batches_of(few, trial.batch_size)),
                curve=tuple(finite(point) for point in training.curve),
                seen=watching.seen,
                seconds=time.perf_counter() - began,
            )

    def steps(self, trial: Trial) -> int:
        """Return how many optimiser steps a trial takes at most."""
        return -(-len(self._split(trial).train) // trial.batch_size) * trial.epochs

    def revive(self, kept: dict[str, Any]) -> TrialRecord:
        """Return a record from what a ledger has kept of it."""
        curve = tuple(CurvePoint(**point) for point in kept["curve"])
        seen = {name: [[tame(one) for one in look] for look in looks] for name, looks in kept["seen"].items()}
        return TrialRecord(**{**kept, "curve": curve, "seen": seen})

    def _samples(self, trial: Trial) -> tuple[Tensor, Tensor, Split]:
        if trial.network in (RNN, TRANSFORMER):
            codes = self.text.codes
            return codes[:, :-1], codes[:, 1:], self._split(trial)
        if trial.scheme not in self._scaled:
            layer, _ = fit_inputs(self.data, trial.scheme)
            self._scaled = {trial.scheme: apply(layer, self.data)}
        return self._scaled[trial.scheme], torch.as_tensor(self.data.y), self._split(trial)

    def _split(self, trial: Trial) -> Split:
        of_text = trial.network in (RNN, TRANSFORMER)
        split = self.text.split if of_text else self.data.split
        if not 0 < trial.samples < len(split.train):
            return split
        # Of text the first windows: they follow each other. Of labelled samples each class keeps its share.
        few = (
            split.train[: trial.samples]
            if of_text
            else stratified(split.train, self.data.y, trial.samples, SPLIT_SEED)
        )
        return Split(few, split.validation, split.test)

    def _build(self, trial: Trial) -> Build:
        if trial.network == RNN:
            return partial(networks.Recurrent, letters=len(self.text.letters))
        if trial.network == TRANSFORMER:
            return partial(networks.Transformer, letters=len(self.text.letters))
        shape, classes = self.data.sample_shape, len(self.data.classes)
        if trial.network in CONVOLUTIONAL:
            return partial(CONVOLUTIONAL[trial.network], channels=shape[0], classes=classes)
        if trial.network == "conv per pixel":
            return partial(networks.conv_per_pixel, shape=shape, classes=classes)
        return partial(
            networks.mlp,
            features=int(np.prod(shape)),
            classes=classes,
            depth=trial.depth,
            gain=trial.gain,
        )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_scaled": {}}


class Watching:
    """Looks at a network during training, by the watchers of the names given; what they saw is in `seen`."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.watchers = {name: WATCHERS[name]() for name in names if name in WATCHERS}
        self.seen: dict[str, list[list[float]]] = {name: [] for name in names}

    def __call__(self, training: Training) -> None:
        for name, watcher in self.watchers.items():
            self._look(name, watcher, training)

    def end(self, training: Training) -> None:
        """Look once more, at what is looked at when the training has ended."""
        for name in self.names:
            if name in LAST:
                self._look(name, LAST[name](), training)

    def _look(self, name: str, watcher: Watcher, training: Training) -> None:
        self.seen[name].append([tame(float(value)) for value in watcher(training)])


def tame(value: float) -> float:
    """Return a number, or CLIFF for one that is not finite, as after a step to infinite weights."""
    return value if math.isfinite(value) else CLIFF


def finite(point: CurvePoint) -> CurvePoint:
    """Return a point of a curve with None for a loss that is not finite."""
    known = point.loss is not None and np.isfinite(point.loss)
    return point if known else replace(point, loss=None)


def in_seeds(trial: Trial, seeds: tuple[int, ...]) -> list[Trial]:
    """Return a trial with each of some seeds."""
    return [replace(trial, seed=seed) for seed in seeds]
