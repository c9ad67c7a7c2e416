"""One colour per norm and per scheme, the same in every picture.

The hues are Okabe and Ito's, which colour-blind readers can tell apart, darkened or lightened to
stand out on white as well as on near-black; every one also has a marker of its own.
"""

from __future__ import annotations

from slabnorm.report.labels import NORM_LABELS, SCHEME_LABELS

HUES = ("#7a7f87", "#0a7fc2", "#d55e00", "#009e73", "#c2679e", "#c99a00", "#3fa7d6", "#8a63d2")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "hexagon")


def looks(names: list[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each name: fixed for the known norms and schemes, in order for others."""
    known = list(SCHEME_LABELS) if set(names) <= set(SCHEME_LABELS) else list(NORM_LABELS)
    every = known + [name for name in names if name not in known]
    return {
        name: (HUES[i % len(HUES)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(every)
        if name in names
    }
