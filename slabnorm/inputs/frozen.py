"""A layer of fitted statistics: float64 buffers that casts leave alone, and loading that is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slabnorm.errors import ShapeError, StatisticsError
from slabnorm.inputs.record import Record
from slabnorm.inputs.sketch import Sketch
from slabnorm.inputs.values import MOMENTS, check_state
from slabnorm.mergeable_moments import Moments

CLOSE = 1e-9  # relative


class Frozen(nn.Module):
    """What InputNorm inherits: buffers that follow a device but no cast, and are checked before a change."""

    record: Record
    sketch: Sketch
    skipped: tuple[tuple[str, str], ...]
    out_dtype: torch.dtype = torch.float32  # on the class: older pickled modules have none of their own

    def _note_range(self) -> None:
        """Look at new values."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        """Let statistics follow a device, but no cast: it says what integers come out as."""
        before = dict(self._buffers)
        self.out_dtype = fn(torch.empty(0, dtype=self.out_dtype)).dtype  # what a cast asks for
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
        self._check_affine(given, record, prefix)
        if "moments_count" in given:
            self._buffers["moments_count"] = self.get_buffer("moments_count").to(record.count_dtype)
        for name, value in given.items():
            # assign=True would take a checkpoint's half precision over as it is.
            state_dict[prefix + name] = value.to(getattr(self, name).dtype)
        before = self.record.content
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if record.content != before:  # what was kept of other samples says nothing of these
            self.sketch, self.skipped = Sketch(), ()
        self._note_range()

    def _check_affine(self, given: dict[str, Tensor], record: Record, prefix: str) -> None:
        """Raise StatisticsError unless shift and scale are those that the moments give."""
        both = {name: given.get(name, old) for name, old in self._buffers.items() if old is not None}
        exact = all(value.dtype in (torch.float64, torch.int64) for value in both.values())
        if not exact or any(value.is_meta for value in both.values()):
            return
        values = {name: value.cpu() for name, value in both.items()}
        moments = Moments(*(values[f"moments_{name}"] for name in MOMENTS), weighted=record.weights == "real")
        wanted = record.scheme.affine(moments, values["quantiles"])
        # Another release may round them otherwise.
        away = (values["shift"] - wanted.shift) + (values["shift_low"] - wanted.shift_low)
        wrong = (away.abs() > CLOSE * wanted.scale) | ((values["scale"] / wanted.scale - 1).abs() > CLOSE)
        if bool(wrong.any()):
            raise StatisticsError(
                "shift and scale are what the scheme makes of the moments",
                f"a state_dict in which {prefix}shift or {prefix}scale is of other statistics",
                "load the whole state_dict of one InputNorm",
            )
