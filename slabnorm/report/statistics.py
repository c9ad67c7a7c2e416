"""Fitted input statistics in a terminal: a row and a picture per feature."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from slabnorm.text import printable

if TYPE_CHECKING:
    from rich.console import Console

MOST = 40  # features that are shown unless all are asked for
WIDTH = 21  # of a picture, in characters


@dataclass(frozen=True)
class FeatureRecord:
    """The statistics of one feature, in the units of the data.

    Attributes:
        name: its place on the pattern's right side, such as "0" or "2, 1".
        count: values behind the statistics; where samples have weights, their sum.
        nan: values left out because they were NaN.
        null: values that were missing altogether.
        mean, std, min, max: of these values; std with ddof 0.
        shift, scale: what the scheme makes of them: (x - shift) / scale.
        quantiles: those that the scheme reads, if any.
    """

    name: str
    count: float
    nan: int
    null: int
    mean: float
    std: float
    min: float
    max: float
    shift: float
    scale: float
    quantiles: tuple[float, ...] = ()


@dataclass(frozen=True)
class StatisticsRecord:
    """What was fitted, on what, and the statistics of every feature.

    `ranks` are those of the quantiles, off by `rank_error` at most with 99% probability; `reader` decoded the
    data, and left out `skipped` files; `weights` are "whole" or "real" where samples count by them.
    """

    scheme: str
    pattern: str
    split: str
    samples: int
    dtype: str
    leak: bool
    features: tuple[FeatureRecord, ...]
    ranks: tuple[float, ...] = ()
    rank_error: float = 0.0
    clip: tuple[float, float] | None = None
    reader: str = ""
    skipped: int = 0
    weights: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain dictionaries, lists, strings and numbers, ready for JSON."""
        features = [{name: _finite(value) for name, value in asdict(f).items()} for f in self.features]
        return {**asdict(self), "features": features}


def _finite(value: Any) -> Any:
    # JSON has no inf; a standard deviation is, where squares leave float64.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_statistics(record: StatisticsRecord, console: Console, every: bool = False) -> None:
    """Print what was fitted and a row per feature: the first 40, or `every` one."""
    from rich.text import Text

    features = "1 feature" if len(record.features) == 1 else f"{len(record.features):,} features"
    console.print(Text(printable(f"{record.scheme}, {record.pattern}"), style="bold"))
    console.print(
        printable(
            f'fitted on split "{record.split}": {record.samples:,} samples of {record.dtype}, {features}'
        )
    )
    if record.weights:
        console.print("samples count by their weights; count is the weight of a feature's values")
    if record.clip is not None:
        console.print(f"output ends at {record.clip[0]:g} and {record.clip[1]:g}")
    if record.reader:
        console.print(Text(printable(f"read by {record.reader}"), style="dim"))
    if record.skipped:
        many = "files or parts of files" if record.skipped > 1 else "file or part of one"
        text = f"{record.skipped:,} {many} could not be read: left out"
        console.print(Text(text, style="yellow"))
    if record.leak:
        console.print(Text("statistics from held-out data, as was asked for", style="yellow"))
    shown = record.features if every else record.features[:MOST]
    drawn = _print_features(shown, record.ranks, console)
    if len(shown) < len(record.features):
        console.print(f"and {len(record.features) - len(shown):,} features more", style="dim")
    legend = "mean █, one standard deviation around it ▒"
    if record.ranks:
        low, middle, high = record.ranks
        legend = f"quantile {middle:g} █, from quantile {low:g} to {high:g} ▒"
        error = f"ranks off by at most {record.rank_error:.3f} with 99% probability"
        console.print(error if record.rank_error else "quantiles of all values", style="dim")
    if drawn:
        console.print(f"picture: minimum ├ to maximum ┤, {legend}", style="dim")


def _print_features(features: tuple[FeatureRecord, ...], ranks: tuple[float, ...], console: Console) -> bool:
    from slabnorm.report.terminal import Column, Row, print_rows

    missing = [name for name in ("nan", "null") if any(getattr(feature, name) for feature in features)]
    words = {"nan": "NaN", "null": "null"}
    # Quantiles stand for mean and spread where they are what the scheme reads: 80 columns hold no more.
    spread = [f"q {rank:g}" for rank in ranks] or ["mean", "std"]
    heads = ["count", *(words[name] for name in missing), *spread, "min", "max"]
    form = ".4g" if ranks else ".5g"
    rows = []
    for f in features:
        numbers = [*(f.quantiles or (f.mean, f.std)), f.min, f.max]
        weight = f"{f.count:,}" if isinstance(f.count, int) else f"{f.count:,.1f}"
        counts = [weight, *(f"{getattr(f, name):,}" for name in missing)]
        rows.append(Row([printable(f.name), *counts, *(f"{n:{form}}" for n in numbers), picture(f)]))
    return print_rows(console, [Column("feature", "name"), *map(Column, heads), Column("", "picture")], rows)


def picture(feature: FeatureRecord, width: int = WIDTH) -> str:
    """Return a feature's range as a line, with its mean and one standard deviation to both sides, or its
    quantiles.

    >>> picture(FeatureRecord("0", 4, 0, 0, mean=5.0, std=2.0, min=0.0, max=10.0, shift=5.0, scale=2.0), 11)
    '├──▒▒█▒▒──┤'
    """
    reach = feature.max - feature.min
    if not 0 < reach < float("inf"):
        return "█"

    def place(value: float) -> int:
        return round((width - 1) * min(1.0, max(0.0, (value - feature.min) / reach)))

    line = ["─"] * width
    line[0], line[-1] = "├", "┤"
    low, middle, high = feature.quantiles or (
        feature.mean - feature.std, feature.mean, feature.mean + feature.std
    )  # fmt: skip
    for i in range(place(low), place(high) + 1):
        line[i] = "▒"
    line[place(middle)] = "█"
    return "".join(line)
