"""Raw pixels give the first layer's pre-activations of hundreds to thousands."""

from __future__ import annotations

from statistics import fmean

from torch import Tensor

from slabnorm.report.claims import Number, Picture, Series, Test
from slabnorm.report.study import Interval
from slabnorm.study.claims.claim import Claim, Finding, Material, over_seeds
from slabnorm.study.claims.first_layer import KAIMING, RULES, SCHEMES, Rule, rows, seeded

UNITS, SAMPLES = 256, 512
# The claim is one of magnitude: the typical value has to lie between a hundred and the thousands. How many of
# the values exceed a thousand, and the largest, depend on how many one looks at, and are reported beside it.
HUNDREDS, THOUSANDS = 100.0, 1_000.0


def pre_activations(x: Tensor, rule: Rule, seed: int) -> Tensor:
    """Return |x W^T| of a layer of 256 units, (samples, units)."""
    return (x @ rule(UNITS, x.shape[1], seeded(seed, 1)).T).abs()


def typical(z: Tensor) -> float:
    """Return the root mean square."""
    return z.square().mean().sqrt().item()


def measure(material: Material) -> Finding:
    """Send real images, raw and scaled, through first layers of ordinary weights."""
    inputs = {scheme: rows(material.pixels, scheme, SAMPLES) for scheme in SCHEMES}
    size: dict[tuple[str, str], Interval] = {}
    for scheme, x in inputs.items():
        for rule, draw in RULES.items():
            size[scheme, rule] = over_seeds([typical(pre_activations(x, draw, s)) for s in material.seeds])
    raw = [pre_activations(inputs["raw"], RULES[KAIMING], seed) for seed in material.seeds]
    largest = over_seeds([z.max().item() for z in raw])
    above = over_seeds([(z > THOUSANDS).double().mean().item() for z in raw])
    quantiles = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
    lines = []
    for scheme, x in inputs.items():
        found = [pre_activations(x, RULES[KAIMING], seed).flatten().sort().values for seed in material.seeds]
        heights = [fmean(z[int(q * (len(z) - 1))].item() for z in found) for q in quantiles]
        lines.append(Series(SCHEMES[scheme], tuple(100 * q for q in quantiles), tuple(heights)))
    across = tuple(RULES)
    bars = [
        Series(SCHEMES[scheme], across, tuple(size[scheme, rule].mean for rule in RULES))
        for scheme in SCHEMES
    ]
    axes = "rule of the initial weights", "root mean square of the pre-activations"
    return Finding(
        measured=f"Under {KAIMING} weights raw pixels give pre-activations of typically "
        f"{size['raw', KAIMING].mean:.0f}, of which the largest is {largest.mean:.0f} and {above.mean:.2%} "
        f"are above a thousand; z-scored pixels give {size['zscore', KAIMING].mean:.1f}.",
        tests=(Test("typical raw pre-activation (root mean square)", size["raw", KAIMING], HUNDREDS),),
        numbers=(
            Number("share of raw pre-activations above a thousand", above, "%"),
            Number("largest raw pre-activation", largest),
            *(
                Number(f"root mean square, {SCHEMES[scheme]}, {rule}", value)
                for (scheme, rule), value in size.items()
            ),
        ),
        pictures=(
            Picture("Size of the first layer's pre-activations", *axes, tuple(bars), kind="bars", log="y"),
            Picture(
                f"All pre-activations in order, {KAIMING} weights",
                "share of the pre-activations that are smaller [%]",
                "size of the pre-activation",
                tuple(lines),
                log="y",
                marks=(("a hundred", HUNDREDS), ("a thousand", THOUSANDS)),
            ),
        ),
        setting=(("Data", material.pixels.name), ("Layer", f"{UNITS} units, no bias; {SAMPLES} samples")),
    )


CLAIM = Claim(
    claim="Raw pixels of 0 to 255, through weights of ordinary size, give pre-activations of hundreds to "
    "thousands.",
    question="A unit of the first layer adds up 784 pixels of 0 to 255, each times a random weight whose "
    "standard deviation is 0.05. How large is the sum?",
    explanation="A unit of the first layer multiplies each pixel by a weight and adds the products. Ordinary "
    "initial weights are so small that inputs of size 1 give sums of about size 1. The sum is proportional "
    "to the inputs: pixels that are a hundred times larger give sums that are a hundred times larger. "
    "Dividing by the known range, by the range found in the data, or by the standard deviation all bring "
    "the sums back to ordinary numbers; how large exactly depends on the rule for the weights.",
    source="LeCun, Bottou, Orr and Müller 1998, Efficient BackProp, "
    "http://yann.lecun.com/exdb/publis/pdf/lecun-98b.pdf; "
    "weights: He et al. 2015, https://arxiv.org/abs/1502.01852",
    example="""import torch
from sklearn.datasets import load_sample_images
import slabnorm as sn

photo = torch.tensor(load_sample_images().images[0][:420, :616]).float().mean(-1)
x = photo.reshape(15, 28, 22, 28).swapaxes(1, 2).reshape(-1, 784)  # patches of 28 x 28 pixels
layer = torch.nn.Linear(784, 256, bias=False)
torch.nn.init.kaiming_normal_(layer.weight)
print("raw:    ", layer(x).square().mean().sqrt().item())
zscore = sn.fit(x, "zscore", "n f ->", split="train")
print("z-score:", layer(zscore(x)).square().mean().sqrt().item())""",
    measure=measure,
)
