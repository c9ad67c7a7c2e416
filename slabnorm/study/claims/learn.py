"""The network uses the weight and bias of its norm layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median

import numpy as np

from slabnorm.report.claims import Number, Picture, Series, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, best_rates, over_seeds
from slabnorm.study.trials import Trial, TrialRecord, in_seeds

RATES = (0.03, 0.1, 0.3)
VISIBLE = 0.05  # of the spread of a channel: what differs by less would hardly be seen in a histogram
BINS = 24
ERASED = (
    "weights and biases as learned",
    "the weights put back to 1",
    "the biases put back to 0",
    "both put back",
)


def measure(material: Material) -> Finding:
    """Train with batch norm, look at its weights and biases, and take away what was learned in them."""
    usual = Trial(
        "mlp" if material.data.x.ndim == 2 else "conv",
        "batch",
        batch_size=32,
        epochs=material.epochs,
        looks=6,
        watch=("affine", "erased"),
    )
    rates = RATES[1:2] if material.quick else RATES
    best, fixed = best_rates(material, [usual, replace(usual, affine=False)], rates, seeds=1)
    count = len(material.seeds)
    records = material.train([*in_seeds(best, material.seeds), *in_seeds(fixed, material.seeds)])
    runs, without = records[:count], records[count:]
    weights, biases = zip(*map(learned, runs), strict=True)
    moved = over_seeds([share(w, b) for w, b in zip(weights, biases, strict=True)])
    losses = [run.seen["erased"][-1] for run in runs]
    relied = over_seeds([both - as_it_is for as_it_is, _, _, both in losses])
    needed = over_seeds([a.accuracy - b.accuracy for a, b in zip(runs, without, strict=True)])
    return Finding(
        measured=f"After training {moved.mean:.0%} of the channels have a weight or a bias that is "
        f"{VISIBLE:g} or more from 1 or 0. Put back to 1 and 0, the loss on validation goes from "
        f"{fmean(loss[0] for loss in losses):.3f} to {fmean(loss[3] for loss in losses):.3f}. A network "
        f"trained without them from the start ends {abs(needed.mean) * 100:.1f} points "
        f"{'lower' if needed.mean > 0 else 'higher'} on test.",
        tests=(
            Test(f"share of channels moved by {VISIBLE:g} or more: most of them", moved, 0.5, "%"),
            Test("loss with weights and biases put back to 1 and 0, minus that as they are", relied, 0.0),
        ),
        numbers=(
            *(
                Number(f"validation loss, {what}", over_seeds([loss[i] for loss in losses]))
                for i, what in enumerate(ERASED)
            ),
            Number("accuracy with learned weight and bias minus that without any, test", needed, "%"),
            Number("median weight", over_seeds([median(w) for w in weights])),
            Number("standard deviation of the weights", over_seeds([float(np.std(w)) for w in weights])),
            Number("median bias", over_seeds([median(b) for b in biases])),
            Number("standard deviation of the biases", over_seeds([float(np.std(b)) for b in biases])),
        ),
        pictures=(
            histogram("The weights of the norm layers after training", weights, 1.0),
            histogram("The biases of the norm layers after training", biases, 0.0),
        ),
        setting=(("Network", f"{usual.network}, batch norm, {usual.epochs} epochs"),),
    )


def learned(run: TrialRecord) -> tuple[list[float], list[float]]:
    """Return the weights and the biases of all norm layers at the end."""
    seen = run.seen["affine"][-1]
    return seen[: len(seen) // 2], seen[len(seen) // 2 :]


def share(weights: Sequence[float], biases: Sequence[float]) -> float:
    """Return the share of channels whose weight is visibly not 1, or whose bias is visibly not 0."""
    return fmean(abs(w - 1) >= VISIBLE or abs(b) >= VISIBLE for w, b in zip(weights, biases, strict=True))


def histogram(title: str, seeds: Sequence[Sequence[float]], start: float) -> Picture:
    """Draw how many channels of all seeds have which value; the mark of the start is named in the axis."""
    values = np.concatenate([np.asarray(of_seed) for of_seed in seeds])
    counts, edges = np.histogram(values, BINS)
    middles = (edges[1:] + edges[:-1]) / 2
    return Picture(
        title,
        f"value at the end; all were {start:g} at the start",
        "share of channels",
        (Series("channels", tuple(middles.tolist()), tuple((counts / len(values)).tolist())),),
    )


CLAIM = Claim(
    claim="Norm layers have a weight and a bias to undo the normalisation, and networks use that freedom.",
    question="Batch norm brings every channel to mean 0 and spread 1, and then multiplies it by a weight and "
    "adds a bias, which are learned. Why take away a scale only to give it back?",
    explanation="With the weight at the old standard deviation and the bias at the old mean the layer would "
    "do nothing, so that a network with norm layers can compute all that one without them can. What is "
    "gained is that mean and scale of a channel are two parameters of their own, which are learned directly, "
    "and no longer hang on all weights before them. The bias decides for how many inputs a ReLU is open. "
    "The weight matters less where another linear layer follows, which can scale just as well: a network "
    "that is trained without them may do as well, while one that has learned with them relies on them.",
    source="Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; Frankle et al. 2021, "
    "https://arxiv.org/abs/2003.00152",
    example="""import torch
import slabnorm as sn

torch.manual_seed(0)
x, y = torch.randn(256, 8), torch.randn(256, 1) ** 2
norm = sn.BatchNorm(16)
network = torch.nn.Sequential(torch.nn.Linear(8, 16), norm, torch.nn.ReLU(), torch.nn.Linear(16, 1))
optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
for _ in range(200):
    optimiser.zero_grad()
    torch.nn.functional.mse_loss(network(x), y).backward()
    optimiser.step()
print(norm.weight.detach(), norm.bias.detach(), sep="\\n")  # were 1 and 0""",
    measure=measure,
)
