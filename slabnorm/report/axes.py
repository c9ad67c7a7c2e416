"""The axis that accuracies are drawn on: even in the logarithm of the error.

Accuracies crowd near 1, where 99% and 98% are a factor of two in errors, while a network that did
not learn sits far below. On this axis both can be read; its ticks are accuracies.
"""

from __future__ import annotations

import math
from typing import Any

TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
NEAR = 0.35  # a bit more than a factor of two in errors


class AccuracyAxis:
    """height(accuracy) = -log10(1 - accuracy), with no error drawn as half a sample's.

    Args:
        samples: what the accuracies were counted on.
    """

    def __init__(self, samples: int) -> None:
        self.least_error = 0.5 / samples

    def height(self, accuracy: float) -> float:
        """Return where on the axis an accuracy lies."""
        return -math.log10(max(1 - accuracy, self.least_error))

    def room(self, spans: list[tuple[float, float, float]]) -> tuple[float, float]:
        """Return the lowest and the highest height to show of intervals (low, mean, high).

        Every mean is seen, and intervals as far as they stay near the means: one over three seeds of
        a network that learns now and then reaches from 0 to 1.
        """
        if not spans:
            return 0.0, 1.0
        low = min(self.height(mean) for _, mean, _ in spans)
        high = max(self.height(mean) for _, mean, _ in spans)
        lowest = min(self.height(end) for end, _, _ in spans)
        highest = max(self.height(end) for _, _, end in spans)
        return max(lowest, low - NEAR), min(highest, high + NEAR)

    def layout(self, low: float, high: float, title: str | None = None) -> dict[str, Any]:
        """Return Plotly's settings of an axis that shows two heights with a margin.

        Args:
            low, high: heights.
            title: what is measured.
        """
        margin = max(0.08 * (high - low), 0.05)
        ticks = [tick for tick in TICKS if 1 - tick > self.least_error]
        return {
            "range": [low - margin, high + margin],
            "tickvals": [self.height(tick) for tick in ticks],
            "ticktext": [f"{100 * tick:g}%" for tick in ticks],
            "title": title,
        }
