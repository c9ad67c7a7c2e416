"""Which norms, shapes, layouts, activations and dtypes are measured: the entries of shapes.json, crossed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHAPES = Path(__file__).with_name("shapes.json")
GROUPS = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}


@dataclass(frozen=True)
class Case:
    """One measurement: a norm and the activation after it, on one tensor."""

    norm: str  # a key of shapes.json
    shape: tuple[int, ...]
    layout: str
    activation: str  # "", "relu", "relu+residual", ...
    dtype: str = "float32"
    groups: int = GROUPS

    @property
    def name(self) -> str:
        """The case in words, unique."""
        size = "x".join(map(str, self.shape))
        return " ".join((self.norm, size, self.layout, self.activation or "plain", self.dtype))

    @property
    def elements(self) -> int:
        """Elements of the input."""
        return math.prod(self.shape)

    @property
    def residual(self) -> bool:
        """Whether a second tensor is added before the activation."""
        return self.activation.endswith("residual")

    @property
    def function(self) -> str | None:
        """The activation without the residual, as slabnorm names it."""
        name = self.activation.removesuffix("residual").removesuffix("+")
        return name or None

    @property
    def slab_elements(self) -> int:
        """Elements that share a mean and variance."""
        slabs = {
            "batch": self.shape[1],
            "group": self.shape[0] * self.groups,
            "instance": self.shape[0] * self.shape[1],
            "channel": self.elements // self.shape[1],
        }
        return self.elements // slabs.get(self.norm.removesuffix("32"), self.elements // self.shape[-1])

    def tensor(self, generator: torch.Generator) -> Tensor:
        """Return a random tensor of the case's shape, layout and dtype, on the generator's device."""
        drawn = torch.randn(self.shape, generator=generator, device=generator.device).to(DTYPES[self.dtype])
        return drawn.contiguous(memory_format=FORMATS[self.layout])


def layouts(norm: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the memory layouts that an input of this shape comes in."""
    also = {4: ("channels_last",), 5: ("channels_last_3d",)}
    return ("contiguous", *also.get(len(shape), ()))


def full() -> list[Case]:
    """Return every case of shapes.json in both dtypes."""
    entries = _entries()
    return [
        Case(norm, shape, layout, activation, dtype)
        for dtype in DTYPES
        for norm, activations in entries["activation"].items()
        for shape in map(tuple, entries[norm])
        for layout in layouts(norm, shape)
        for activation in activations
    ]


def quick() -> list[Case]:
    """Return a few cases of every norm, layout and dtype."""
    return [
        Case("batch", (32, 64, 56, 56), "contiguous", "relu"),
        Case("batch", (32, 64, 56, 56), "channels_last", "relu+residual"),
        Case("batch", (32, 512, 28, 28), "contiguous", ""),
        Case("batch", (8, 32, 16, 64, 64), "contiguous", "relu"),
        Case("batch", (32, 1024, 14, 14), "channels_last", "relu"),
        Case("group32", (2, 320, 48, 48), "contiguous", "silu"),
        Case("group32", (1, 128, 256, 256), "channels_last", "silu"),
        Case("instance", (8, 64, 128, 128), "contiguous", "leaky_relu"),
        Case("instance", (2, 32, 16, 128, 128), "channels_last_3d", ""),
        Case("layer_rows", (4096, 768), "contiguous", ""),
        Case("layer_rows", (2048, 4096), "contiguous", "residual"),
        Case("rms_rows", (4096, 768), "contiguous", ""),
        Case("channel", (8, 96, 56, 56), "contiguous", ""),
        Case("batch", (32, 64, 56, 56), "contiguous", "relu", "bfloat16"),
        Case("group32", (2, 320, 48, 48), "channels_last", "silu", "bfloat16"),
        Case("layer_rows", (4096, 768), "contiguous", "", "bfloat16"),
    ]


# Compiling takes 5 to 15 s a case; a quick run has it for these.
QUICK_COMPILED = frozenset(case.name for case in (quick()[0], quick()[9]))


def small() -> list[Case]:
    """Return cases of 1k, 4k, 16k and 64k elements, where the call costs more than the memory."""
    images = ((4, 16, 4, 4), (4, 16, 8, 8), (16, 16, 8, 8), (16, 64, 8, 8))
    rows = ((16, 64), (32, 128), (64, 256), (128, 512))
    return [
        *(Case("batch", shape, "contiguous", "", groups=8) for shape in images),
        *(Case("group", shape, "contiguous", "", groups=8) for shape in images),
        *(Case(norm, shape, "contiguous", "") for norm in ("layer_rows", "rms_rows") for shape in rows),
    ]


def inference(quick: bool) -> list[Case]:
    """Return batch norm's cases for eval mode: one image, a batch, and a large one."""
    shapes = [(32, 64, 56, 56)] if quick else [(1, 256, 56, 56), (32, 64, 56, 56), (32, 1024, 14, 14)]
    activations = ["relu"] if quick else ["", "relu", "relu+residual"]
    chosen = ["contiguous"] if quick else ["contiguous", "channels_last"]
    return [
        Case("batch", shape, layout, activation)
        for shape in shapes
        for layout in chosen
        for activation in activations
    ]


def select(cases: Iterable[Case], norms: tuple[str, ...], dtype: str | None) -> list[Case]:
    """Return the cases of one dtype whose norm begins with one of `norms`; none: all."""
    return [
        case
        for case in cases
        if (not norms or case.norm.startswith(norms)) and (dtype is None or dtype == case.dtype)
    ]


def norms() -> list[str]:
    """Return the names of the norms."""
    return list(_entries()["activation"])


def _entries() -> dict[str, Any]:
    return json.loads(SHAPES.read_text(encoding="utf-8"))
