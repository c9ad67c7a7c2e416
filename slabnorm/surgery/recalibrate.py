"""recalibrate(): the running statistics of a model anew, exact for all samples of a loader."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from slabnorm.errors import DataError, ModelError, SlabWarning, StatisticsError
from slabnorm.functional import moments
from slabnorm.mergeable_moments import Moments
from slabnorm.nn import SlabNorm
from slabnorm.notation import Pattern, parse
from slabnorm.surgery.norms import input_of, valid_of
from slabnorm.surgery.record import Changed, Left, Surgery
from slabnorm.surgery.transaction import transaction
from slabnorm.surgery.walk import Place, Where, meant, walk

Run = Callable[[nn.Module, Any], Any]
_BATCH, _INSTANCE = parse("n c ... -> c"), parse("n c ... -> n c")


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    call: Run | None = None,
    sequential: bool = False,
    where: Where | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Surgery:
    """Compute the running statistics of a model's norms from all samples of a loader, exactly.

        running_mean = mean(x)        running_var = sum((x - mean(x))^2) / (count - 1)

    x is everything that a layer is given, over all batches: one merge of `Moments` in float64 per batch, each
    with its count, so that neither the order of batches nor their sizes change the result. An average over
    batches, as `torch.optim.swa_utils.update_bn` takes it, gives a batch of 2 the weight of one of 256 and
    leaves out how the means of batches differ.

    Which x a layer is given depends on the norms before it. By default these normalise by their own batch, as
    in training; everything else is in eval mode. So a layer that no other norm precedes gets the exact
    statistics of the model in eval mode, and a deeper one the exact statistics of its inputs in training,
    which do depend on how batches are cut. With `sequential=True` there is one sweep over the loader for each
    layer, in the order in which they run, with those before it exact already and in eval mode: all statistics
    are then those of the model in eval mode, and no layer depends on batches.

    Batch norms of torch.nn (SyncBatchNorm in one process) and of slabnorm are recalibrated, as are their
    subclasses, any SlabNorm with running statistics, and instance norms that track them: these get the
    averages of the samples' means and of their unbiased variances. A layer that is used several times gets
    the statistics of all its uses; while these are counted, it normalises by its own batch, and without the
    correction of batch renormalisation, which would follow the old statistics. What a call's `mask` or
    `lengths` leave out does not count. Layers that stay in eval mode when the model's `train()` is called are
    frozen, and stay as they are.

    Args:
        model: any module; a wrapper such as `AveragedModel` too. Modes, momentum and parameters come out as
            they were, and `num_batches_tracked` counts the batches.
        loader: batches; with `sequential=True` it is read once for each layer, and has to give the same
            samples each time, in any order.
        call: how the model is called with a batch. By default the first element of a tuple or list and any
            other batch is the one argument, and a dict holds keyword arguments; they are moved to the device
            of the model's first parameter.
        sequential: see above.
        where: which layers, by name and module; by default all. Of a shared layer one name is enough.
        progress: called after each batch with the batches done and those in all, 0 if that is not known.

    Returns:
        Which layers were recalibrated, and which were left and why: print it.

    Raises:
        DataError: the loader gives no batch or an empty tuple, or can be read only once and sequential=True
            reads it again.
        StatisticsError: what a layer is given is not finite, or is a single value per statistic.
        ModelError: `model` is no module.
        Whatever else happens, KeyboardInterrupt too, the model is as it was before.

    Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 2; Wu and Johnson, "Rethinking 'Batch' in
    BatchNorm" (2021), https://arxiv.org/abs/2105.07576

    >>> import slabnorm as sn, torch
    >>> x = torch.randn(258, 3, dtype=torch.float64)
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3, dtype=torch.float64))
    >>> sn.recalibrate(model, [x[:256], x[256:]])
    1 recalibrated, 0 left
      0  BatchNorm1d  -> statistics of 258 values in 2 batches
    >>> torch.allclose(model[0].running_var, x.var(0), rtol=1e-12)
    True
    """
    if not isinstance(model, nn.Module):
        raise ModelError("recalibrate() needs a torch.nn.Module", type(model).__name__, "give it the model")
    if sequential and isinstance(loader, Iterator):
        raise DataError(
            "The loader can be read only once, and sequential=True reads it once for each layer",
            type(loader).__name__,
            "give a DataLoader or a list, or leave sequential=True out",
        )
    with transaction(model), _modes(model):
        places, left = _chosen(model, where)
        sweeps = _Sweeps(model, loader, call or _call, progress, len(places) if sequential else 1)
        found = _in_turn(sweeps, places) if sequential else sweeps.run(places)
        for place in places:
            tally = found.get(place.name)
            if tally is not None and tally.runs:
                _store(place, tally)
    return _surgery(places, left, found)


def _surgery(places: list[Place], left: list[Left], found: dict[str, _Tally]) -> Surgery:
    changed = []
    for place in places:
        tally, kind = found.get(place.name), type(place.module).__name__
        if tally is None or not tally.runs:
            reason = "it did not run (give a compiled model's _orig_mod, whose hooks are seen)"
            left.append(Left(place.names, kind, reason))
            continue
        became = f"statistics of {tally.values:,} values in {tally.batches:,} batches"
        note = f"all its {tally.runs:,} uses" if tally.runs > tally.batches else ""
        changed.append(Changed(place.names, kind, became, note))
    return Surgery("recalibrated", tuple(changed), tuple(left))


class _Tally:
    """What a norm was given so far.

    Attributes:
        runs, batches: how often the norm ran, and in how many batches.
        values: how many values each of its statistics comes from.
    """

    def __init__(self, norm: nn.Module, name: str) -> None:
        self.norm, self.name = norm, name
        self.runs = self.batches = self.values = 0
        self.last = -1
        # Of all values; where samples are kept apart, of the samples' means, and of their variances.
        self.first = self.second = Moments.empty()

    def add(self, x: Tensor, batch: int, valid: Tensor | None = None) -> None:
        """Count an input of the norm, or what is valid of it.

        Raises:
            StatisticsError: it is not finite.
        """
        pattern, sizes, center = _pattern(self.norm)
        if isinstance(self.norm, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d):
            x = x[None] if x.dim() == self.norm._get_no_batch_dim() else x
        found = moments(x, pattern, mask=valid, **sizes)
        finite = found.mean.isfinite() & found.m2.isfinite()
        if not bool(finite.all()):
            raise StatisticsError(
                f"What {self.name or 'the model'} ({type(self.norm).__name__}) is given in batch {batch} is "
                "not finite",
                f"{int((~finite).sum())} of its {finite.numel()} means or variances",
                "look for the data, or the layer before it, that makes NaN or infinities",
            )
        counts = found.count
        if pattern.pools_samples:
            self.first = self.first + found
        else:
            axis = pattern.right.index(pattern.sample)
            var = found.var(1) if center else found.var() + found.mean.square()
            mean, var, counts = (t.movedim(axis, 0) for t in (found.mean, var, counts))
            some, enough = (None if valid is None else counts > least for least in (0, int(center)))
            self.first = self.first + moments(mean, "n ... -> ...", mask=some)
            self.second = self.second + moments(var, "n ... -> ...", mask=enough)
            counts = counts.sum(0)
        self.values += int(counts.max())
        self.note(batch)

    def note(self, batch: int) -> None:
        """Note that the norm ran."""
        self.runs += 1
        self.batches += batch != self.last
        self.last = batch

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance as the norm keeps them."""
        pattern, _, center = _pattern(self.norm)
        if not pattern.pools_samples:
            mean, var = self.first.mean, self.second.mean.where(self.second.count > 0, torch.nan)
        elif center:
            mean, var = self.first.mean, self.first.var(1)
        else:
            mean, var = self.first.mean, self.first.var() + self.first.mean.square()
        if not bool(var.isfinite().all()):
            raise StatisticsError(
                f"{self.name or 'The model'} ({type(self.norm).__name__}) was given one value per statistic, "
                "whose variance says nothing",
                fix="give more samples",
            )
        return (mean, var) if center else (torch.zeros_like(mean), var)


