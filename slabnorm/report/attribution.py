"""Which layer's statistics cost how much: plain records and a terminal table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from slabnorm.text import printable

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Cost:
    """What the statistics of some layers cost, while all others have exact ones.

    Attributes:
        layers: one layer, or several that were evaluated together because evaluations ran out.
        metric: the metric with the statistics that these layers have, and exact ones elsewhere.
        cost: how much lower that is than with exact statistics everywhere.
        low, high: the 95% interval of `cost`, over the samples of the validation split.
        share: `cost` as a share of the whole gap; shares need not add up to 1.
        distance: how far its statistics are from the exact ones, in standard deviations, at the worst layer.
    """

    layers: tuple[str, ...]
    metric: float
    cost: float
    low: float
    high: float
    share: float
    distance: float


@dataclass(frozen=True)
class Attribution:
    """Which layers' statistics explain the gap between the metric as it is and as it could be.

    Attributes:
        as_is: the metric of the model in eval mode.
        exact: the metric with exact statistics of the training data in every layer.
        low, high: the 95% interval of exact - as_is, over the samples of the validation split.
        costs: the layers that explain it, the costliest first.
        innocent: the layers whose statistics cost nothing that can be seen.
        samples: the number of validation samples.
        evaluations: how often the validation split was evaluated.
    """

    as_is: float
    exact: float
    low: float
    high: float
    costs: tuple[Cost, ...]
    innocent: tuple[str, ...]
    samples: int
    evaluations: int

    @property
    def gap(self) -> float:
        """How much exact statistics gain."""
        return self.exact - self.as_is

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        between = f"between {self.as_is:.4g} and {self.exact:.4g}"
        if not self.costs:
            ends = f"{self.low:+.2g} to {self.high:+.2g}"
            return f"Exact statistics make no difference that can be seen: {between}, interval {ends}."
        first = self.costs[0]
        what = first.layers[0] if len(first.layers) == 1 else f"{len(first.layers)} layers"
        return f"{what}'s statistics explain {first.share:.0%} of the gap {between}."

    def as_dict(self) -> dict[str, Any]:
        """Return the record in JSON's own types."""
        plain = {**asdict(self), "gap": self.gap, "verdict": self.verdict}
        for holder in (plain, *plain["costs"]):
            for key, value in holder.items():
                if isinstance(value, float) and not math.isfinite(value):
                    holder[key] = None
        return plain

    def __str__(self) -> str:
        lines = [self.verdict]
        for cost in self.costs:
            lines.append(
                f"  {', '.join(cost.layers)}: {cost.cost:.3g} [{cost.low:.3g}, {cost.high:.3g}], "
                f"{cost.share:.0%} of the gap; statistics off by {cost.distance:.2g} sd"
            )
        return "\n".join(lines)

    __repr__ = __str__


def print_attribution(record: Attribution, console: Console) -> None:
    """Print the verdict and a row for each layer that costs something."""
    from slabnorm.report.terminal import Column, Row, print_rows, print_text

    print_text(console, printable(record.verdict, 300), "bold")
    console.print()
    rows = [
        Row([
            printable(", ".join(cost.layers), 200), f"{cost.share:.0%}", f"{cost.cost:.3g}",
            f"{cost.low:.3g} to {cost.high:.3g}", f"{cost.distance:.2g}",
        ])
        for cost in record.costs
    ]  # fmt: skip
    heads = ("share of the gap", "cost", "95% interval", "statistics off by, sd")
    if rows:
        print_rows(console, [Column("layer", "name"), *(Column(head) for head in heads)], rows)
    evaluated = f"{record.samples:,} validation samples, evaluated {record.evaluations} times"
    print_text(console, f"{evaluated}; {len(record.innocent)} layers cost nothing that can be seen", "dim")
