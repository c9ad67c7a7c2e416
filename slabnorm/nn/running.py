"""Running statistics: how a batch enters them, and how they survive casts and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn

from slabnorm.autograd import Found, Given
from slabnorm.errors import ModeWarning, OptionError, StatisticsError, StatisticsWarning
from slabnorm.kernels import traced
from slabnorm.nn.where import checkpointing, name_of, recomputing
from slabnorm.slab import Slab

_NAMES = ("running_mean", "running_var")


class RunningStatistics(nn.Module):
    """The part of a norm layer that remembers what its batches looked like.

    Train mode, momentum m:   running = (1 - m) * running + m * batch      (batch: mean, unbiased var)
    Train mode, m = None:     running = average over all batches, each weighted by its count

    Buffers, as in `torch.nn`: `running_mean`, `running_var`, `num_batches_tracked`. Two more stay out
    of the state_dict: `num_elements_tracked`, the elements per statistic that the cumulative average
    has seen, and `num_batches_skipped`, the batches left out because a statistic was not finite. The first
    travels in the state_dict's metadata, so that keys stay those of `torch.nn`.

    Both running tensors are kept in float32 or better, whatever the layer is cast to.
    """

    _version = 2
    momentum: float | None
    track_running_stats: bool
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    num_batches_skipped: Tensor | None
    num_elements_tracked: Tensor | None

    def _init_running(
        self, shape: tuple[int, ...] | None, momentum: float | None, device: Any, dtype: torch.dtype | None
    ) -> None:
        if momentum is not None and not 0 <= momentum <= 1:
            raise OptionError(
                "momentum is the weight of the new batch, from 0 to 1, or None for the average of all",
                repr(momentum),
                "0.1 is the usual one (some libraries call that 0.9)",
            )
        self.momentum = momentum
        self.track_running_stats = shape is not None
        self._warned: set[str] = set()
        for name in (*_NAMES, "num_batches_tracked"):
            self.register_buffer(name, None)
        for name in ("num_batches_skipped", "num_elements_tracked"):
            self.register_buffer(name, None, persistent=False)
        if shape is not None:
            wide = dtype if dtype == torch.float64 else torch.float32
            self.running_mean = torch.zeros(shape, device=device, dtype=wide)
            self.running_var = torch.ones(shape, device=device, dtype=wide)
            for name in ("num_batches_tracked", "num_batches_skipped", "num_elements_tracked"):
                setattr(self, name, torch.zeros((), device=device, dtype=torch.int64))

    def reset_running_stats(self) -> None:
        """Forget every batch: mean 0, variance 1, all counters 0."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            for name in ("num_batches_tracked", "num_batches_skipped", "num_elements_tracked"):
                getattr(self, name).zero_()

    def _running(self, slab: Slab) -> Given | None:
        """Return the statistics that eval mode uses, one per slab; None if the batch's own are used."""
        if self.training or self.running_mean is None or self.running_var is None:
            return None
        if "loaded" not in self._warned and not traced():
            self._warn_untrained()
        shape = slab.kept.shape
        if self.running_mean.shape == shape:
            return Given(self.running_mean, self.running_var)
        # The pattern keeps samples apart, the running statistics do not: all samples share them.
        split = torch.Size(slab.split[dim] if dim in slab.kept.dims else 1 for dim in range(len(slab.split)))
        both = (
            slab.kept.gather(slab.running.spread(t).expand(split))
            for t in (self.running_mean, self.running_var)
        )
        return Given(*both)

    def _track(self, found: Found, slab: Slab, center: bool) -> None:
        """Let a batch's statistics enter the running ones, unless the forward is a recomputation."""
        if self.running_mean is None or self.running_var is None or recomputing():
            return
        mean, var = _of_batch(found, slab, center)
        finite = (mean.sum() + var.sum()).isfinite()
        if traced() or mean.device.type != "cpu":
            # Reading it would wait for the device: both outcomes are computed, one is kept.
            self._enter(mean, var, slab.numel // mean.numel(), finite)
        elif finite:
            self._enter(mean, var, slab.numel // mean.numel(), None)
        else:
            skipped = self.num_batches_skipped
            assert skipped is not None
            skipped += 1
            self._warn_once(
                "nonfinite",
                StatisticsWarning,
                "a batch with NaN or inf was left out of the running statistics",
                "look for the layer or the data that made it; `num_batches_skipped` counts them",
            )

    @torch.no_grad()
    def _enter(self, mean: Tensor, var: Tensor, count: int, finite: Tensor | None) -> None:
        """Let a batch enter, if `finite` is true or None."""
        ones = 1 if finite is None else finite.to(torch.int64)
        tracked, seen = self.num_batches_tracked, self.num_elements_tracked
        assert tracked is not None and seen is not None
        factor: Tensor | float = self.momentum if self.momentum is not None else 0.0
        if self.momentum is None:
            # A checkpoint without the count: take its batches to have been like this one.
            seen.copy_(torch.where((seen == 0) & (tracked > 0), tracked * count, seen))
            factor = count / (seen + count).double()
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            assert running is not None
            batch = batch.to(running.dtype)
            batch = batch if finite is None else torch.where(finite, batch, running)
            running.lerp_(batch, factor.to(running.dtype) if isinstance(factor, Tensor) else factor)
        seen += count * ones
        tracked += ones
        if finite is not None and self.num_batches_skipped is not None:
            self.num_batches_skipped.add_(1 - ones)

    def _warn_modes(self, pools_samples: bool) -> None:
        if self.training and pools_samples and not torch.is_grad_enabled() and "mode" not in self._warned:
            if recomputing() or checkpointing():
                return
            self._warn_once(
                "mode",
                ModeWarning,
                "a layer that pools samples runs in train mode while gradients are off, so its output "
                "depends on the batch"
                + (", and it moves the running statistics" if self.track_running_stats else ""),
                "call model.eval() before you evaluate",
            )

    def _warn_untrained(self) -> None:
        # torch's instance norm never counts its batches, so the counter alone proves nothing.
        assert self.running_mean is not None and self.running_var is not None
        if self.running_mean.device.type == "meta":
            return
        if self.num_batches_tracked == 0 and bool(
            (self.running_mean == 0).all() & (self.running_var == 1).all()
        ):
            self._warn_once(
                "untrained",
                StatisticsWarning,
                "a layer runs in eval mode before any training step: its running statistics are "
                "still mean 0 and variance 1",
                "train first, load a checkpoint, or call train()",
            )
        else:
            self._warned.add("loaded")  # no need to look again

    def _warn_once(self, key: str, kind: type[Warning], what: str, fix: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warn(f"{name_of(self)}: {what}\n  fix: {fix}", kind, stacklevel=2)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: getattr(self, name) for name in _NAMES}
        super()._apply(fn, recurse)
        for name, kept in before.items():
            cast = getattr(self, name)
            if cast is not None and cast.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, kept.to(cast.device, torch.promote_types(kept.dtype, torch.float32)))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None and self.num_elements_tracked is not None and self.momentum is None:
            metadata["num_elements_tracked"] = int(self.num_elements_tracked)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        key = prefix + "num_batches_tracked"
        if self.running_mean is not None:
            _check_loaded(state_dict, prefix)
            if (
                local_metadata.get("version", 1) < 2
                and key not in state_dict
                and prefix + "running_mean" in state_dict
            ):
                state_dict[key] = self.num_batches_tracked
                warn(
                    f"{prefix[:-1] or type(self).__name__}: an old checkpoint without num_batches_tracked; "
                    "its running statistics are used, the count of batches starts anew",
                    StatisticsWarning,
                    stacklevel=2,
                )
                self._warned.add("loaded")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        if self.num_elements_tracked is not None and key in state_dict:
            self.num_elements_tracked.fill_(local_metadata.get("num_elements_tracked", 0))
        for name in _NAMES:  # load_state_dict(assign=True) brings dtypes along
            loaded = getattr(self, name)
            if loaded is not None and loaded.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, loaded.float())


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


def _check_loaded(state_dict: dict[str, Any], prefix: str) -> None:
    for name in _NAMES:
        values = state_dict.get(prefix + name)
        if not isinstance(values, Tensor) or values.device.type == "meta":
            continue
        bad = ~values.isfinite() | (values < 0 if name == "running_var" else False)
        if bool(bad.any()):
            first = values[bad][0].item()
            raise StatisticsError(
                "running statistics are finite, and a variance is not negative",
                f"{prefix}{name} with {int(bad.sum())} bad values, the first {first}",
                "the checkpoint is damaged or the run had diverged: use an earlier one, or recompute them",
            )
