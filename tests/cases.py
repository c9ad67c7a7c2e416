"""Cases as data: every norm, every distribution and every layout that the laws are tried on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One norm on one shape. What it means is spelled out by hand, so that the oracle need not parse.

    Attributes:
        name: what the field calls it, and the rank.
        pattern, sizes, affine, center: the call.
        shape: of x.
        split: of x with brackets opened.
        pooled: the dims of `split` that a statistic pools over.
        varying: the dims of `split` along which weight and bias vary, outermost first.
    """

    name: str
    pattern: str
    shape: tuple[int, ...]
    split: tuple[int, ...]
    pooled: tuple[int, ...]
    varying: tuple[int, ...]
    sizes: dict[str, int]
    affine: str | None = None
    center: bool = True

    @property
    def weight_shape(self) -> tuple[int, ...]:
        joined = math.prod(self.split[dim] for dim in self.varying)
        return (joined,) if self.affine is None else tuple(self.split[dim] for dim in self.varying)

    @property
    def options(self) -> dict[str, object]:
        return {"affine": self.affine, "center": self.center, **self.sizes}

    def __str__(self) -> str:
        return self.name


_SPACE = {2: (), 3: (60,), 4: (9, 10), 5: (4, 5, 6)}  # odd sizes on purpose


def of_rank(rank: int, n: int = 5, space: tuple[int, ...] | None = None) -> list[Case]:
    """Return the norms of tensors with so many axes, six of them channels."""
    c, space = 6, _SPACE[rank] if space is None else space
    x = (n, c, *space)
    inner = tuple(range(2, rank))
    cases = [
        Case(f"batch-{rank}d", "n c ... -> c", x, x, (0, *inner), (1,), {}),
        Case(f"layer-sample-{rank}d", "n c ... -> n", x, x, (1, *inner), (1,), {}),
        Case(f"group-{rank}d", "n (g c) ... -> n g", x, (n, 2, 3, *space), (2, *(d + 1 for d in inner)),
             (1, 2), {"g": 2}),
        Case(f"layer-token-{rank}d", "... c -> ...", x, x, (rank - 1,), (rank - 1,), {}),
        Case(f"rms-{rank}d", "... c -> ...", x, x, (rank - 1,), (rank - 1,), {}, center=False),
    ]  # fmt: skip
    if rank > 2:
        cases.append(Case(f"instance-{rank}d", "n c ... -> n c", x, x, inner, (1,), {}))
    return cases


_X = (4, 6, 5, 7)
NORMS: list[Case] = [case for rank in (2, 3, 4, 5) for case in of_rank(rank)] + [
    Case("layer-full-4d", "n c h w -> n", _X, _X, (1, 2, 3), (1, 2, 3), {}, affine="c h w"),
    Case("channel-4d", "n c h w -> n h w", _X, _X, (1,), (1,), {}),
    Case("everything-4d", "n c h w ->", _X, _X, (0, 1, 2, 3), (1,), {}),
    Case("row-4d", "n c h w -> h", _X, _X, (0, 1, 3), (1,), {}),
    Case("column-4d", "n c h w -> w", _X, _X, (0, 1, 2), (1,), {}),
    Case("batch-rms-4d", "n c h w -> c", _X, _X, (0, 2, 3), (1,), {}, center=False),
    Case(
        "group-rms-4d", "n (g c) h w -> n g", _X, (4, 3, 2, 5, 7), (2, 3, 4), (1, 2), {"g": 3}, center=False
    ),
    Case("swapped-4d", "n c h w -> w n", _X, _X, (1, 2), (1,), {}),
    Case("per-element-affine-4d", "n c h w -> c", _X, _X, (0, 2, 3), (3, 2), {}, affine="w h"),
    # One slab of 32768 elements, and runs longer than a piece of the CPU kernels.
    Case("batch-large", "n c ... -> c", (8, 2, 64, 64), (8, 2, 64, 64), (0, 2, 3), (1,), {}),
    Case("instance-large", "n c ... -> n c", (1, 2, 181, 181), (1, 2, 181, 181), (2, 3), (1,), {}),
]


def _offset(mean: float, std: float) -> Callable[[Tensor], Tensor]:
    return lambda z: mean + std * z


def _alternating(z: Tensor) -> Tensor:
    signs = torch.ones(z.numel(), dtype=z.dtype)
    signs[::2] = -1
    return (1e4 * signs).reshape(z.shape)


def _cauchy(z: Tensor) -> Tensor:
    u = torch.special.ndtr(z)
    return torch.tan(math.pi * (u - 0.5))


# From standard normal numbers in float64 to the data, still in float64.
DISTRIBUTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda z: z,
    "100 +- 0.01": _offset(100, 0.01),
    "1e4 +- 0.01": _offset(1e4, 0.01),
    "1e6 +- 1": _offset(1e6, 1),
    "sorted": lambda z: z.flatten().sort().values.reshape(z.shape),
    "cauchy": _cauchy,
    "alternating": _alternating,
    "times 1e18": lambda z: z * 1e18,
    "times 1e30": lambda z: z * 1e30,
    "denormal": lambda z: z * 1e-40,
    "constant 0.1": lambda z: torch.full_like(z, 0.1),
    "constant 14.62": lambda z: torch.full_like(z, 14.62),
    "constant 3e38": lambda z: torch.full_like(z, 3e38),
}
CONSTANTS = tuple(name for name in DISTRIBUTIONS if name.startswith("constant"))


def _strided(x: Tensor) -> Tensor:
    wide = torch.empty((*x.shape[:-1], 2 * x.shape[-1]), dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def _last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.ndim]) if x.ndim in formats else x


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": _last,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "strided": _strided,
}


def draw(
    shape: tuple[int, ...], distribution: str = "normal", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Return data of a distribution, rounded to the dtype."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(shape, dtype=torch.float64, generator=generator)
    return DISTRIBUTIONS[distribution](z).to(dtype)
