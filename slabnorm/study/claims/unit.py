"""After the normalisation each slab has mean 0 and variance 1, and eps protects a slab that is constant."""

from __future__ import annotations

import torch

import slabnorm as sn
from slabnorm.report.claims import Number, Picture, Series, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, exactly
from slabnorm.study.claims.first_layer import check_images

PATTERNS = {
    "batch norm": "n c h w -> c",
    "layer norm": "n c h w -> n",
    "instance norm": "n c h w -> n c",
    "position norm": "n c h w -> n h w",
}
EPS = 1e-5
EXACT = 1e-9  # in float64, where rounding leaves 1e-15 or so


def measure(material: Material) -> Finding:
    """Normalise real images over four kinds of slabs, and measure mean and variance of every slab."""
    check_images(material.pixels, "unit")
    images = torch.as_tensor(material.pixels.x[:32]).double()
    x = torch.cat([images, images.flip(-1) / 2 + 10, images.flip(-2) ** 2 / 255], dim=1)
    means, variances = [], []
    for pattern in PATTERNS.values():
        before, after = sn.moments(x, pattern), sn.moments(sn.normalize(x, pattern, eps=EPS), pattern)
        varies = before.var() > 0
        expected = before.var() / (before.var() + EPS)
        means.append(after.mean.abs().max().item())
        variances.append(((after.var() - expected)[varies]).abs().max().item())
    constant = sn.normalize(torch.full((4, 3, 8, 8), 7.0), "n c h w -> c", eps=EPS)
    worst = constant.abs().max().item()
    return Finding(
        measured=f"Over all slabs of four patterns the mean is 0 within {max(means):.0e}, the variance "
        f"var / (var + eps) within {max(variances):.0e}; a constant slab becomes {worst:g}.",
        tests=(
            Test("largest |mean| of a slab", exactly(max(means)), EXACT, below=True),
            Test("largest error of a slab's variance", exactly(max(variances)), EXACT, below=True),
            Test("largest value of a constant slab", exactly(worst), EXACT, below=True),
        ),
        numbers=tuple(
            Number(f"largest |mean| of a slab, {name}", exactly(mean))
            for name, mean in zip(PATTERNS, means, strict=True)
        ),
        pictures=(
            Picture(
                "What is left of mean and variance's error, by pattern",
                "pattern",
                "largest error of any slab",
                (
                    Series("mean", tuple(PATTERNS), tuple(means)),
                    Series("variance", tuple(PATTERNS), tuple(variances)),
                ),
                kind="bars",
                log="y",
            ),
        ),
    )


CLAIM = Claim(
    claim="After the normalisation a slab has mean 0 and variance 1, and eps protects a constant slab.",
    question="A slab in which all values are equal has variance 0. What would become of it without eps?",
    explanation="Subtracting the mean of a slab moves its values around 0, and dividing by their standard "
    "deviation gives them a spread of 1. The small number eps is added to the variance, so that a constant "
    "slab is divided by sqrt(eps) and not by 0: it becomes 0. The price is that the variance comes out as "
    "var / (var + eps), a little below 1, which only slabs of very small spread feel.",
    source="Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167",
    example="""import torch
import slabnorm as sn

x = 50 * torch.randn(8, 3, 4, 4) + 100
y = sn.normalize(x, "n c h w -> c", eps=1e-5)
print(sn.moments(y, "n c h w -> c").mean, sn.moments(y, "n c h w -> c").var())
print(sn.normalize(torch.full((8, 3), 7.0), "n c -> c", eps=1e-5))  # a constant slab""",
    measure=measure,
)
