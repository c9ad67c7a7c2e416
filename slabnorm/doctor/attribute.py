"""attribute(): which layer's statistics cost how much of the metric."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slabnorm.errors import ModelError, OptionError
from slabnorm.report.attribution import Attribution, Cost
from slabnorm.surgery import recalibrate
from slabnorm.surgery.walk import walk

Metric = Callable[[nn.Module, Any], Any]
NEGLIGIBLE = 0.02  # of the gap: what costs less is not looked at alone
CERTAIN = 1.96  # standard errors on both sides of a 95% interval


def attribute(
    model: nn.Module,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
    metric: Metric,
    *,
    call: Callable[[nn.Module, Any], Any] | None = None,
    evaluations: int = 12,
) -> Attribution:
    """Find out which layers' running statistics cost how much of a metric.

        cost(layer) = metric(exact statistics everywhere) - metric(the layer's own, exact elsewhere)

    A copy of the model gets exact statistics of the training data (`recalibrate`). Then layers get back the
    statistics that they have, one at a time, the most distant first; layers that cost nothing together are
    not looked at alone. So a model of 50 layers, of which three are wrong, takes 8 evaluations. The model is
    not touched.

    Args:
        model: the model, with batch-pooling norms that keep running statistics.
        train_loader: training batches, for the exact statistics; read once.
        val_loader: validation batches; read once for each evaluation, in the same order each time.
        metric: `metric(model, batch)` returns one number for each sample of a validation batch, higher is
            better: `lambda model, batch: model(batch[0]).argmax(1) == batch[1]`.
        call: `call(model, batch)` runs the model on a training batch, as in `recalibrate`.
        evaluations: at most so many.

    Returns:
        An Attribution: print it. Intervals are of paired differences over the validation samples, by the
        normal approximation; they say nothing of other training runs.

    Raises:
        ModelError: the model has no running statistics, or does not run.
        OptionError: `evaluations` is below 4, or the metric returns something else than a number a sample.

    >>> import torch, slabnorm as sn
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
    >>> x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    >>> report = sn.recalibrate(model, x.split(64))
    >>> target = model.eval()(x).detach()
    >>> model[1].running_var *= 25  # somebody else's statistics
    >>> found = sn.attribute(model, x.split(64), list(zip(x.split(64), target.split(64))),
    ...                      lambda model, batch: -(model(batch[0]) - batch[1]).abs().squeeze(1))
    >>> found.costs[0].layers, round(found.costs[0].share, 2)
    (('1',), 1.0)
    """
    if evaluations < 4:
        raise OptionError("evaluations must be 4 or more", str(evaluations), "12 is the usual number")
    own = _statistics(model)
    if not own:
        raise ModelError(
            "The model has no layers with running statistics",
            type(model).__name__,
            "nothing in it differs between train and eval mode for want of statistics",
        )
    probe = copy.deepcopy(model)
    recalibrate(probe, train_loader, call=call)
    return _Search(probe, own, val_loader, metric, evaluations).run()


Statistics = dict[str, tuple[Tensor, Tensor]]


def _statistics(model: nn.Module) -> Statistics:
    """Return copies of all running statistics by layer."""
    found: Statistics = {}
    for place in walk(model):
        mean, var = (getattr(place.module, key, None) for key in ("running_mean", "running_var"))
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            found[place.name] = mean.detach().clone(), var.detach().clone()
    return found


class _Search:
    """The evaluations of one `attribute`, from the exact model towards the model as it is."""

    def __init__(self, probe: nn.Module, own: Statistics, loader: Any, metric: Metric, most: int) -> None:
        self.probe, self.own, self.exact = probe.eval(), own, _statistics(probe)
        self.loader, self.metric, self.most, self.done = loader, metric, most, 0
        self.known: dict[tuple[str, ...], tuple[float, float, float, float]] = {}
        self.distance = {name: _distance(own[name], self.exact[name]) for name in own}
        # What a damaged layer makes NaN counts as the worst that the exact model does.
        best = self._values(())
        finite = best[np.isfinite(best)]
        self.worst = float(finite.min()) if finite.size else 0.0
        self.best, self.now = self._finite(best), self._finite(self._values(tuple(own)))

    def run(self) -> Attribution:
        """Return which layers explain the gap."""
        gap, low, high = _interval(self.best - self.now)
        waiting = sorted(self.own, key=lambda name: -self.distance[name])
        waiting = [name for name in waiting if self.distance[name] > 0]
        innocent = [name for name in self.own if self.distance[name] == 0]
        costs: list[Cost] = []
        whole = (gap, low, high, float(self.now.mean()))
        if low <= 0 or not waiting:
            waiting, innocent = [], [*innocent, *waiting]
        width = 1
        while waiting:
            together = whole if len(waiting) + len(innocent) == len(self.own) else self._cost(waiting)
            if self._negligible(together, gap):
                innocent += waiting
                break
            group, rest = waiting[:width], waiting[width:]
            if rest and self.done + 2 > self.most:  # the group's, and then that of the rest
                costs.append(self._record(waiting, together, gap))
                break
            found = self._cost(group) if rest else together
            if self._negligible(found, gap):
                innocent += group
                waiting, width = rest, 2 * width
            elif len(group) == 1:
                costs.append(self._record(group, found, gap))
                waiting, width = rest, 1
            else:
                width = len(group) // 2  # one of these: look at fewer
        costs.sort(key=lambda cost: -cost.cost)
        means = float(self.now.mean()), float(self.best.mean())
        return Attribution(*means, low, high, tuple(costs), tuple(innocent), len(self.best), self.done)

    def _record(self, layers: list[str], found: tuple[float, float, float, float], gap: float) -> Cost:
        cost, low, high, value = found
        worst = max(self.distance[name] for name in layers)
        return Cost(tuple(layers), value, cost, low, high, cost / gap if gap else math.nan, worst)

    def _cost(self, layers: list[str]) -> tuple[float, float, float, float]:
        key = tuple(layers)
        if key not in self.known:
            values = self._finite(self._values(key))
            self.known[key] = (*_interval(self.best - values), float(values.mean()))
        return self.known[key]

    def _finite(self, values: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(values), values, self.worst)

    def _negligible(self, found: tuple[float, float, float, float], gap: float) -> bool:
        cost, low, _, _ = found
        return low <= 0 or cost < NEGLIGIBLE * gap

    @torch.no_grad()
    def _values(self, as_they_are: tuple[str, ...]) -> np.ndarray:
        """Return the metric of every validation sample, some layers with the statistics that they have."""
        for name, exact in self.exact.items():
            module = self.probe.get_submodule(name)
            for key, value in zip(
                ("running_mean", "running_var"),
                self.own[name] if name in as_they_are else exact,
                strict=True,
            ):
                getattr(module, key).copy_(value)
        self.done += 1
        values = [_numbers(self.metric(self.probe, batch)) for batch in self.loader]
        if not values:
            raise OptionError(
                "The validation loader is empty", "", "give the batches of the validation split"
            )
        return np.concatenate(values)


def _numbers(values: Any) -> np.ndarray:
    found = torch.as_tensor(values).detach().double().cpu()
    if found.dim() != 1:
        raise OptionError(
            "The metric must return one number for each sample of the batch",
            f"shape {tuple(found.shape)}",
            "such as model(batch[0]).argmax(1) == batch[1]",
        )
    numbers: np.ndarray = found.numpy()
    return numbers


def _interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of paired differences and its 95% interval."""
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    return mean, mean - CERTAIN * error, mean + CERTAIN * error


def _distance(own: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    """Return how far statistics are from the exact ones: the root mean square over channels."""
    (mean, var), (true_mean, true_var) = ((a.double(), b.double()) for a, b in (own, exact))
    spread = true_var.clamp(min=1e-12).sqrt()
    shift, scale = (mean - true_mean) / spread, (var.clamp(min=0).sqrt() / spread).log()
    moved = shift.square() + scale.clamp(-10, 10).square()
    return float(torch.where(moved.isfinite(), moved, torch.full_like(moved, 1e6)).mean().sqrt())
