"""How exact are the norm layers of PyTorch and of slabnorm? Errors against extended precision.

    python benchmarks/accuracy.py

Per distribution: slabs of 32768 float32 elements, weight 1, bias 0. The error is the largest of
|y - exact| / max(1, |exact|); the oracle is NumPy in extended precision on the same rounded input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import slabnorm as sn

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests import laws
from tests.cases import CONSTANTS, DISTRIBUTIONS, LAYOUTS, Case, draw

GATE = 1e-6
SHAPE = (8, 4, 64, 64)


def cases() -> list[tuple[Case, str, Callable[[Tensor], Tensor]]]:
    """Return case, layout and PyTorch's function of every column pair."""
    batch = Case("batch norm", "n c h w -> c", SHAPE, SHAPE, (0, 2, 3), (1,), {})
    group = Case("group norm", "n (g c) h w -> n g", SHAPE, (8, 1, 4, 64, 64), (2, 3, 4), (1, 2), {"g": 1})
    layer = Case("layer norm", "n c -> n", (16, 32768), (16, 32768), (1,), (1,), {})
    weight, bias = torch.ones(4), torch.zeros(4)
    return [
        (batch, "contiguous", lambda x: F.batch_norm(x, None, None, weight, bias, True)),
        (batch, "channels_last", lambda x: F.batch_norm(x, None, None, weight, bias, True)),
        (group, "contiguous", lambda x: F.group_norm(x, 1, weight, bias)),
        (layer, "contiguous", lambda x: F.layer_norm(x, (32768,))),
    ]


def error(case: Case, x: Tensor, y: Tensor) -> float:
    """Return the largest error of y, in units of max(1, |exact|)."""
    ones, zeros = torch.ones(case.weight_shape), torch.zeros(case.weight_shape)
    exact = laws.oracle(case, x, ones, zeros, torch.zeros_like(x)).y
    off = abs(laws.long(y) - exact) / abs(exact).clip(min=1)
    return float(off.max()) if y.isfinite().all() else float("nan")


def main() -> None:
    """Print the table."""
    table = Table(title=f"largest error, float32, PyTorch {torch.__version__} and slabnorm {sn.__version__}")
    table.add_column("input")
    columns = cases()
    for case, layout, _ in columns:
        name = case.name + (", channels_last" if layout == "channels_last" else "")
        table.add_column(f"{name}\nPyTorch", justify="right")
        table.add_column("\nslabnorm", justify="right")
    for name in DISTRIBUTIONS:
        if name in CONSTANTS[:2]:
            continue
        row = []
        for case, layout, theirs in columns:
            x = LAYOUTS[layout](draw(case.shape, name))
            for y in (theirs(x), sn.normalize(x, case.pattern, **case.sizes)):
                off = error(case, x, y)
                style = "green" if off <= GATE else "bold red"
                row.append(f"[{style}]{off:.0e}[/]")
        table.add_row(name, *row)
    Console().print(table)


if __name__ == "__main__":
    main()
