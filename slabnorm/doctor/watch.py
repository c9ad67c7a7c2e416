"""watch(): what a model does while the user's own loop trains it, looked at every few steps."""

from __future__ import annotations

import math
import os
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from slabnorm.doctor import rules
from slabnorm.doctor import thresholds as t
from slabnorm.doctor.probes import (
    RECTIFIERS,
    channel_axis,
    dead_share,
    described,
    first_of,
    flat_beyond,
    flat_share,
    hooks,
    ranks,
    whole,
)
from slabnorm.doctor.record import Layer
from slabnorm.doctor.ridge import Ridge
from slabnorm.errors import ModelError, OptionError
from slabnorm.nn.diagnostics import recomputing, training_without_gradients
from slabnorm.report.check import CheckRecord, Finding
from slabnorm.surgery.virtual_batch import runs_as_virtual_batch
from slabnorm.surgery.walk import walk
from slabnorm.text import listing

# Of a layer, for each step.
NUMBERS = ("mean", "spread", "running_mean", "running_spread", "flat", "dead", "gradient", "stale")
MOST_LOOKS = 2000  # that are kept: the numbers of 100 layers take 6.4 MB then


@dataclass
class Track:
    """One layer over time: a number for each step that was looked at, NaN where there is none.

    Attributes:
        layer: its name, class and role.
        mean: the mean of its input, over all its values.
        spread: the standard deviation of its input within channels, as a root mean square over channels.
        running_mean, running_spread: the same two of its running statistics, before the step.
        flat: the share of an activation's values where its derivative is next to nothing.
        dead: the share of a ReLU's channels that are 0 for the whole batch.
        gradient: the norm of its weight's gradient.
        stale: how far the batch's mean is from the running one, in running standard deviations: the root mean
            square over channels, without what the noise of a batch explains.
        ridge: how the values of its input are distributed, of norms and activations.
        limits: of an activation, below and above which of its inputs it is flat; None: nowhere.
    """

    layer: Layer
    mean: array[float] = field(default_factory=lambda: array("f"))
    spread: array[float] = field(default_factory=lambda: array("f"))
    running_mean: array[float] = field(default_factory=lambda: array("f"))
    running_spread: array[float] = field(default_factory=lambda: array("f"))
    flat: array[float] = field(default_factory=lambda: array("f"))
    dead: array[float] = field(default_factory=lambda: array("f"))
    gradient: array[float] = field(default_factory=lambda: array("f"))
    stale: array[float] = field(default_factory=lambda: array("f"))
    ridge: Ridge = field(default_factory=Ridge)
    limits: tuple[float | None, float | None] = (None, None)

    def add(self, **numbers: float) -> None:
        """Add a step; what is not given is NaN."""
        for name in NUMBERS:
            getattr(self, name).append(numbers.get(name, math.nan))

    def thin(self) -> None:
        """Keep every second step."""
        for name in NUMBERS:
            setattr(self, name, getattr(self, name)[::2])


