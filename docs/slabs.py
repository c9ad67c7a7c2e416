"""Draw docs/slabs.svg: the slabs of four norms, coloured by the plan that slabnorm itself makes.

python docs/slabs.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import torch

from slabnorm.notation import parse
from slabnorm.slab import plan

N, C, S = 4, 6, 4  # samples, channels, positions
CELL = 22
NORMS = [
    ("batch norm", "n c s -> c", {}),
    ("layer norm", "n c s -> n", {}),
    ("instance norm", "n c s -> n c", {}),
    ("group norm", "n (g c) s -> n g", {"g": 3}),
]
ONE, OTHERS, LINE, TEXT = "#2f6fdb", ("#e9edf3", "#d5dce6"), "#7d8794", "#5b6470"


def slab_ids(pattern: str, sizes: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for every element of an (N, C, S) tensor, the number of its slab and the slab's shade."""
    parsed = parse(pattern)
    slab = plan(parsed, (), (N, C, S), tuple(sizes.items()))
    ids = torch.arange(slab.slabs).reshape(slab.kept.shape)
    shades = torch.stack(torch.meshgrid(*map(torch.arange, slab.kept.shape), indexing="ij")).sum(0) % 2
    ids, shades = (slab.kept.spread(t).expand(slab.split).reshape(N, C, S) for t in (ids, shades))
    return ids, shades


def corner(c: float, s: float, n: float) -> tuple[float, float]:
    """Project: channels to the right, positions down, samples away from the viewer."""
    return 30 + CELL * (c + 0.55 * n), 40 + CELL * (s + 0.5 * (N - n))


def face(points: list[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polygon points="{path}" fill="{colour}" stroke="{LINE}" stroke-width="0.8"/>'


def cube(ids: torch.Tensor, shades: torch.Tensor) -> list[str]:
    """Draw the three faces that are seen; one slab stands out, neighbouring ones differ in shade."""
    chosen = int(ids[0, C - 2, 0])

    def colour(n: int, c: int, s: int) -> str:
        return ONE if int(ids[n, c, s]) == chosen else OTHERS[int(shades[n, c, s])]

    parts = []
    for n in reversed(range(N)):
        for c in range(C):  # the top
            square = [corner(c, 0, n), corner(c + 1, 0, n), corner(c + 1, 0, n + 1), corner(c, 0, n + 1)]
            parts.append(face(square, colour(n, c, 0)))
        for s in range(S):  # the right
            square = [corner(C, s, n), corner(C, s + 1, n), corner(C, s + 1, n + 1), corner(C, s, n + 1)]
            parts.append(face(square, colour(n, C - 1, s)))
    for c in range(C):  # the front
        for s in range(S):
            square = [corner(c, s, 0), corner(c + 1, s, 0), corner(c + 1, s + 1, 0), corner(c, s + 1, 0)]
            parts.append(face(square, colour(0, c, s)))
    return parts


def main() -> None:
    """Write the picture beside this file."""
    width, height = 230, 225
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {4 * width} {height}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="The slabs of four norms">'
    ]
    for i, (name, pattern, sizes) in enumerate(NORMS):
        middle = 30 + CELL * (C + 0.55 * N) / 2
        parts.append(f'<g transform="translate({i * width},0)">')
        parts.extend(cube(*slab_ids(pattern, sizes)))
        label = f'<text x="{middle}" text-anchor="middle" fill="{TEXT}"'
        parts.append(f'{label} y="24" font-size="16" font-weight="600">{name}</text>')
        given = "".join(f", {key}={size}" for key, size in sizes.items())
        parts.append(
            f'{label} y="{60 + CELL * (S + 0.5 * N) + 8}" font-size="13" '
            f'font-family="ui-monospace, monospace">{escape(pattern)}{given}</text>'
        )
        x, y = corner(C / 2, S, 0)
        parts.append(f'<text x="{x}" y="{y + 14}" font-size="11" fill="{TEXT}" text-anchor="middle">c</text>')
        x, y = corner(0, S / 2, 0)
        parts.append(f'<text x="{x - 8}" y="{y}" font-size="11" fill="{TEXT}" text-anchor="middle">s</text>')
        x, y = corner(0, 0, N / 2)
        parts.append(
            f'<text x="{x - 8}" y="{y - 4}" font-size="11" fill="{TEXT}" text-anchor="middle">n</text>'
        )
        parts.append("</g>")
    parts.append("</svg>")
    (Path(__file__).parent / "slabs.svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
