"""Fitted input statistics in a terminal: one row and one picture for each feature."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from slabnorm.report.wording import column, dtype_label
from slabnorm.text import printable

if TYPE_CHECKING:
    from rich.console import Console

MOST = 40  # features that are shown by default
WIDTH = 21  # the width of a picture, in characters


@dataclass(frozen=True)
class FeatureRecord:
    """The statistics of one feature, in the units of the data.

    Attributes:
        name: its name, or its place on the right side of the pattern, such as "0" or "2, 1".
        count: the number of values, or the sum of their weights.
        nan: how many values were left out because they were NaN.
        null: how many values were missing.
        mean, std, min, max: of the values; std with ddof 0.
        shift, scale: what the scheme makes of these: (x - shift) / scale.
        quantiles: the quantiles that the scheme reads, if any.
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
    """What was fitted, on which data, and the statistics of every feature.

    `ranks` are the ranks of the quantiles, with an error of at most `rank_error` with 99% probability.
    `reader` is the library that decoded the data; `skipped` files were left out. `weights` is "whole" or
    "real" if samples count by their weights. `near_constant` is the scheme's policy for nearly constant
    features, and `changed` names those whose scale is of its making.
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
    near_constant: str = "warn"
    changed: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the record in JSON's own types."""
        features = [{name: _finite(value) for name, value in asdict(f).items()} for f in self.features]
        return {**asdict(self), "features": features}


def _finite(value: Any) -> Any:
    # A standard deviation is inf where squares are out of the range of float64, and JSON has no inf.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_statistics(record: StatisticsRecord, console: Console, every: bool = False) -> None:
    """Print what was fitted, and a row for each of the first 40 features, or for `every` one."""
    from slabnorm.report.terminal import print_text

    features = "1 feature" if len(record.features) == 1 else f"{len(record.features):,} features"
    print_text(console, printable(f"{record.scheme}, {record.pattern}"), "bold")
    samples = f"{record.samples:,} samples of {dtype_label(record.dtype)}"
    print_text(console, printable(f'fitted on split "{record.split}": {samples}, {features}'))
    if record.weights:
        print_text(console, "samples count by their weights, and count is the sum of the weights")
    if record.clip is not None:
        print_text(console, f"outputs are cut off at {record.clip[0]:g} and {record.clip[1]:g}")
    if record.changed:
        print_text(console, _changed(record.near_constant, record.changed))
    if record.reader:
        print_text(console, printable(f"read by {record.reader}"), "dim")
    if record.skipped:
        many = "files or parts of files" if record.skipped > 1 else "file or part of a file"
        text = f"{record.skipped:,} {many} could not be read and were left out"
        print_text(console, text if record.skipped > 1 else text.replace("were", "was"), "yellow")
    if record.leak:
        print_text(console, "statistics from held-out data, because of leak=True or --leak", "yellow")
    shown = record.features if every else record.features[:MOST]
    drawn = _print_features(shown, record.ranks, console)
    if len(shown) < len(record.features):
        print_text(console, f"and {len(record.features) - len(shown):,} more features", "dim")
    legend = "mean █, one standard deviation around it ▒"
    if record.ranks:
        low, *middle, high = record.ranks
        marked = f"quantile {middle[0]:g}" if middle else "mean"
        legend = f"{marked} █, from quantile {low:g} to {high:g} ▒"
        error = f"ranks of quantiles are off by at most {record.rank_error:.3f}, with 99% probability"
        print_text(console, error if record.rank_error else "quantiles are those of all values", "dim")
    if drawn:
        print_text(console, f"picture: minimum ├ to maximum ┤, {legend}", "dim")


def _changed(policy: str, names: tuple[str, ...], most: int = 5) -> str:
    """Return in a sentence what became of nearly constant features."""
    what = "kept as is" if policy == "keep" else "divided by 0.001 times the largest value"
    features = "feature" if len(names) == 1 else "features"
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"nearly constant, {what}: {features} {printable(', '.join(names[:most]))}{more}"


def _print_features(features: tuple[FeatureRecord, ...], ranks: tuple[float, ...], console: Console) -> bool:
    from slabnorm.report.terminal import Column, Row, print_rows

    missing = [name for name in ("nan", "null") if any(getattr(feature, name) for feature in features)]
    words = {"nan": "NaN", "null": "null"}
    # If the scheme reads quantiles, they take the place of mean and std: more does not fit into 80 columns.
    spread = [f"q {rank:g}" for rank in ranks] or ["mean", "std"]
    heads = ["count", *(words[name] for name in missing), *spread, "min", "max"]
    numbers = zip(*((*(f.quantiles or (f.mean, f.std)), f.min, f.max) for f in features), strict=True)
    texts = zip(*(column(values, 4 if ranks else 5) for values in numbers), strict=True)
    rows = []
    for f, text in zip(features, texts, strict=True):
        weight = f"{f.count:,}" if isinstance(f.count, int) else f"{f.count:,.1f}"
        counts = [weight, *(f"{getattr(f, name):,}" for name in missing)]
        rows.append(Row([printable(f.name), *counts, *text, picture(f)]))
    return print_rows(console, [Column("feature", "name"), *map(Column, heads), Column("", "picture")], rows)


def picture(feature: FeatureRecord, width: int = WIDTH) -> str:
    """Return the range of a feature as a line, with its mean and standard deviation, or its quantiles.

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
    low, middle, high = feature.mean - feature.std, feature.mean, feature.mean + feature.std
    if feature.quantiles:
        low, *median, high = feature.quantiles
        middle = median[0] if median else feature.mean
    for i in range(place(low), place(high) + 1):
        line[i] = "▒"
    line[place(middle)] = "█"
    return "".join(line)
