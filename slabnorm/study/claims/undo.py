"""Weight and bias can undo the normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

import slabnorm as sn
from slabnorm.report.claims import Number, Picture, Series, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, exactly
from slabnorm.study.claims.first_layer import check_images, samples

SAMPLES, EPS = 64, 1e-5
# Five operations are rounded on the way (a difference, a root, two products and a sum), each by half a unit
# in the last place of numbers that are at most a few times the largest pixel.
ROUNDINGS = 16.0


def undone(x: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Return how far batch norm's output is from its input, with weight and bias that undo it, and without.

    Args:
        x: (n, c, h, w).
        dtype: in which the layer works.

    Returns:
        Both in units of the dtype's precision at the largest value of x.
    """
    slab = sn.moments(x, "n c h w -> c")
    layer = sn.BatchNorm(x.shape[1], eps=EPS, dtype=dtype)
    given = x.to(dtype)
    unit = torch.finfo(dtype).eps * x.abs().max().item()
    with torch.enable_grad():  # train mode without gradients is what slabnorm warns of
        before = (layer(given) - given).abs().max().item()
        layer.load_state_dict({"weight": (slab.var() + EPS).sqrt(), "bias": slab.mean}, strict=False)
        after = (layer(given) - given).abs().max().item()
    return after / unit, before / unit


def measure(material: Material) -> Finding:
    """Normalise real images, with the weight and bias that give them back."""
    check_images(material.pixels, "undo")
    x = samples(material.pixels, "raw", SAMPLES)
    x = torch.cat([x, 100 - x / 2], dim=1)  # channels of different mean and spread
    single, single_left = undone(x, torch.float32)
    double, double_left = undone(x, torch.float64)
    largest = x.abs().max().item()
    pixel = torch.finfo(torch.float32).eps * largest
    return Finding(
        measured="With weight = sqrt(var + eps) and bias = mean, batch norm gives pixels of up to "
        f"{largest:.0f} back within {single * pixel:.1g} in float32: {single:.1f} roundings. With weight 1 "
        f"and bias 0 its output is up to {single_left * pixel:.0f} away.",
        tests=(
            Test("largest difference, float32", exactly(single), ROUNDINGS, "roundings", below=True),
            Test("largest difference, float64", exactly(double), ROUNDINGS, "roundings", below=True),
        ),
        numbers=(
            Number("largest difference with weight 1 and bias 0, float32", exactly(single_left), "roundings"),
        ),
        pictures=(
            Picture(
                "How far the output is from the input",
                "precision",
                "largest difference, in roundings of the largest pixel",
                (
                    Series("weight 1, bias 0", ("float32", "float64"), (single_left, double_left)),
                    Series("weight and bias that undo it", ("float32", "float64"), (single, double)),
                ),
                kind="bars",
                log="y",
            ),
        ),
        setting=(("Data", material.pixels.name), ("Slabs", "n c h w -> c, two channels")),
    )


CLAIM = Claim(
    claim="With weight = sqrt(var + eps) and bias = mean a norm layer gives back what came in.",
    question="If a layer is forced to mean 0 and variance 1, has the network lost something that it could "
    "express before?",
    explanation="After the normalisation the layer multiplies by a learned weight and adds a learned bias. "
    "If the weight is the standard deviation that was divided out, and the bias the mean that was taken "
    "away, the output is the input again. So the layer takes nothing away from what a network can "
    "express; it only starts somewhere else, and lets training choose mean and spread by two "
    "numbers of their own.",
    source="Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167",
    example="""import torch
import slabnorm as sn

x = 20 * torch.randn(32, 3, 8, 8) + 100
slab = sn.moments(x, "n c h w -> c")
weight = (slab.var() + 1e-5).sqrt().float()
for options in ({}, {"weight": weight, "bias": slab.mean.float()}):
    y = sn.normalize(x, "n c h w -> c", eps=1e-5, **options)
    print(f"{' and '.join(options) or 'neither'}: {(y - x).abs().max().item():.2g}")""",
    measure=measure,
)
