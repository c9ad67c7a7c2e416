"""Raw inputs and ReLU: do the values keep growing from layer to layer?"""

from __future__ import annotations

import math
from statistics import fmean

import torch
from torch import Tensor

import slabnorm as sn
from slabnorm.report.claims import Number, Picture, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, line, over_seeds
from slabnorm.study.claims.first_layer import KAIMING, RULES, SCHEMES, Rule, rows, seeded

DEPTH, UNITS, SAMPLES = 20, 256, 64
NETWORKS = 4  # for each seed: of one network alone, the growth is a matter of luck
# A product of 19 random layers of 256 units wanders by a third either way even if no layer grows on average.
# Values that keep growing, by as little as 4% a layer, have doubled by then.
DOUBLED = 2.0
TINY = 1e-300  # black images, of which there is no logarithm


def by_depth(x: Tensor, rule: Rule, norm: bool, generator: torch.Generator) -> list[float]:
    """Return the root mean square after each of 20 layers of ReLU units, with or without batch norm."""
    found = []
    for _ in range(DEPTH):
        x = x @ rule(UNITS, x.shape[1], generator).T
        x = torch.relu(sn.normalize(x, "n c -> c") if norm else x)
        found.append(x.square().mean().sqrt().item())
    return found


def average(x: Tensor, rule: str, norm: bool, seed: int) -> list[float]:
    """Return the geometric mean of `by_depth` over several networks of a seed."""
    every = [by_depth(x, RULES[rule], norm, seeded(NETWORKS * seed + i, 3)) for i in range(NETWORKS)]
    return [math.exp(fmean(math.log(max(one, TINY)) for one in layer)) for layer in zip(*every, strict=True)]


def measure(material: Material) -> Finding:
    """Send real images through 20 layers under three rules for the weights, and with batch norm inside."""
    inputs = {scheme: rows(material.pixels, scheme, SAMPLES) for scheme in ("raw", "zscore")}
    # Each is an input scheme, a rule, and whether batch norm is inside.
    settings = [("raw", rule, False) for rule in RULES] + [("zscore", KAIMING, False), ("raw", KAIMING, True)]
    found = {
        (scheme, rule, norm): [average(inputs[scheme], rule, norm, seed) for seed in material.seeds]
        for scheme, rule, norm in settings
    }
    layers = range(1, DEPTH + 1)
    growth = {key: over_seeds([depths[-1] / depths[0] for depths in every]) for key, every in found.items()}
    last = {key: over_seeds([depths[-1] for depths in every]) for key, every in found.items()}
    names = {key: f"{SCHEMES[key[0]]}, {key[1]}{', batch norm' if key[2] else ''}" for key in found}
    decides = ("raw", KAIMING, False)
    rates = ", ".join(f"{growth['raw', rule, False].mean:.2g} under {rule}" for rule in RULES)
    return Finding(
        measured=f"From layer 1 to layer {DEPTH} raw pixels change in size by these factors: {rates}. Under "
        f"{KAIMING} weights they are {last[decides].mean:.0f} at the end, z-scored pixels "
        f"{last['zscore', KAIMING, False].mean:.1f}, and raw ones with batch norm inside "
        f"{last['raw', KAIMING, True].mean:.2f}.",
        tests=(
            Test(
                f"size at layer {DEPTH} over size at layer 1, {names[decides]}", growth[decides], DOUBLED, "x"
            ),
        ),
        numbers=tuple(
            number
            for key, name in names.items()
            for number in (
                Number(f"size at layer {DEPTH} over size at layer 1, {name}", growth[key], "x"),
                Number(f"size at layer {DEPTH}, {name}", last[key]),
            )
        ),
        pictures=(
            Picture(
                "Size of what 20 layers of ReLU units give out",
                "layer",
                "root mean square",
                tuple(line(names[key], layers, list(zip(*found[key], strict=True))) for key in found),
                log="y",
            ),
        ),
        setting=(("Data", material.pixels.name), ("Network", f"{DEPTH} layers of {UNITS} units, no biases")),
    )


CLAIM = Claim(
    claim="With ReLU, which does not saturate, raw inputs make values that keep growing from layer to layer.",
    question="ReLU passes on whatever is positive, however large. Does a large input grow further in each "
    "layer? What would it depend on?",
    explanation="Without biases a network of ReLU units is homogeneous: an input a hundred times as large "
    "gives values a hundred times as large in every layer, neither more nor less. Whether the values grow "
    "from one layer to the next is a matter of the weights alone. A layer of n inputs multiplies the mean "
    "square by n var(w) / 2: above 1 values explode, below 1 they vanish, and Kaiming's rule makes it 1. "
    "Batch norm sets the size anew in each layer, whatever came in.",
    source="He, Zhang, Ren and Sun 2015, https://arxiv.org/abs/1502.01852",
    example="""import torch
import slabnorm as sn

for std in (0.05, (2 / 256) ** 0.5, 0.15):
    plain = normed = 100 * torch.randn(64, 256)  # inputs of a hundred
    for _ in range(20):
        weight = std * torch.randn(256, 256)
        plain = torch.relu(plain @ weight)
        normed = torch.relu(sn.normalize(normed @ weight, "n c -> c"))
    print(f"std {std:.3f}: size {plain.square().mean().sqrt():.3g}, "
          f"with batch norm {normed.square().mean().sqrt():.3g}")""",
    measure=measure,
)