def _pattern(norm: Any) -> tuple[Pattern, dict[str, Any], bool]:
    """Return the pattern of a norm's statistics, sizes of its axes, and whether it centres."""
    if isinstance(norm, SlabNorm):
        return norm.pattern, norm.sizes, norm.center
    return _INSTANCE if isinstance(norm, _InstanceNorm) else _BATCH, {}, True


class _Sweeps:
    """Runs the model over the loader, again and again."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        call: Run,
        progress: Callable[[int, int], None] | None,
        sweeps: int,
    ) -> None:
        self.model, self.loader, self.call, self.progress = model, loader, call, progress
        self.done, self.batch = 0, 0
        try:
            self.total = len(loader) * sweeps  # type: ignore[arg-type]
        except TypeError:  # an iterator, or a DataLoader of what has no length
            self.total = 0

    def run(self, places: list[Place], training: bool = True, first_alone: bool = False) -> dict[str, _Tally]:
        """Run the model over all batches; return what some norms were given, by name, as they first ran.

        Args:
            places: the norms.
            training: whether they normalise by their own batch.
            first_alone: whether only the inputs of the one that runs first are counted.
        """
        found: dict[str, _Tally] = {}

        def hook(place: Place) -> Any:
            def count(norm: nn.Module, args: Any, options: Any) -> None:
                tally = found.setdefault(place.name, _Tally(norm, place.name))
                if first_alone and place.name != next(iter(found)):
                    tally.note(self.batch)
                else:
                    x = input_of(args, options)
                    tally.add(x, self.batch, valid_of(norm, x, options))

            return count

        self.model.eval()
        for place in places:
            place.module.train(training)
        handles = [place.module.register_forward_pre_hook(hook(place), with_kwargs=True) for place in places]
        self.batch = -1
        with torch.no_grad():
            for batch in self.loader:
                self.batch += 1
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", SlabWarning)  # of modes that are meant
                    self.call(self.model, batch)
                self.done += 1
                if self.progress is not None:
                    self.progress(self.done, self.total)
        for handle in handles:
            handle.remove()
        self.model.eval()
        if self.batch < 0:
            raise DataError("The loader gives no batch", type(self.loader).__name__, "give it samples")
        return found


def _in_turn(sweeps: _Sweeps, places: list[Place]) -> dict[str, _Tally]:
    """Return what each norm is given when those before it are exact and in eval mode; store it at once."""
    at_first = sweeps.run(places, training=False, first_alone=True)
    by_name = {place.name: place for place in places}
    found: dict[str, _Tally] = {}
    for name in at_first:  # in the order in which they ran
        place, tally = by_name[name], at_first[name]
        shared = tally.runs > tally.batches
        if found or shared:
            tally = sweeps.run([place], training=shared)[name]
        _store(place, tally)
        found[name] = tally
    return found


@torch.no_grad()
def _store(place: Place, tally: _Tally) -> None:
    norm: Any = place.module
    mean, var = tally.result()
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    if norm._buffers.get("num_batches_tracked") is not None:
        norm.num_batches_tracked.fill_(tally.runs)
    if norm._buffers.get("num_elements_tracked") is not None:
        norm.num_elements_tracked.fill_(tally.values)


def _chosen(model: nn.Module, where: Where | None) -> tuple[list[Place], list[Left]]:
    """Return the norms to recalibrate, and those that are left; the model is then in train mode."""
    places: list[Place] = []
    left: list[Left] = []
    model.train()
    for place in walk(model):
        norm: Any = place.module
        if not isinstance(norm, _BatchNorm | _InstanceNorm | SlabNorm):
            continue
        tracks = norm._buffers.get("running_mean") is not None
        if not tracks and not isinstance(norm, _BatchNorm):
            continue  # it never has any
        pattern, reason = _pattern(norm)[0], ""
        if not tracks:
            reason = "it has no running statistics"
        elif not meant(place, where):
            reason = "where= leaves it out"
        elif not norm.training:
            reason = "frozen: it stays in eval mode"
        elif not pattern.pools_samples and pattern.sample not in pattern.right:
            reason = "its statistics have samples and others on one axis"
        if reason:
            left.append(Left(place.names, type(norm).__name__, reason))
        else:
            places.append(place)
    return places, left


@contextmanager
def _modes(model: nn.Module) -> Iterator[None]:
    """Put modes back, and what layers have warned of; where an error is raised, a transaction does.

    Within, batch renormalisation is off.
    """
    # Of a frozen norm `training` says False, whatever mode it is to have once it is unfrozen.
    modes = [(module, vars(module).get("training", module.training)) for module in model.modules()]
    corrected = [(m, m.renorm) for m in model.modules() if isinstance(m, SlabNorm) and m.renorm is not None]
    for norm, _ in corrected:
        norm.renorm = None
    sets = [vars(module).get("_warned") for module in model.modules()]
    warned = [(kept, kept.copy()) for kept in sets if isinstance(kept, set)]
    yield
    model.train(modes[0][1])  # a model may do more in train() than note the mode
    for module, mode in modes:
        module.training = mode
    for norm, renorm in corrected:
        norm.renorm = renorm
    for kept, before in warned:
        kept.clear()
        kept.update(before)


def _call(model: nn.Module, batch: Any) -> Any:
    """Call a model as `update_bn` does, and with keyword arguments from a dict."""
    parameter = next(model.parameters(), None)

    def moved(x: Any) -> Any:
        return x.to(parameter.device) if parameter is not None and isinstance(x, Tensor) else x

    if isinstance(batch, Mapping):
        return model(**{name: moved(x) for name, x in batch.items()})
    if isinstance(batch, list | tuple):
        if not batch:
            raise DataError("A batch is empty", repr(batch), "give call=, which says what the model takes")
        batch = batch[0]
    return model(moved(batch))
