"""Statistics as a layer stores them: through casts, devices and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn

from slabnorm.errors import StatisticsError, StatisticsWarning

_NAMES = ("running_mean", "running_var")
_OWN = ("num_batches_skipped", "num_elements_tracked")


class StoredStatistics(nn.Module):
    """The buffers of running statistics, with the names and state_dict keys of `torch.nn`.

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
                "running statistics are finite, and a variance is not negative",
                f"{prefix}{name} with {int(bad.sum())} bad values, the first {first}",
                "the checkpoint is damaged or the run had diverged: use an earlier one, or recompute them",
            )
