"""Layer norm does not depend on the batch, so it serves recurrent networks and transformers."""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

import slabnorm as sn
from slabnorm.report.claims import Number, Picture, Test
from slabnorm.study.claims.claim import (
    Claim,
    Finding,
    Material,
    best_rates,
    exactly,
    learning_curve,
    over_seeds,
)
from slabnorm.study.trials import Trial, TrialRecord, in_seeds

# Every letter by itself: the slab of a token is its channels. "layer" in `compare` is a whole sample, all
# letters of it, which a network that predicts the next letter must not see.
TOKEN = "n c ... -> n ..."
NORMS = {TOKEN: "layer norm", "batch": "batch norm"}
NETWORKS = {"transformer": "transformer", "recurrent": "recurrent network"}
RATES = (0.2, 0.4, 0.8)  # doublings: by a factor of three both norms fall between the steps
SAME = 1e-5  # of values around 1: some rounding errors of float32
NEAR = 0.02  # "it serves" is not "it is better": within 2 points, as `compare` calls a rate good
CHANNELS, PADDING = 32, 16

Runs = dict[tuple[str, str], list[TrialRecord]]


def measure(material: Material) -> Finding:
    """Change a sample's batch and its padding under both norms, and train both networks with each."""
    changes = {norm: changed(material, norm) for norm in NORMS}
    runs = trained(material)
    better = {
        network: over_seeds(
            [
                a.accuracy - b.accuracy
                for a, b in zip(runs[network, TOKEN], runs[network, "batch"], strict=True)
            ]
        )
        for network in NETWORKS
    }
    means = {key: fmean(run.accuracy for run in records) for key, records in runs.items()}
    said = "; ".join(
        f"the {name} predicts {means[network, TOKEN]:.1%} of the next letters correctly with layer norm and "
        f"{means[network, 'batch']:.1%} with batch norm"
        for network, name in NETWORKS.items()
    )
    mates, padded = changes[TOKEN]
    return Finding(
        measured=f"Other batch mates change layer norm's output by at most {mates:g} and batch norm's by "
        f"{changes['batch'][0]:.1f}. In eval mode {said}.",
        tests=(
            Test("layer norm: largest change of a sample by batch mates", exactly(mates), SAME, below=True),
            Test("layer norm: largest change of a sample by padding", exactly(padded), SAME, below=True),
            *(
                Test(f"test accuracy of the {name}, layer minus batch norm", better[network], -NEAR, "%")
                for network, name in NETWORKS.items()
            ),
        ),
        numbers=(
            Number("batch norm: largest change of a sample by batch mates", exactly(changes["batch"][0])),
            Number("batch norm: largest change of a sample by padding", exactly(changes["batch"][1])),
            *(
                Number(f"accuracy, {network}, {NORMS[norm]}", over_seeds([r.accuracy for r in records]), "%")
                for (network, norm), records in runs.items()
            ),
            *(
                Number(f"accuracy in train mode minus eval mode, {network}, {NORMS[norm]}",
                       over_seeds([r.gap for r in records]), "%")
                for (network, norm), records in runs.items()
            ),
        ),
        pictures=tuple(
            Picture(
                f"Next letters predicted correctly, {NETWORKS[network]}",
                "optimiser steps",
                "validation accuracy, eval mode",
                tuple(learning_curve(NORMS[norm], runs[network, norm]) for norm in NORMS),
            )
            for network in NETWORKS
        ),
        setting=(
            ("Text", "windows of Python's own help, letter by letter; the network predicts the next letter"),
            ("Layer norm", f"over the channels of each letter: {TOKEN}"),
            ("Batch norm", "per channel, over all letters of all windows of the batch; one set of running "
             "statistics for all steps of the recurrent network"),
        ),
    )  # fmt: skip


def changed(material: Material, norm: str) -> tuple[float, float]:
    """Return by how much the first of some windows changes with its batch mates, and with padding."""
    draw = torch.Generator().manual_seed(material.seeds[0])
    letters = torch.randn(len(material.text.letters), CHANNELS, generator=draw)
    x = letters[material.text.codes[:8]].movedim(-1, 1)  # (n, c, t)
    pattern = "n c t -> n t" if norm == TOKEN else "n c t -> c"

    def first(batch: Tensor) -> Tensor:
        return sn.normalize(batch, pattern)[0, :, : x.shape[2]]

    others = torch.cat([x[:1], 3 * x[1:] + 1])
    padded = torch.nn.functional.pad(x, (0, PADDING))
    return (
        (first(others) - first(x)).abs().max().item(),
        (first(padded) - first(x)).abs().max().item(),
    )


def trained(material: Material) -> Runs:
    """Return the trainings of both networks with both norms, each at its best rate."""
    trials = [
        Trial(network, norm, batch_size=16, epochs=2 if material.quick else 1, looks=6)
        for network in NETWORKS
        for norm in NORMS
    ]
    rates = RATES[1:2] if material.quick else RATES
    best = best_rates(material, trials, rates, seeds=1)
    records = material.train([one for trial in best for one in in_seeds(trial, material.seeds)])
    count = len(material.seeds)
    return {(t.network, t.norm): records[i * count :][:count] for i, t in enumerate(best)}


CLAIM = Claim(
    claim="Layer norm does not depend on the batch, so it serves recurrent networks and transformers.",
    question="Sentences have different lengths, and a recurrent network runs the same layer at every letter. "
    "Over what should one take mean and variance there?",
    explanation="Batch norm would mix the letters of all sentences in a batch, the padding of short ones "
    "among them, and of each sentence also the letters that are still to come. In use it needs running "
    "statistics, which fit all steps of a recurrent network only if its states spread alike at every step. "
    "Layer norm takes the channels of each letter by itself: its output is the same in any batch, at any "
    "length, in both modes. Whether the trained network is also more accurate is another question, and "
    "depends on the data and the batch.",
    source="Ba et al. 2016, https://arxiv.org/abs/1607.06450; Cooijmans et al. 2017, "
    "https://arxiv.org/abs/1603.09025; Shen et al. 2020, https://arxiv.org/abs/2003.07845",
    example="""import torch
import slabnorm as sn

torch.manual_seed(0)
x = torch.randn(4, 8, 10)  # sentences, channels, letters
others = torch.cat([x[:1], 5 * x[1:]])  # the first sentence among louder mates
padded = torch.nn.functional.pad(x, (0, 30))
for pattern in ("n c t -> n t", "n c t -> c"):  # layer norm of each letter, batch norm
    first = sn.normalize(x, pattern)[0]
    print(pattern, (sn.normalize(others, pattern)[0] - first).abs().max().item(),
          (sn.normalize(padded, pattern)[0, :, :10] - first).abs().max().item())""",
    measure=measure,
)