@dataclass
class WatchRecord:
    """A training that was watched.

    Attributes:
        model: the class of the model.
        every: of how many steps one is looked at. It doubles whenever there are more than 2000 looks, and
            every second look is dropped then: a record does not grow with the length of the training.
        looks: the numbers of the steps that were looked at, from 0.
        steps: how many steps the optimisers made.
        ranks: the number of processes that train together.
        tracks: the layers over time.
        without_gradients: by layer, how many forwards it made in train mode with gradients off.
        in_eval: by layer, how many training forwards it made in eval mode.
        passes: how many forwards of the model in train mode, with gradients, steps had, as {passes: steps}.
            If the training calls the parts of the model instead of the model, those of a part count.
        samples: how many samples a norm with running statistics was last given, in a step looked at; 0: none.
        updates: by layer, how often a step moved its running statistics at most.
        first_bad: by layer, the first step whose running statistics were not finite.
        compiled: the modules that are compiled, and hide what is in them from hooks.
    """

    model: str
    every: int
    looks: list[int] = field(default_factory=list)
    steps: int = 0
    ranks: int = 1
    tracks: dict[str, Track] = field(default_factory=dict)
    without_gradients: Counter[str] = field(default_factory=Counter)
    in_eval: Counter[str] = field(default_factory=Counter)
    passes: Counter[int] = field(default_factory=Counter)
    samples: int = 0
    updates: dict[str, int] = field(default_factory=dict)
    first_bad: dict[str, int] = field(default_factory=dict)
    compiled: list[str] = field(default_factory=list)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong, errors first."""
        return tuple(rules.find_over_time(self))

    @property
    def healthy(self) -> bool:
        """Whether there is nothing worse than a note."""
        return self.summary.healthy

    def add(self, numbers: dict[str, dict[str, float]]) -> None:
        """Add a look at the step that ends, with the numbers of its layers."""
        for name, track in self.tracks.items():
            track.add(**numbers.get(name, {}))
        self.looks.append(self.steps)
        if len(self.looks) > MOST_LOOKS:
            self.looks, self.every = self.looks[::2], 2 * self.every
            for track in self.tracks.values():
                track.thin()

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be seen, and why."""
        found = []
        if self.compiled:
            names = listing([repr(name) for name in self.compiled[:3]])
            more = f" and {len(self.compiled) - 3} more" if len(self.compiled) > 3 else ""
            found.append(
                f"compiled, and so hidden from hooks: {names}{more}; only gradients and running statistics "
                "were watched there. Train uncompiled for some steps to see the rest"
            )
        seen = any(math.isfinite(value) for track in self.tracks.values() for value in track.spread)
        if self.looks and self.tracks and not seen:
            found.append(
                "no forward of its layers was seen, though optimisers made steps: what is trained is a "
                "compiled form of the model, or a copy; only gradients and running statistics were watched"
            )
        return tuple(found)

    @property
    def summary(self) -> CheckRecord:
        """The findings as a record that prints, and goes to JSON and SARIF."""
        norms = sum(track.layer.norm is not None for track in self.tracks.values())
        return CheckRecord(self.model, norms, len(self.tracks), self.samples, self.findings, self.notes)

    def as_dict(self) -> dict[str, Any]:
        """Return the record in JSON's own types; numbers that are not there are None."""
        plain = self.summary.as_dict()
        counted = {
            "passes": {str(passes): steps for passes, steps in self.passes.items()},
            "without_gradients": dict(self.without_gradients),
            "in_eval": dict(self.in_eval),
            "updates": dict(self.updates),
            "first_bad": dict(self.first_bad),
        }
        return {
            "every": self.every,
            "steps": self.steps,
            "looks": list(self.looks),
            "tracks": [_plain(track) for track in self.tracks.values()],
            **counted,
            "thresholds": {"flat": t.FLAT_SHARE, "dead": t.DEAD_SHARE, "stale": t.LAG},
            **{key: plain[key] for key in ("model", "findings", "notes", "healthy", "verdict")},
        }

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write an HTML report: each finding beside its evidence, each layer over time, and the whole model.

        Raises:
            ExtraError: the extra `slabnorm[study]` is not installed.
        """
        from slabnorm.files import write_atomically
        from slabnorm.report.watch import render_watch

        write_atomically(Path(path), render_watch(self.as_dict()))

    def __str__(self) -> str:
        return f"{self.steps} steps, {len(self.looks)} of them looked at\n{self.summary}"

    __repr__ = __str__


def _plain(track: Track) -> dict[str, Any]:
    """Return a layer over time in JSON's own types; of a number seven digits, which is what a float32 has."""
    numbers = {
        key: [float(f"{value:.7g}") if math.isfinite(value) else None for value in getattr(track, key)]
        for key in NUMBERS
    }
    layer = track.layer
    described = {"name": layer.name, "kind": layer.kind, "role": layer.role, "limits": list(track.limits)}
    return {**described, **numbers, "ridge": track.ridge.as_dict()}


