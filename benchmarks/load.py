"""How much of the machine other processes took while something was timed, where the system tells."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


class Others:
    """A stopwatch for the cores' time that this process did not take."""

    def __init__(self) -> None:
        """Start."""
        self._begin = _now()

    def share(self) -> float | None:
        """Return the share of all cores that others took since the start; None where nothing tells."""
        begin, end = self._begin, _now()
        if begin is None or end is None:
            return None
        elapsed, busy, own = (after - before for before, after in zip(begin, end, strict=True))
        return max(0.0, (busy - own) / (elapsed * (os.cpu_count() or 1)))


def _now() -> tuple[float, float, float] | None:
    """Return seconds of the clock, of all busy cores, and of this process."""
    try:
        first = STAT.read_text().splitlines()[0].split()[1:]
    except (OSError, IndexError):
        return None
    ticks = dict(zip(FIELDS, map(int, first), strict=False))
    busy = sum(ticks.get(field, 0) for field in BUSY) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy, time.process_time()
