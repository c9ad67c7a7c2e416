"""Fitted input statistics in a terminal: a row and a picture per feature."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from slabnorm.report.names import printable

MOST = 40  # features that are shown unless all are asked for
WIDTH = 21  # of a picture, in characters


@dataclass(frozen=True)
class FeatureRecord:
    """The statistics of one feature, in the units of the data.

    Attributes:
        name: its place on the pattern's right side, such as "0" or "2, 1".
        count: values behind the statistics.
        nan: values left out because they were NaN.
        mean, std, min, max: of these values; std with ddof 0.
        shift, scale: what the scheme makes of them: (x - shift) / scale.
    """

    name: str
    count: int
    nan: int
    mean: float
    std: float
    min: float
    max: float
    shift: float
    scale: float


@dataclass(frozen=True)
class StatisticsRecord:
    """What was fitted, on what, and the statistics of every feature."""

    scheme: str
    pattern: str
    split: str
    samples: int
    dtype: str
    leak: bool
    features: tuple[FeatureRecord, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain dictionaries, lists, strings and numbers, ready for JSON."""
        features = [{name: _finite(value) for name, value in asdict(f).items()} for f in self.features]
        return {**asdict(self), "features": features}


def _finite(value: Any) -> Any:
    # JSON has no inf; a standard deviation is, where squares leave float64.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_statistics(record: StatisticsRecord, console: Console, every: bool = False) -> None:
    """Print what was fitted and a row per feature: the first 40, or `every` one."""
    features = "1 feature" if len(record.features) == 1 else f"{len(record.features):,} features"
    console.print(Text(printable(f"{record.scheme}, {record.pattern}"), style="bold"))
    console.print(
        printable(
            f'fitted on split "{record.split}": {record.samples:,} samples of {record.dtype}, {features}'
        )
    )
    if record.leak:
        console.print(Text("statistics from held-out data, as was asked for", style="yellow"))
    shown = record.features if every else record.features[:MOST]
    console.print(_table(shown))
    if len(shown) < len(record.features):
        console.print(f"and {len(record.features) - len(shown):,} features more", style="dim")
    console.print("picture: minimum ├ to maximum ┤, mean █, one standard deviation around it ▒", style="dim")


def _table(features: tuple[FeatureRecord, ...]) -> Table:
    missing = any(feature.nan for feature in features)
    heads = ["feature", "count", *(["NaN"] if missing else []), "mean", "std", "min", "max"]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for f in features:
        numbers = [f.mean, f.std, f.min, f.max]
        counts = [f"{f.count:,}", *([f"{f.nan:,}"] if missing else [])]
        table.add_row(f.name, *counts, *(f"{number:.5g}" for number in numbers), picture(f))
    return table


def picture(feature: FeatureRecord, width: int = WIDTH) -> str:
    """Return a feature's range as a line, with its mean and one standard deviation to both sides.

    >>> picture(FeatureRecord("0", 4, 0, mean=5.0, std=2.0, min=0.0, max=10.0, shift=5.0, scale=2.0), 11)
    '├──▒▒█▒▒──┤'
    """
    reach = feature.max - feature.min
    if not 0 < reach < float("inf"):
        return "█"

    def place(value: float) -> int:
        return round((width - 1) * min(1.0, max(0.0, (value - feature.min) / reach)))

    line = ["─"] * width
    line[0], line[-1] = "├", "┤"
    for i in range(place(feature.mean - feature.std), place(feature.mean + feature.std) + 1):
        line[i] = "▒"
    line[place(feature.mean)] = "█"
    return "".join(line)
