"""Running statistics: how a layer stores them, which ones a mode uses, and how a batch enters them."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from slabnorm.cut import Counted
from slabnorm.errors import ModeWarning, OptionError, StatisticsError, StatisticsWarning
from slabnorm.kernels.backend import update_running
from slabnorm.kernels.call import Found, Given
from slabnorm.nn.diagnostics import name_of, recomputing, root_of, training_without_gradients, user_level
from slabnorm.slab import Slab
from slabnorm.tracing import readable

_NAMES = ("running_mean", "running_var")
_OWN = ("num_batches_skipped", "num_elements_tracked")


def held(layer: nn.Module, name: str) -> Any:
    """Return a parameter or buffer: ten times as fast as `nn.Module.__getattr__`, which is asked last."""
    for table in (layer._parameters, layer._buffers):
        if name in table:
            return table[name]
    return getattr(layer, name)  # pruning and parametrisation keep it elsewhere


class RunningStatistics(nn.Module):
    """The part of a norm layer that remembers what its batches looked like.

    Train mode, momentum m:   running = (1 - m) * running + m * batch      (batch: mean, unbiased var)
    Train mode, m = None:     running = average over all batches, each weighted by its count

    Of a batch with a mask enters what counts; a statistic of which nothing counts stays, and so does all if
    nothing counts. A batch with a statistic that is not finite is left out and counted. Each kind of warning
    is given once for a model, and names the first layer.

    `running_mean`, `running_var` and `num_batches_tracked` are stored. Two more stay out of the
    state_dict: `num_elements_tracked`, the elements per statistic that an average over all batches
    has seen, and `num_batches_skipped`, the batches left out because a statistic was not finite. The
    first travels in the state_dict's metadata, so that the keys stay those of `torch.nn`.

    Both running tensors are kept in float32 or better, whatever the layer is cast to.
    """

    _version = 2
    momentum: float | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    num_batches_skipped: Tensor | None
    num_elements_tracked: Tensor | None
    track_running_stats: bool

    def _init_running(
        self, shape: tuple[int, ...] | None, momentum: float | None, device: Any, dtype: torch.dtype | None
    ) -> None:
        if momentum is not None and not (isinstance(momentum, Real) and 0 <= momentum <= 1):
            raise OptionError(
                "momentum must be a number from 0 to 1, or None",
                repr(momentum),
                "it is the weight of the new batch: 0.1 is the usual one (some libraries call that 0.9)",
            )
        self.momentum = momentum
        self.track_running_stats = shape is not None
        self._warned: set[str] = set()
        self._store(shape, device, dtype)

    def _running(self, slab: Slab, observed: bool) -> Given | None:
        """Return the statistics that eval mode uses, one per slab; None if the batch's own are used."""
        if self.training:
            return None
        mean, var = held(self, "running_mean"), held(self, "running_var")
        if mean is None or var is None:
            return None
        if observed and not self._trained:
            self._warn_untrained(mean, var)
        if slab.kept.dims == slab.running.dims:
            return Given(mean, var)
        # The pattern keeps samples apart, the running statistics do not: all samples share them.
        split = [slab.split[dim] if dim in slab.kept.dims else 1 for dim in range(len(slab.split))]
        both = (slab.kept.gather(slab.running.spread(t).expand(split)) for t in (mean, var))
        return Given(*both)

    def _track(self, found: Found, slab: Slab, center: bool, observed: bool) -> None:
        """Let a batch's statistics enter the running ones, unless the forward is a recomputation."""
        running = held(self, "running_mean")
        if running is None or not self.track_running_stats or recomputing():
            return
        if observed:
            self._warn_half_frozen()
        if observed and center and self.momentum is not None and slab.kept.dims == slab.running.dims:
            written = running, held(self, "running_var")
            counters = (
                held(self, "num_batches_tracked"), held(self, "num_elements_tracked"),
                held(self, "num_batches_skipped"),
            )  # fmt: skip
            entered = update_running(found, slab.count, *written, float(self.momentum), *counters)
            if entered:
                increment_version([t for t in (*written, *counters) if t is not None])  # past autograd's eyes
                return
            if entered is False:
                self._skip(running)
                return
        mean, var = (t.to(running.dtype) for t in _of_batch(found, slab, center))
        self._enter(mean, var, slab.numel // mean.numel(), observed)

    def _track_counted(self, found: Counted, slab: Slab, center: bool, observed: bool) -> None:
        """Let statistics of different counts enter the running ones; a count of 0 has no weight."""
        running = held(self, "running_mean")
        if running is None or not self.track_running_stats or recomputing():
            return
        if observed:
            self._warn_half_frozen()
        mean, var, counts = _of_counted(found, slab, center)
        both = (mean, running), (var, held(self, "running_var"))
        mean, var = (torch.where(counts > 0, t.to(own.dtype), own) for t, own in both)
        count = counts.max()
        if not readable(count) or int(count) > 0:
            self._enter(mean, var, count, observed)

    def _enter(self, mean: Tensor, var: Tensor, count: int | Tensor, observed: bool) -> None:
        """Let mean and variance of so many elements enter, if they are finite."""
        finite = (mean.isfinite() & var.isfinite()).all()
        if not observed or mean.device.type != "cpu":
            # Reading it would wait for the device: both outcomes are computed, one is kept.
            self._update(mean, var, count, finite)
        elif finite:
            self._update(mean, var, count, None)
        else:
            self._skip(mean)

    def _skip(self, statistic: Tensor) -> None:
        if self.num_batches_skipped is not None:
            self.num_batches_skipped.add_(1)
        self._warn_once(
            "nonfinite",
            StatisticsWarning,
            f"a batch was left out of the running statistics: its own are not finite in {statistic.dtype}",
            "look for the layer or the data that made it; `num_batches_skipped` counts them",
        )

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor, count: int | Tensor, finite: Tensor | None) -> None:
        """Let a batch enter, if `finite` is true or None."""
        fine: int | Tensor = 1 if finite is None else finite.to(torch.int64)
        ones = fine * (count > 0)
        tracked, seen = self.num_batches_tracked, self.num_elements_tracked
        assert seen is not None
        factor: Tensor | float = self.momentum if self.momentum is not None else 0.0
        if self.momentum is None:
            if tracked is not None:
                # A checkpoint without the count: take its batches to have been like this one. Who sets the
                # batches to 0, as Lightning's averaging of weights does, starts anew.
                seen.copy_(torch.where((seen == 0) | (tracked == 0), tracked * count, seen))
            factor = (count / (seen + count).double().clamp(min=1)).to(mean.dtype)
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            assert running is not None
            running.lerp_(batch if finite is None else torch.where(finite, batch, running), factor)
        seen += count * ones
        if tracked is not None:
            tracked += ones
        if finite is not None and self.num_batches_skipped is not None:
            self.num_batches_skipped.add_(1 - fine)

    def _warn_modes(self, pools_samples: bool) -> None:
        if self.training and pools_samples and not torch.is_grad_enabled() and "mode" not in self._warned:
            if recomputing() or training_without_gradients():
                return
            moves = ", and it moves the running statistics" if self.track_running_stats else ""
            self._warn_once(
                "mode",
                ModeWarning,
                "a layer that pools samples runs in train mode while gradients are off, so its output "
                f"depends on the batch{moves}",
                "call model.eval() before you evaluate",
            )

    def _warn_half_frozen(self) -> None:
        weight = self._parameters.get("weight")
        if weight is None or weight.requires_grad or not torch.is_grad_enabled():
            return
        bias = self._parameters.get("bias")
        # What stands in for a parameter in torch.func.functional_call asks for no gradient, either.
        if isinstance(weight, nn.Parameter) and (bias is None or not bias.requires_grad):
            self._warn_once(
                "half frozen",
                ModeWarning,
                "weight and bias of a layer are constants (requires_grad=False), but its running statistics "
                "still move in train mode, and with them its output in eval mode",
                "call slabnorm.freeze(model), which keeps the statistics as they are, too",
            )

    def _warn_untrained(self, mean: Tensor, var: Tensor) -> None:
        if "untrained" in self._warned or not readable(mean):
            return
        # torch's instance norm never counts its batches, so the counter alone proves nothing.
        counted = self.num_batches_tracked is not None and bool(self.num_batches_tracked > 0)
        self._trained = counted or not bool((mean == 0).all() & (var == 1).all())
        if not self._trained:
            self._warn_once(
                "untrained",
                StatisticsWarning,
                "a layer runs in eval mode before any training step: its running statistics are "
                "still mean 0 and variance 1",
                "train first, load a checkpoint, or call train()",
            )

    def _warn_once(self, key: str, kind: type[Warning], what: str, fix: str) -> None:
        if key in self._warned:
            return
        root = root_of(self)
        for layer in (self, *root.modules()):
            if isinstance(layer, RunningStatistics):
                layer._warned.add(key)
        warn(f"{name_of(self, root)}: {what}\n  fix: {fix}", kind, stacklevel=user_level())

    def _store(self, shape: tuple[int, ...] | None, device: Any, dtype: torch.dtype | None) -> None:
        """Make the buffers; with shape None there are none."""
        for name in (*_NAMES, "num_batches_tracked"):
            self.register_buffer(name, None)
        for name in _OWN:
            self.register_buffer(name, None, persistent=False)
        self._trained = False  # whether running statistics are known to be more than the initial ones
        if shape is not None:
            wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
            self.running_mean = torch.zeros(shape, device=device, dtype=wide)
            self.running_var = torch.ones(shape, device=device, dtype=wide)
            self._restart(device)
            self.num_batches_tracked = torch.zeros((), device=device, dtype=torch.int64)

    def reset_running_stats(self) -> None:
        """Forget every batch: mean 0, variance 1, all counters 0."""
        self._trained = False
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self._restart(self.running_mean.device)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.zero_()

    def _restart(self, device: Any, elements: int = 0) -> None:
        """Make the counters that are not stored anew; on loading they may lie on the meta device."""
        self.num_batches_skipped = torch.zeros((), device=device, dtype=torch.int64)
        self.num_elements_tracked = torch.full((), elements, device=device, dtype=torch.int64)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: getattr(self, name) for name in _NAMES}
        super()._apply(fn, recurse)
        for name, kept in before.items():
            cast = getattr(self, name)
            if cast is not None and cast.dtype in (torch.float16, torch.bfloat16):
                # From the values before the cast: no round trip through half precision.
                setattr(self, name, kept.to(cast.device, torch.promote_types(kept.dtype, torch.float32)))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        seen = self.num_elements_tracked
        if metadata is not None and seen is not None and self.momentum is None and not seen.is_meta:
            metadata["num_elements_tracked"] = int(seen)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        stored = self.running_mean is not None and f"{prefix}running_mean" in state_dict
        counter = f"{prefix}num_batches_tracked"
        if stored:
            _check_loaded(state_dict, prefix)
            if local_metadata.get("version", 1) < 2 and counter not in state_dict:
                state_dict[counter] = torch.tensor(0)
                warn(
                    f"{prefix[:-1] or type(self).__name__}: an old checkpoint without num_batches_tracked; "
                    "its running statistics are used, the count of batches starts anew",
                    StatisticsWarning,
                    stacklevel=2,
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        if stored and self.running_mean is not None:
            self._restart(self.running_mean.device, local_metadata.get("num_elements_tracked", 0))
            self._trained = False
            for name in _NAMES:  # load_state_dict(assign=True) brings dtypes along
                loaded = getattr(self, name)
                if loaded.dtype not in (torch.float32, torch.float64):
                    setattr(self, name, loaded.float())


def _check_loaded(state_dict: dict[str, Any], prefix: str) -> None:
    for name in _NAMES:
        values = state_dict.get(prefix + name)
        if not isinstance(values, Tensor) or values.device.type == "meta":
            continue
        bad = ~values.isfinite() | (values < 0 if name == "running_var" else False)
        if bool(bad.any()):
            first = values[bad][0].item()
            raise StatisticsError(
                f"The checkpoint's running statistics are damaged: {prefix}{name}",
                f"{int(bad.sum())} values are not finite or, of a variance, negative; the first is {first}",
                "the checkpoint is damaged or the run had diverged: use an earlier one, or recompute them",
            )


def _of_batch(found: Found, slab: Slab, center: bool) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of a batch, averaged over samples that the pattern keeps apart."""
    if center:
        mean, var = found.mean, found.m2 / max(slab.count - 1, 1)
    else:
        mean, var = torch.zeros_like(found.mean), found.m2 / slab.count + found.mean.square()
    samples = [dim for dim in slab.kept.dims if dim not in slab.running.dims]
    if samples:
        spread = (slab.kept.spread(t).mean(samples, keepdim=True) for t in (mean, var))
        mean, var = (slab.running.gather(t) for t in spread)
    return mean, var


def _of_counted(found: Counted, slab: Slab, center: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_of_batch` does, and counts; samples that are kept apart weigh as much as they count."""
    count = found.counts
    if center:
        mean, var = found.mean, found.m2 / (count - 1).clamp(min=1)
    else:
        mean, var = torch.zeros_like(found.mean), found.m2 / count.clamp(min=1) + found.mean.square()
    samples = [dim for dim in slab.kept.dims if dim not in slab.running.dims]
    if samples:
        whole, mean, var = (
            slab.running.gather(slab.kept.spread(t).sum(samples, keepdim=True))
            for t in (count, mean * count, var * count)
        )
        mean, var, count = mean / whole.clamp(min=1), var / whole.clamp(min=1), whole
    return mean, var, count
