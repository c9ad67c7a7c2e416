"""Instance norm removes each image's own contrast and brightness."""

from __future__ import annotations

import torch
from torch import Tensor

import slabnorm as sn
from slabnorm.report.claims import Number, Picture, Series, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, over_seeds
from slabnorm.study.claims.first_layer import check_images, samples, seeded

NORMS = {"none": "no norm", "batch": "batch norm", "instance": "instance norm"}
PATTERNS = {"batch": "n c h w -> c", "instance": "n c h w -> n c"}
SAMPLES, CHANNELS = 64, 8
GAINS, OFFSETS = (0.5, 1.5), (-50.0, 50.0)  # contrast and brightness, drawn for each image
REMOVED = 0.99  # removed, if less than a hundredth is left


def restyled(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images with a contrast and a brightness of each image's own, gain * x + offset."""
    gain, offset = (
        low + (high - low) * torch.rand(len(x), 1, 1, 1, generator=generator, dtype=x.dtype)
        for low, high in (GAINS, OFFSETS)
    )
    return gain * x + offset


def change(x: Tensor, styled: Tensor, norm: str, kernels: Tensor) -> float:
    """Return how far the output of a convolution and a norm moves, relative to its spread.

        |y' - y| / |y - mean(y)|

    Args:
        x: images.
        styled: the same images with another contrast and brightness.
        norm: a key of NORMS.
        kernels: (channels, c, 3, 3). There is no padding, of which a brightness would make an edge.
    """
    before, after = (torch.nn.functional.conv2d(images, kernels) for images in (x, styled))
    if norm != "none":
        before, after = (sn.normalize(maps, PATTERNS[norm]) for maps in (before, after))
    return ((after - before).norm() / (before - before.mean()).norm()).item()


def measure(material: Material) -> Finding:
    """Change contrast and brightness of real images, and see which norm's output moves."""
    check_images(material.pixels, "style")
    x = samples(material.pixels, "raw", SAMPLES)
    x = x[x.flatten(1).std(1) > 0]  # of an image without any contrast there is nothing to change
    changes: dict[str, list[float]] = {norm: [] for norm in NORMS}
    for seed in material.seeds:
        kernels = torch.randn(CHANNELS, x.shape[1], 3, 3, generator=seeded(seed, 4), dtype=x.dtype) / 3
        styled = restyled(x, seeded(seed, 5))
        for norm, found in changes.items():
            found.append(change(x, styled, norm, kernels))
    mean = {norm: over_seeds(found) for norm, found in changes.items()}
    removed = {
        norm: over_seeds([1 - b / a for a, b in zip(changes[norm], changes["instance"], strict=True)])
        for norm in ("none", "batch")
    }
    return Finding(
        measured=f"A contrast of {GAINS[0]:g} to {GAINS[1]:g} and a brightness of {OFFSETS[0]:g} to "
        f"{OFFSETS[1]:g}, drawn for each image, move the output by {mean['none'].mean:.1%} of its spread "
        f"without a norm, by {mean['batch'].mean:.1%} after batch norm, and by "
        f"{100 * mean['instance'].mean:.2g}% after instance norm.",
        tests=tuple(
            Test(f"share of the change with {NORMS[norm]} that instance norm removes", share, REMOVED, "%")
            for norm, share in removed.items()
        ),
        numbers=tuple(Number(f"change of the output, {NORMS[norm]}", mean[norm], "%") for norm in NORMS),
        pictures=(
            Picture(
                "What a new contrast and brightness of each image change",
                "norm after the convolution",
                "change of the output, relative to its spread",
                (Series("change", tuple(NORMS.values()), tuple(mean[norm].mean for norm in NORMS)),),
                kind="bars",
                log="y",
            ),
        ),
        setting=(("Data", material.pixels.name), ("Layer", f"{CHANNELS} random 3x3 kernels, then the norm")),
    )


CLAIM = Claim(
    claim="Instance norm removes each image's own contrast and brightness.",
    question="Somebody turns up the brightness of one picture in a batch. Which norm's output for that "
    "picture stays as it was, and is that always what one wants?",
    explanation="Instance norm takes mean and variance of each channel of each image. A brightness adds a "
    "constant, which goes into the mean and is subtracted; a contrast is a factor, which goes into the "
    "standard deviation and is divided out. Only eps keeps it from being exact. Batch norm has one mean and "
    "variance for all images, so that the differences between images remain. This serves the transfer "
    "of a style, and harms where brightness or contrast are what tells the classes apart.",
    source="Ulyanov, Vedaldi and Lempitsky 2016, https://arxiv.org/abs/1607.08022",
    example="""import torch
from sklearn.datasets import load_sample_images
import slabnorm as sn

x = torch.tensor(load_sample_images().images).permute(0, 3, 1, 2)[:, :, ::4, ::4].float()
bright = x.clone()
bright[0] = 0.5 * x[0] + 60  # the first photograph alone
for name, pattern in (("batch norm", "n c h w -> c"), ("instance norm", "n c h w -> n c")):
    moved = sn.normalize(bright, pattern) - sn.normalize(x, pattern)
    print(name, moved.abs().amax((1, 2, 3)))""",
    measure=measure,
)