@contextmanager
def watch(model: nn.Module, every: int = 10) -> Iterator[WatchRecord]:
    """Watch a model while the block trains it.

    Hooks count every forward, and measure every `every`-th step what enters each norm, linear layer and
    activation, and the gradients. Nothing is kept but a few numbers a layer and step. A step is a call of any
    `torch.optim` optimiser. The hooks are removed when the block ends, however it ends.

    Args:
        model: the module that the block trains. A compiled model hides its layers: watch the original and
            train it uncompiled for some steps. Of a compiled part only gradients and running statistics are
            watched, and the record's notes say so.
        every: of how many steps one is looked at. After 2000 looks it doubles, and every second look is
            dropped, again and again.

    Yields:
        A WatchRecord, filled while the block runs: `record.findings`, or print it.

    Raises:
        ModelError: `model` is no module, or is compiled.
        OptionError: `every` is not a positive integer.

    >>> import torch, slabnorm as sn
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with sn.watch(model, every=1) as record:
    ...     for _ in range(3):
    ...         optimizer.zero_grad()
    ...         model(torch.randn(16, 4)).square().mean().backward()
    ...         optimizer.step()
    >>> record.steps, record.healthy
    (3, True)
    """
    if not isinstance(model, nn.Module):
        raise ModelError("watch() needs a torch.nn.Module", type(model).__name__, "give it the model")
    if _is_compiled(model):
        raise ModelError(
            "A compiled model hides its layers from hooks", type(model).__name__,
            "watch the model as it was before it was compiled, and train that for some steps",
        )  # fmt: skip
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise OptionError("every must be a positive integer", repr(every), "10 is the usual one")
    watcher = _Watcher(model, every)
    with hooks() as handles:
        watcher.install(handles)
        yield watcher.record


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile made this module, or its own compile() compiles its calls."""
    dynamo = sys.modules.get("torch._dynamo")  # it takes seconds to import, and has made what is compiled
    made = dynamo is not None and isinstance(module, dynamo.OptimizedModule)
    return made or module._compiled_call_impl is not None


def _parts(model: nn.Module) -> list[nn.Module]:
    """Return what a training calls if not the model: its children, with those in lists and dicts."""
    found: list[nn.Module] = []
    for child in model.children():
        found += _parts(child) if isinstance(child, nn.ModuleList | nn.ModuleDict) else [child]
    return [part for part in dict.fromkeys(found) if not _is_compiled(part)]


@dataclass
class _Call:
    """A forward of the model, or of a part that was called by itself, that runs."""

    gradients: bool
    hands_over: bool = False  # to another forward of the model inside: a wrapper's way to run what calls it


class _Watcher:
    """The hooks of one `watch`.

    Numbers stay tensors until the step ends, and are read all at once: a GPU waits once a look. Hooks return
    at once while torch.compile traces them, so that compiled code has none of them.
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        self.model, self.record = model, WatchRecord(type(model).__name__, every, ranks=ranks())
        self.first_every = every
        self.modules: dict[str, nn.Module] = {}
        # Of the step that runs: the numbers, the model's forwards in train mode, those of its parts that ran
        # outside of these, those of each layer in eval mode, and the layers that ran in train mode; all with
        # gradients.
        self.now: dict[str, dict[str, Tensor]] = {}
        self.forwards = 0
        self.outside: Counter[nn.Module] = Counter()
        self.eval_now: Counter[str] = Counter()
        self.trained_now: set[str] = set()
        self.running: list[_Call] = []
        self.before: dict[str, int] = {}
        places = {place.name: place.module for place in walk(model)}
        self.record.compiled = [name for name, module in places.items() if _is_compiled(module)]
        for layer in described(model):
            self.modules[layer.name] = places[layer.name]
            self.record.tracks[layer.name] = Track(layer, limits=flat_beyond(places[layer.name]))
        self._count_updates()

    def install(self, handles: list[Any]) -> None:
        """Add the hooks."""
        for module in (self.model, *_parts(self.model)):
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        handles.append(register_optimizer_step_post_hook(self._stepped))
        for name, module in self.modules.items():
            if any(f"{name}.".startswith(f"{part}.") for part in self.record.compiled):
                continue
            handles.append(module.register_forward_pre_hook(self._entering(name), with_kwargs=True))
            if isinstance(module, RECTIFIERS):
                handles.append(module.register_forward_hook(self._leaving(name)))

    @property
    def looking(self) -> bool:
        return self.record.steps % self.record.every == 0

    def _enter(self, module: nn.Module, given: Any) -> None:
        if torch.compiler.is_compiling():
            return
        gradients = torch.is_grad_enabled()
        if module is self.model:
            for call in self.running:
                call.hands_over = True
        elif gradients and module.training and not self.running:
            self.outside[module] += 1
        self.running.append(_Call(gradients))

    def _leave(self, module: nn.Module, given: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self.running:
            return
        call = self.running.pop()
        if module is self.model and module.training and call.gradients and not call.hands_over:
            whole = runs_as_virtual_batch(self.modules.values())  # its parts are one forward
            self.forwards = max(1, self.forwards) if whole else self.forwards + 1

    def _forget_step(self) -> None:
        self.now, self.forwards, self.outside = {}, 0, Counter()
        self.eval_now, self.trained_now = Counter(), set()

    def _entering(self, name: str) -> Any:
        layer = self.record.tracks[name].layer
        norm = layer.norm

        def enter(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                return
            gradients = torch.is_grad_enabled()
            if norm is not None and norm.pools_samples:
                if module.training and not gradients:
                    # A part of a forward that learns may do without: an encoder that follows another one.
                    if not any(call.gradients for call in self.running) and not _on_purpose():
                        self.record.without_gradients[name] += 1
                elif not module.training and gradients and not layer.frozen:
                    self.eval_now[name] += 1
                elif module.training and gradients:
                    self.trained_now.add(name)
            if gradients and self.looking and name not in self.now:
                self.now[name] = self._numbers(name, module, first_of(given, named))

        return enter

    def _leaving(self, name: str) -> Any:
        def leave(module: nn.Module, given: Any, output: Any) -> None:
            if torch.compiler.is_compiling():
                return
            if self.looking and name in self.now and "dead" not in self.now[name]:
                self.now[name]["dead"] = dead_share(output.detach())

        return leave

    @torch.no_grad()
    def _numbers(self, name: str, module: nn.Module, x: Tensor | None) -> dict[str, Tensor]:
        if x is None or not x.is_floating_point() or x.dim() < 2 or not x.numel():
            return {}
        x = x.detach()
        axis = channel_axis(x)
        others = [d for d in range(x.dim()) if d != axis]
        # Two sweeps: torch.var_mean takes ten times as long on a CPU.
        mean = x.float().mean(others, keepdim=True)
        var, mean = (x - mean).square_().mean(others), mean.flatten()
        found = {"mean": mean.mean(), "spread": var.mean().sqrt()}
        flat = flat_share(module, x)
        if flat is not None:
            found["flat"] = flat
        running, spread = (getattr(module, key, None) for key in ("running_mean", "running_var"))
        if running is not None and spread is not None and running.shape == mean.shape:
            eps = self.record.tracks[name].layer.norm.eps  # type: ignore[union-attr]
            apart = ((mean - running).square() / (spread + eps)).mean()
            noise = (var / (spread + eps)).mean() / len(x)  # of the batch's mean: one value for each sample
            self.record.samples = len(x)
            found["stale"] = (apart - noise).clamp(min=0).sqrt()
            found["running_mean"], found["running_spread"] = running.mean(), spread.mean().sqrt()
        track = self.record.tracks[name]
        if track.layer.role in ("norm", "activation"):
            # Looks as they were at first, however many are dropped later.
            track.ridge.add(self.record.steps // self.first_every, self.record.steps, x)
        return found

    def _stepped(self, optimizer: Any, args: Any, options: Any) -> None:
        mine = {id(p) for p in self.model.parameters()}
        if not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
            return
        if self.looking:
            self._look()
        self._count_updates()
        self.record.passes[self.forwards or max(self.outside.values(), default=0)] += 1
        # An evaluation with gradients on, between two steps, is no training in eval mode.
        self.record.in_eval.update({n: k for n, k in self.eval_now.items() if n not in self.trained_now})
        self.record.steps += 1
        self._forget_step()

    @torch.no_grad()
    def _look(self) -> None:
        """Read what was measured in this step, gradients and whether running statistics are sound."""
        waiting = {name: dict(self.now.get(name, {})) for name in self.modules}
        for name, module in self.modules.items():
            weight = getattr(module, "weight", None)
            gradient = weight.grad if isinstance(weight, Tensor) else None
            if gradient is not None:
                waiting[name]["gradient"] = whole(gradient.float().norm())
            for key in ("running_mean", "running_var"):
                values = getattr(module, key, None)
                if isinstance(values, Tensor):
                    waiting[name][f"{key} is sound"] = values.isfinite().all()
        numbers = _read(waiting)
        for name, found in numbers.items():
            sound = [found.pop(f"{key} is sound", 1.0) for key in ("running_mean", "running_var")]
            if 0.0 in sound:
                self.record.first_bad.setdefault(name, self.record.steps)
        self.record.add(numbers)

    def _count_updates(self) -> None:
        for name, module in self.modules.items():
            counter = getattr(module, "num_batches_tracked", None)
            if isinstance(counter, Tensor) and counter.device.type == "cpu":
                seen = int(counter)
                if name in self.before:
                    moved = seen - self.before[name]
                    self.record.updates[name] = max(moved, self.record.updates.get(name, 0))
                self.before[name] = seen


def _read(waiting: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, float]]:
    """Return the numbers of tensors without axes, each device asked once."""
    flat = {(name, key): value for name, some in waiting.items() for key, value in some.items()}
    found: dict[str, dict[str, float]] = {name: {} for name in waiting}
    for device in {value.device for value in flat.values()}:
        here = {place: value.float() for place, value in flat.items() if value.device == device}
        for (name, key), value in zip(here, torch.stack(list(here.values())).tolist(), strict=True):
            found[name][key] = value
    return found


def _on_purpose() -> bool:
    return recomputing() or training_without_gradients()
