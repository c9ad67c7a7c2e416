"""Raw pixels saturate sigmoid and tanh, and the gradient is lost."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from slabnorm.report.claims import Number, Picture, Series, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, over_seeds
from slabnorm.study.claims.first_layer import KAIMING, RULES, SCHEMES, few, rows, seeded

UNITS, SAMPLES = 256, 512
DEAD = 1e-3  # of a derivative: the largest is 1/4 for sigmoid, and 1 for tanh
ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}
MOST = 0.5  # most units, literally
LOST = 100.0  # the gradient counts as lost if less than a hundredth is left of it


class Backward(NamedTuple):
    """What a loss sends back to the first layer.

    Args:
        dead: the share of samples and units whose derivative is below 1e-3.
        signal: the gradient of the first layer's pre-activations, (samples, units).
        weight: the gradient of the first layer's weights.
    """

    dead: float
    signal: Tensor
    weight: Tensor


def backward(x: Tensor, y: Tensor, classes: int, activation: str, seed: int) -> Backward:
    """Send samples through two layers, and the gradient of their cross-entropy back."""
    draw = RULES[KAIMING]
    first = draw(UNITS, x.shape[1], seeded(seed, 1)).requires_grad_()
    last = draw(classes, UNITS, seeded(seed, 2))
    z = x @ first.T
    a = ACTIVATIONS[activation](z)
    slope = a * (1 - a) if activation == "sigmoid" else 1 - a**2
    signal, weight = torch.autograd.grad(F.cross_entropy(a @ last.T, y), (z, first))
    return Backward((slope < DEAD).double().mean().item(), signal, weight)


def measure(material: Material) -> Finding:
    """Compare what reaches the first layer, with raw and with scaled pixels."""
    data, seeds = material.pixels, material.seeds
    y = torch.as_tensor(data.y[few(data, SAMPLES)])
    found: dict[tuple[str, str], list[Backward]] = {}
    for scheme in SCHEMES:
        x = rows(data, scheme, SAMPLES)
        for name in ACTIVATIONS:
            found[name, scheme] = [backward(x, y, len(data.classes), name, seed) for seed in seeds]
    pairs = {a: list(zip(found[a, "raw"], found[a, "zscore"], strict=True)) for a in ACTIVATIONS}
    dead = {a: over_seeds([raw.dead for raw, _ in pairs[a]]) for a in ACTIVATIONS}
    signal = {a: over_seeds([norm(z.signal) / norm(raw.signal) for raw, z in pairs[a]]) for a in ACTIVATIONS}
    weight = {a: over_seeds([norm(z.weight) / norm(raw.weight) for raw, z in pairs[a]]) for a in ACTIVATIONS}
    lost = {a: over_seeds([lost_units(raw, z) for raw, z in pairs[a]]) for a in ACTIVATIONS}
    return Finding(
        measured=f"With raw pixels {dead['sigmoid'].mean:.0%} of the sigmoid's derivatives and "
        f"{dead['tanh'].mean:.0%} of tanh's are below 0.001, and {lost['sigmoid'].mean:.0%} and "
        f"{lost['tanh'].mean:.0%} of the gradient's entries are less than a hundredth of a usual one with "
        "z-scored pixels. The norm of the gradient, which the few other entries decide, is with z-scored "
        f"pixels {signal['sigmoid'].mean:.1f} and {signal['tanh'].mean:.1f} times as large. Of the "
        "weights, whose gradient is multiplied by the input, it is "
        f"{weight['sigmoid'].mean:.2f} and {weight['tanh'].mean:.2f} times as large.",
        tests=tuple(
            test
            for a in ACTIVATIONS
            for test in (
                Test(f"share of derivatives below 0.001, raw pixels, {a}", dead[a], MOST, "%"),
                Test(f"gradient entries below a hundredth of a usual one, raw, {a}", lost[a], MOST, "%"),
                Test(
                    f"norm of the gradient of the pre-activations, z-scored over raw, {a}",
                    signal[a],
                    LOST,
                    "x",
                ),
            )
        ),
        numbers=tuple(
            number
            for a in ACTIVATIONS
            for number in (
                Number(f"norm of the gradient of the weights, z-scored over raw, {a}", weight[a], "x"),
                *(
                    Number(
                        f"share of derivatives below 0.001, {label}, {a}",
                        over_seeds([one.dead for one in found[a, scheme]]),
                        "%",
                    )
                    for scheme, label in SCHEMES.items()
                ),
            )
        ),
        pictures=pictures(found),
        setting=(
            ("Data", data.name),
            ("Network", f"{UNITS} units and a linear layer, {KAIMING} weights; {SAMPLES} samples at once"),
        ),
    )


def norm(gradient: Tensor) -> float:
    """Return the Euclidean norm, and never 0, by which one cannot divide."""
    return max(gradient.norm().item(), 1e-300)


def lost_units(raw: Backward, scaled: Backward) -> float:
    """Return the share of gradient entries below a hundredth of the median entry with scaled inputs."""
    usual = scaled.signal.abs().median()
    return (raw.signal.abs() < usual / LOST).double().mean().item()


def pictures(found: dict[tuple[str, str], list[Backward]]) -> tuple[Picture, ...]:
    """Return the share of dead units, and the norm of both gradients, by input scheme."""
    across = tuple(SCHEMES.values())

    def bars(name: str, value: Callable[[Backward], float], activation: str) -> Series:
        means = tuple(fmean(map(value, found[activation, scheme])) for scheme in SCHEMES)
        return Series(name, across, means)

    shares = tuple(bars(a, lambda one: 100 * one.dead, a) for a in ACTIVATIONS)
    norms = tuple(
        bars(f"{of}, {a}", value, a)
        for a in ACTIVATIONS
        for of, value in (
            ("pre-activations", lambda one: norm(one.signal)),
            ("weights", lambda one: norm(one.weight)),
        )
    )
    return (
        Picture("Saturated: derivatives below 0.001", "input", "share [%]", shares, kind="bars"),
        Picture("Gradient of the first layer", "input", "norm of the gradient", norms, kind="bars", log="y"),
    )


CLAIM = Claim(
    claim="Raw pixels saturate sigmoid and tanh, and the gradient is lost.",
    question="Far from 0 a sigmoid is flat. If nearly every unit of the first layer is out there, what "
    "reaches the weights of that layer, and is it the same for all of them?",
    explanation="Backward, a gradient is multiplied by the derivative of each activation. Where the "
    "activation is flat that factor is nearly 0, and what lies before it learns nothing from this sample. A "
    "unit is rarely flat for all samples, and the few entries where it is not decide the norm of the whole "
    "gradient. For the weights there is a second factor, the input itself: large raw inputs make the little "
    "that is left large again. So a gradient can be lost for nearly all samples and units while its norm is "
    "still there; the claim holds here only if both are lost.",
    source="LeCun, Bottou, Orr and Müller 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98b.pdf; "
    "Glorot and Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html",
    example="""import torch
from sklearn.datasets import load_sample_images
import slabnorm as sn

photo = torch.tensor(load_sample_images().images[0][:420, :616]).float().mean(-1)
x = photo.reshape(15, 28, 22, 28).swapaxes(1, 2).reshape(-1, 784)  # patches of 28 x 28 pixels
layer = torch.nn.Linear(784, 256, bias=False)
torch.nn.init.kaiming_normal_(layer.weight)
zscore = sn.fit(x, "zscore", "n f ->", split="train")
for name, inputs in (("raw", x), ("z-score", zscore(x))):
    s = torch.sigmoid(layer(inputs))
    print(name, "saturated:", (s * (1 - s) < 1e-3).float().mean().item())""",
    measure=measure,
)
