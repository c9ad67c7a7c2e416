"""fixes(): what the doctor can change by itself, shown first and done on request."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from slabnorm.doctor.probes import examine
from slabnorm.doctor.record import ModelRecord
from slabnorm.doctor.remedies import ORDER, Patient, Remedy, remedy
from slabnorm.doctor.rules import CAUSES, find
from slabnorm.errors import ModelError, OptionError
from slabnorm.report.check import Finding
from slabnorm.report.fixes import Fix, FixRecord, Unfixed
from slabnorm.surgery import recalibrate
from slabnorm.surgery.effect import Before, after, before
from slabnorm.surgery.parameter_groups import check_optimizer, unchanged_if_it_fails
from slabnorm.surgery.transaction import Generators, transaction
from slabnorm.text import printable

BY_LOADER = (201, 202, 203)  # what exact running statistics take away
GAP = 105  # what statistics that are taken anew may take away
INPUTS = (401, 402, 408)  # findings of inputs that are not what the model takes
STAYS = 0.01  # by how much outputs may move at most, however coarse their dtype
Metric = Callable[[nn.Module], Any]


def fixes(
    model: nn.Module,
    batch: Any,
    optimizer: Optimizer | None = None,
    *,
    loader: Iterable[Any] | None = None,
    metric: Metric | None = None,
    call: Callable[[nn.Module, Any], Any] | None = None,
    codes: Collection[int] | None = None,
) -> Fixes:
    """Return what the doctor can change about its findings by itself. Nothing is changed before `apply()`.

    | code | change | outputs |
    |---|---|---|
    | 102 | the layer goes to train mode, as its block | those of the batch's statistics in train mode |
    | 103 | `freeze` | the same from now on |
    | 201, 202, 203 | `recalibrate`, with the loader | those of exact statistics |
    | 204 | momentum becomes 1 - momentum | stay; with a loader, those of exact statistics |
    | 301 | bias = None and running_mean - bias | stay, to rounding |
    | 302 | parameter groups with weight_decay=0, the state kept | stay |
    | 501 | eps = 1e-5 | change where variances are not far above that |
    | 502 | the norm in float32 | stay, to rounding |

    Every other finding, and those of layers of which it is not certain, is listed as left, with what to do.
    Layers that are kept in eval mode on purpose keep their statistics; and as long as the inputs look wrong
    (401, 402, 408), no statistics are taken of them.

    Args:
        model, batch, optimizer: as of `check`. Without the optimiser weight decay is not looked at; and an
            optimiser that is not given here goes on to hold a bias that is gone, which does nothing.
        loader: the training batches, which `apply` reads once, for running statistics.
        metric: `metric(model)` returns a number; `apply` asks it before and after, for copies in eval mode.
        call: how the model is called with a batch of the loader, as of `recalibrate`.
        codes: only findings of these codes are fixed. By default all are.

    Returns:
        The fixes: print them, then call `apply()`.

    Raises:
        ModelError: the model is none, cannot be copied, or does not run on the batch.
        OptionError: the optimizer is not the model's, a code is unknown, the loader gives no batches, or the
            metric cannot be called.

    >>> import torch, slabnorm as sn
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8, momentum=0.99))
    >>> found = sn.fixes(model, torch.randn(32, 4))
    >>> print(found)
    Sequential: 2 changes to make, 0 left to you
      301  0  a bias of 8 numbers  -> no bias        in the code: bias=False; 1's running mean is lower by it
      204  1  momentum=0.99        -> momentum=0.01  in the code too
    >>> found.apply().done, model[0].bias, model[1].momentum
    (True, None, 0.01)
    """
    if not isinstance(model, nn.Module):
        raise ModelError("fixes() needs a torch.nn.Module", type(model).__name__, "give it the model")
    if optimizer is not None:
        check_optimizer(optimizer, model)
    _check_codes(codes)
    _check_loader(loader)
    if metric is not None and not callable(metric):
        problem, fix = "metric must be a function of the model", "metric=lambda model: accuracy(model, data)"
        raise OptionError(problem, type(metric).__name__, fix)
    record = examine(model, batch, optimizer)
    everything = find(record)
    found = [finding for finding in everything if codes is None or finding.code in codes]
    remedies, left = _chosen(Patient(model, record, optimizer), batch, found)
    kept, why_not = _kept(record, everything), _why_not_anew(loader, everything)
    damaged = {finding.layer: finding for finding in found if finding.code in BY_LOADER}
    wanted = any(name not in kept for name in damaged) or any(each.fix.code == 204 for each in remedies)
    anew = _anew(record, damaged, kept) if wanted and not why_not else []
    left = [one for one in left if one.code != GAP or all(fix.layer != one.layer for fix in anew)]
    for name, finding in damaged.items():
        reason = "it stays in eval mode on purpose" if name in kept else why_not
        if reason:
            left.append(Unfixed(finding.code, name, finding.fix, reason))
    rows = (*(each.fix for each in remedies), *anew)
    plan = FixRecord(type(model).__name__, rows, tuple(left))
    return Fixes(plan, model, batch, optimizer, loader, metric, call, remedies, anew, kept)


@dataclass(repr=False)
class Fixes:
    """What the doctor can change about a model by itself: print it, then call `apply()`.

    Attributes:
        record: the changes and what is left, as plain data.
    """

    record: FixRecord
    _model: nn.Module
    _batch: Any
    _optimizer: Optimizer | None
    _loader: Iterable[Any] | None
    _metric: Metric | None
    _call: Any
    _remedies: list[Remedy]
    _anew: list[Fix]  # a row for each norm whose statistics are taken anew
    _kept: set[str]

    def __str__(self) -> str:
        return str(self.record)

    __repr__ = __str__

    def apply(self) -> FixRecord:
        """Make the changes, and return what was done: print it.

        The model and the optimiser are changed wholly or not at all. Modes stay as they are, but those of
        102 and 103, and so do random numbers. What was changed between `fixes` and `apply` is not looked at
        again.

        Raises:
            OptionError: it was done before, or the metric returns no number.
            ModelError: the model does not run on the batch in eval mode.
            Whatever else happens in the loader or the metric, model and optimiser are as they were before.
        """
        if self.record.done:
            raise OptionError("These fixes are applied already", "", "call fixes() again")
        if not self.record.fixed:
            return self.record
        generators = Generators()
        with transaction(self._model), unchanged_if_it_fails(self._optimizer):
            was = self._measured()
            found = before(self._model, self._batch, [])
            fixed, left = self._changed()
            difference, _ = after(self._model, found)
            now = self._measured()
        generators.put_back()
        self.record = FixRecord(self.record.model, fixed, left, True, difference, was, now)
        return self.record

    def _changed(self) -> tuple[tuple[Fix, ...], tuple[Unfixed, ...]]:
        """Make the changes; return them, with what became of running statistics, and what is left."""
        for each in self._remedies:
            if not each.last:
                each.act(self._model, self._optimizer)
        anew, left = self._recalibrated() if self._anew else ([], [])
        for each in self._remedies:
            if each.last:
                each.act(self._model, self._optimizer)
        return (*(each.fix for each in self._remedies), *anew), (*left, *self.record.left)

    def _recalibrated(self) -> tuple[list[Fix], list[Unfixed]]:
        """Take running statistics anew, and return what became of them, and where they stay."""
        assert self._loader is not None
        kept = [self._model.get_submodule(name) for name in self._kept]
        done = recalibrate(
            self._model, self._loader, call=self._call, where=lambda _, norm: all(norm is not k for k in kept)
        )
        planned = {fix.layer: fix for fix in self._anew}
        changed = {layer.names[0]: layer for layer in done.changed}
        reasons = {layer.names[0]: layer.reason for layer in done.left}
        fixed = [
            replace(fix, becomes=changed[name].became, note=changed[name].note)
            for name, fix in planned.items()
            if name in changed
        ]
        advice = "sn.recalibrate(model, train_loader)"
        left = [
            Unfixed(fix.code, name, advice, reasons.get(name, "sn.recalibrate does not know its class"))
            for name, fix in planned.items()
            if name not in changed
        ]
        return fixed, left

    def _measured(self) -> float | None:
        """Return the metric of a copy in eval mode, which may do with it what it likes."""
        if self._metric is None:
            return None
        value = self._metric(copy.deepcopy(self._model).eval())
        try:
            return float(value.detach() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError) as error:  # torch's own for a complex number
            raise OptionError(
                "The metric must return one number",
                type(value).__name__,
                "such as the share of right answers",
            ) from error


def _check_codes(codes: Any) -> None:
    known = "such as codes=(201, 301)"
    if codes is not None and not isinstance(codes, Collection):
        raise OptionError("codes must be a collection of codes", type(codes).__name__, known)
    for code in codes or ():
        if code not in CAUSES:
            raise OptionError("codes must be codes of findings", printable(repr(code)), known)


def _check_loader(loader: Any) -> None:
    if isinstance(loader, Tensor):
        got = f"a tensor of shape {tuple(loader.shape)}"
        raise OptionError("loader must give batches, and a tensor gives samples", got, "loader=x.split(128)")
    if loader is not None and not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        got = type(loader).__name__
        raise OptionError("loader must give batches", got, "loader=train_loader, or a list of batches")


def _why_not_anew(loader: Any, found: list[Finding]) -> str:
    """Return why running statistics are not taken anew; "" if they are."""
    if loader is None:
        return "it takes loader=, the training batches"
    wrong = [finding.code for finding in found if finding.code in INPUTS and finding.severity != "note"]
    return f"the inputs come first ({wrong[0]}): statistics of wrong ones would be wrong too" if wrong else ""


def _anew(record: ModelRecord, damaged: dict[str, Finding], kept: set[str]) -> list[Fix]:
    """Return a row for each norm whose running statistics are to be those of the loader."""
    rows = []
    for layer in record.norms:
        if layer.norm is not None and layer.norm.tracks and layer.name not in kept:
            finding = damaged.get(layer.name)
            code, was = (None, "its running statistics") if finding is None else (finding.code, finding.text)
            rows.append(Fix(code, layer.name, was, "statistics of the loader"))
    return rows


def _chosen(patient: Patient, batch: Any, found: list[Finding]) -> tuple[list[Remedy], list[Unfixed]]:
    """Return the remedies in the order in which they are made, and what is left but statistics."""
    remedies: list[Remedy] = []
    left: list[Unfixed] = []
    pairs = [(f, remedy(patient, f)) for f in found if f.code not in BY_LOADER]
    proven = _proven(patient.model, batch, [r for _, r in pairs if isinstance(r, Remedy) and r.keeps])
    for finding, got in pairs:
        if isinstance(got, Remedy) and got.keeps and got not in proven:
            got = "the model's outputs may not stay: something else reads it, or rounding matters"
        if isinstance(got, Remedy):
            remedies.append(got)
        else:
            left.append(Unfixed(finding.code, finding.layer, finding.fix, got))
    return sorted(remedies, key=lambda each: ORDER.index(each.fix.code)), left


def _proven(model: nn.Module, batch: Any, remedies: list[Remedy]) -> list[Remedy]:
    """Return the remedies that together leave a model's outputs as they are, to rounding in their dtype."""
    if not remedies:
        return []
    steps = [torch.finfo(y.dtype).eps for y in before(model, batch, []).outputs]
    allowed = min(max(steps, default=0.0) ** 0.5, STAYS)
    try:  # in float64, as a deep model multiplies rounding
        copied = copy.deepcopy(model).double()
        runs = _both_modes(copied, pytree.tree_map(_as_float64, batch))
    except ModelError:  # it insists on its dtype
        copied, runs = model, _both_modes(model, batch)
    if _outputs_stay(copied, runs, remedies, allowed):
        return remedies
    alone = [each for each in remedies if _outputs_stay(copied, runs, [each], allowed)]
    return alone if alone and _outputs_stay(copied, runs, alone, allowed) else []


def _both_modes(model: nn.Module, batch: Any) -> list[Before]:
    """Run a model in both modes: damaged statistics hide in eval mode what train mode shows."""
    return [before(model, batch, [], training=training) for training in (True, False)]


def _as_float64(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _outputs_stay(model: nn.Module, runs: list[Before], remedies: list[Remedy], allowed: float) -> bool:
    """Whether the outputs of a copy move by no more than is allowed, as a share of their size."""
    twin = copy.deepcopy(model)
    for each in remedies:
        each.act(twin, None)
    for found in runs:
        try:
            moved, _ = after(twin, found)
        except ModelError:  # something reads what is gone
            return False
        if moved is None or moved > allowed:
            return False
    return True


def _kept(record: ModelRecord, found: list[Finding]) -> set[str]:
    """Return the names of norms whose statistics are kept on purpose, or are about to be frozen."""
    kept = {
        layer.name for layer in record.norms if layer.norm is not None
        and (layer.frozen or (record.training and not layer.training and not layer.norm.learns))
    }  # fmt: skip
    damaged = {finding.layer for finding in found if finding.code in BY_LOADER}
    return kept | {finding.layer for finding in found if finding.code == 103 and finding.layer not in damaged}
