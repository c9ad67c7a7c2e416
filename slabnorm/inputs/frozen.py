"""A layer of fitted statistics: float64 buffers that casts leave alone, and loading that is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from slabnorm.errors import ShapeError, StatisticsError
from slabnorm.inputs.record import Record
from slabnorm.inputs.values import check_state


class Frozen(nn.Module):
    """What InputNorm inherits: buffers that follow a device but no cast, and are checked before a change."""

    record: Record

    def _note_range(self) -> None:
        """Look at new values."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        """Let statistics follow a device, but no cast."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Check everything before anything changes."""
        given = {name: state_dict[prefix + name] for name in self._buffers if prefix + name in state_dict}
        for name, value in given.items():
            old = self._buffers[name]
            if old is not None and (not isinstance(value, Tensor) or value.shape != old.shape):
                raise ShapeError(
                    f'{prefix}{name} has shape {tuple(old.shape)} for "{self.record.pattern}"',
                    str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__,
                    "load statistics of the same features, or use InputNorm.from_state_dict",
                )
        check_state(given, prefix)
        extra = state_dict.get(prefix + "_extra_state")
        record = self.record if extra is None else Record.from_tensor(extra)
        if record.pattern != self.record.pattern or record.sizes != self.record.sizes:
            raise StatisticsError(
                f'these statistics are for "{self.record.pattern}"',
                f'a state_dict for "{record.pattern}"',
                "use InputNorm.from_state_dict, which takes the pattern from there",
            )
        if "moments_count" in given:
            self._buffers["moments_count"] = self.get_buffer("moments_count").to(record.count_dtype)
        for name, value in given.items():
            # assign=True would take a checkpoint's half precision over as it is.
            state_dict[prefix + name] = value.to(getattr(self, name).dtype)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._note_range()
