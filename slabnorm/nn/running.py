"""Running statistics: which ones a mode uses, how a batch enters them, and what is worth a warning."""

from __future__ import annotations

from numbers import Real
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from slabnorm import kernels
from slabnorm.errors import ModeWarning, OptionError, StatisticsWarning
from slabnorm.kernels.call import Found, Given
from slabnorm.nn.stored import StoredStatistics
from slabnorm.nn.where import checkpointing, name_of, recomputing, root_of, user_level
from slabnorm.slab import Slab
from slabnorm.tracing import readable


def held(layer: nn.Module, name: str) -> Any:
    """Return a parameter or buffer: ten times as fast as `nn.Module.__getattr__`, which is asked last."""
    for table in (layer._parameters, layer._buffers):
        if name in table:
            return table[name]
    return getattr(layer, name)  # pruning and parametrisation keep it elsewhere


class RunningStatistics(StoredStatistics):
    """The part of a norm layer that remembers what its batches looked like.

    Train mode, momentum m:   running = (1 - m) * running + m * batch      (batch: mean, unbiased var)
    Train mode, m = None:     running = average over all batches, each weighted by its count

    A batch with a statistic that is not finite is left out and counted. Each kind of warning is given once
    for a model, and names the first layer.
    """

    track_running_stats: bool

    def _init_running(
        self, shape: tuple[int, ...] | None, momentum: float | None, device: Any, dtype: torch.dtype | None
    ) -> None:
        if momentum is not None and not (isinstance(momentum, Real) and 0 <= momentum <= 1):
            raise OptionError(
                "momentum is the weight of the new batch, from 0 to 1, or None for the average of all",
                repr(momentum),
                "0.1 is the usual one (some libraries call that 0.9)",
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
        if observed and center and self.momentum is not None and slab.kept.dims == slab.running.dims:
            written = running, held(self, "running_var")
            counters = (
                held(self, "num_batches_tracked"), held(self, "num_elements_tracked"),
                held(self, "num_batches_skipped"),
            )  # fmt: skip
            entered = kernels.enter(found, slab.count, *written, float(self.momentum), *counters)
            if entered:
                increment_version([t for t in (*written, *counters) if t is not None])  # past autograd's eyes
                return
            if entered is False:
                self._skip(running)
                return
        mean, var = (t.to(running.dtype) for t in _of_batch(found, slab, center))
        count = slab.numel // mean.numel()
        finite = (mean.isfinite() & var.isfinite()).all()
        if not observed or mean.device.type != "cpu":
            # Reading it would wait for the device: both outcomes are computed, one is kept.
            self._enter(mean, var, count, finite)
        elif finite:
            self._enter(mean, var, count, None)
        else:
            self._skip(running)

    def _skip(self, running: Tensor) -> None:
        if self.num_batches_skipped is not None:
            self.num_batches_skipped.add_(1)
        self._warn_once(
            "nonfinite",
            StatisticsWarning,
            f"a batch was left out of the running statistics: its own are not finite in {running.dtype}",
            "look for the layer or the data that made it; `num_batches_skipped` counts them",
        )

    @torch.no_grad()
    def _enter(self, mean: Tensor, var: Tensor, count: int, finite: Tensor | None) -> None:
        """Let a batch enter, if `finite` is true or None."""
        ones = 1 if finite is None else finite.to(torch.int64)
        tracked, seen = self.num_batches_tracked, self.num_elements_tracked
        assert seen is not None
        factor: Tensor | float = self.momentum if self.momentum is not None else 0.0
        if self.momentum is None:
            if tracked is not None:
                # A checkpoint without the count: take its batches to have been like this one.
                seen.copy_(torch.where((seen == 0) & (tracked > 0), tracked * count, seen))
            factor = (count / (seen + count).double()).to(mean.dtype)
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            assert running is not None
            running.lerp_(batch if finite is None else torch.where(finite, batch, running), factor)
        seen += count * ones
        if tracked is not None:
            tracked += ones
        if finite is not None and self.num_batches_skipped is not None:
            self.num_batches_skipped.add_(1 - ones)

    def _warn_modes(self, pools_samples: bool) -> None:
        if self.training and pools_samples and not torch.is_grad_enabled() and "mode" not in self._warned:
            if recomputing() or checkpointing():
                return
            moves = ", and it moves the running statistics" if self.track_running_stats else ""
            self._warn_once(
                "mode",
                ModeWarning,
                "a layer that pools samples runs in train mode while gradients are off, so its output "
                f"depends on the batch{moves}",
                "call model.eval() before you evaluate",
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
