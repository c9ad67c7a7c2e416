"""Layer norm, instance norm and batch norm are relatives of group norm."""

from __future__ import annotations

import torch
from torch import Tensor

import slabnorm as sn
from slabnorm.report.claims import Picture, Series, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, exactly
from slabnorm.study.claims.first_layer import check_images, samples, seeded

SAMPLES, CHANNELS = 32, 12
# The outputs are numbers of about 1 in float64, whose rounding is 2e-16. Slabs of the same elements may be
# summed in another order, which adds a few more.
SAME = 1e-12


def identities(x: Tensor) -> dict[str, float]:
    """Return the largest difference between the two sides of each identity.

    Args:
        x: (n, c, h, w) in float64.
    """
    channels = x.shape[1]
    with torch.enable_grad():  # train mode without gradients is what slabnorm warns of
        one, each = (sn.GroupNorm(groups, channels, dtype=x.dtype)(x) for groups in (1, channels))
        layer = sn.normalize(x, "n c h w -> n")
        instance = sn.InstanceNorm(channels, dtype=x.dtype)(x)
        batch = sn.BatchNorm(channels, dtype=x.dtype)
        alone = torch.cat([batch(sample[None]) for sample in x])
    pairs = {
        "group norm of one group, and layer norm": (one, layer),
        "group norm of one channel a group, and instance norm": (each, instance),
        "batch norm on one sample, and instance norm": (alone, instance),
    }
    return {name: (a - b).abs().max().item() for name, (a, b) in pairs.items()}


def between(x: Tensor, groups: int) -> tuple[float, float]:
    """Return how far group norm is from layer norm and from instance norm, as a root mean square."""
    group = sn.GroupNorm(groups, x.shape[1], dtype=x.dtype)(x)
    layer, instance = sn.normalize(x, "n c h w -> n"), sn.normalize(x, "n c h w -> n c")
    to_layer, to_instance = ((group - other).square().mean().sqrt().item() for other in (layer, instance))
    return to_layer, to_instance


def measure(material: Material) -> Finding:
    """Compare the norms on feature maps of real images, element by element."""
    check_images(material.pixels, "family")
    images = samples(material.pixels, "zscore", SAMPLES)
    shape = (CHANNELS, images.shape[1], 3, 3)
    kernels = torch.randn(shape, generator=seeded(material.seeds[0], 6), dtype=images.dtype)
    x = torch.nn.functional.conv2d(images, kernels, torch.arange(CHANNELS, dtype=images.dtype))
    found = identities(x)
    counts = [groups for groups in range(1, CHANNELS + 1) if CHANNELS % groups == 0]
    distances = [between(x, groups) for groups in counts]
    worst = max(found.values())
    return Finding(
        measured=f"On feature maps of real images the two sides of the three identities differ by at most "
        f"{worst:.1g} in float64; group norm of {counts[2]} groups is {distances[2][0]:.2f} away from layer "
        f"norm and {distances[2][1]:.2f} from instance norm.",
        tests=tuple(
            Test(f"largest difference: {name}", exactly(value), SAME, below=True)
            for name, value in found.items()
        ),
        pictures=(
            Picture(
                f"From layer norm to instance norm, {CHANNELS} channels",
                "groups of group norm",
                "difference of the outputs (root mean square)",
                tuple(
                    Series(name, tuple(map(float, counts)), tuple(values))
                    for name, values in zip(
                        ("from layer norm", "from instance norm"), zip(*distances, strict=True), strict=True
                    )
                ),
            ),
        ),
        setting=(("Data", material.pixels.name), ("Feature maps", f"{CHANNELS} random 3x3 kernels, float64")),
    )


CLAIM = Claim(
    claim="Group norm with one group is layer norm, and with one channel per group instance norm; batch norm "
    "on one sample is instance norm.",
    question="All these norms have one formula. In what alone do they differ, and when do two of them become "
    "the same?",
    explanation="A norm is known by its slab, the elements that share a mean and a variance. Layer norm's "
    "slab is a whole sample, instance norm's one channel of one sample, group norm's some channels of one "
    "sample, batch norm's one channel of all samples. With one group, all channels are in it; with as many "
    "groups as channels, one is; and if there is but one sample, all samples are that one. Equal slabs give "
    "equal outputs. What is learned on top, weight and bias, may still be arranged differently.",
    source="Wu and He 2018, https://arxiv.org/abs/1803.08494",
    example="""import torch
import slabnorm as sn

x = torch.randn(4, 6, 5, 5, dtype=torch.float64)
instance = sn.normalize(x, "n c h w -> n c")
for groups in (1, 2, 3, 6):
    group = sn.normalize(x, "n (g c) h w -> n g", g=groups)
    layer = sn.normalize(x, "n c h w -> n")
    print(groups, (group - layer).abs().max().item(), (group - instance).abs().max().item())
print((sn.normalize(x[:1], "n c h w -> c") - instance[:1]).abs().max().item())""",
    measure=measure,
)
