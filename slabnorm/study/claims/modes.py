"""In eval mode the output depends on the sample alone, in train mode on the batch mates as well."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

import slabnorm as sn
from slabnorm.report.claims import Number, Picture, Test
from slabnorm.study import networks
from slabnorm.study.claims.claim import Claim, Finding, Material, best_rate, exactly, line, over_seeds
from slabnorm.study.claims.first_layer import samples, seeded
from slabnorm.study.data import Dataset
from slabnorm.study.trials import Trial, in_seeds
from slabnorm.study.watch import MATES, TESTED

RATES = (0.01, 0.03, 0.1, 0.3)
ROUNDING = 1e-3  # far above what rounding in float32 can do: the mates have changed the output
SAMPLES = 257  # one, and two times 128 mates at most


def network(data: Dataset, seed: int) -> nn.Module:
    """Return an untrained network with batch norm for these data."""
    classes = len(data.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if data.x.ndim == 4:
            return networks.conv(sn.BatchNorm, data.sample_shape[0], classes)
        return networks.mlp(sn.BatchNorm, data.sample_shape[0], classes)


def moved(model: nn.Module, x: Tensor, size: int) -> tuple[float, float]:
    """Return how far the output for one sample moves as its batch mates are exchanged, in both modes.

        |y' - y| / |y|        the first in train mode, the second in eval mode

    Args:
        model: a network with batch norm.
        x: samples; the first is looked at, the others are the mates.
        size: of the batch.
    """
    half = len(x) // 2
    mates = x[1:size], x[1 + half : half + size]
    found = []
    with torch.enable_grad():  # train mode without gradients is what slabnorm warns of
        for training in (True, False):
            model.train(training)
            first, second = (model(torch.cat([x[:1], others]))[0].detach() for others in mates)
            found.append(((second - first).norm() / first.norm()).item())
    return found[0], found[1]


def measure(material: Material) -> Finding:
    """Exchange a sample's batch mates in both modes; then forget eval() on trained networks."""
    x = samples(material.data, "zscore", SAMPLES).float()
    sizes = [size for size in MATES if size <= len(x) // 2]
    changes = []  # for each seed, one pair for each size
    for seed in material.seeds:
        order = torch.randperm(len(x), generator=seeded(seed, 9))
        model = network(material.data, seed)
        changes.append([moved(model, x[order], size) for size in sizes])
    in_train = min(pair[0] for pairs in changes for pair in pairs)
    in_eval = max(pair[1] for pairs in changes for pair in pairs)
    trial = Trial("conv" if x.ndim == 4 else "mlp", "batch", batch_size=32, epochs=material.epochs)
    best = replace(trial, rate=best_rate(material, trial, RATES))
    runs = material.train([replace(t, watch=("forgotten",)) for t in in_seeds(best, material.seeds)])
    lost = [[-value for value in run.seen["forgotten"][-1]] for run in runs]
    shuffled, ordered = ([run[half] for run in lost] for half in (slice(len(MATES)), slice(len(MATES), None)))
    least, most = over_seeds([run[0] for run in shuffled]), over_seeds([max(run) for run in ordered])
    largest = over_seeds([run[-1] for run in shuffled])
    by_size = [over_seeds([pairs[i][0] for pairs in changes]) for i in range(len(sizes))]
    return Finding(
        measured=f"With other batch mates the output for one sample moves by {by_size[0].mean:.0%} of its "
        f"size in train mode (a batch of {sizes[0]}; {by_size[-1].mean:.0%} for {sizes[-1]}), and by "
        f"{in_eval:g} in eval mode. A forgotten eval() costs {100 * least.mean:.1f} points of accuracy in "
        f"batches of {MATES[0]}, {100 * largest.mean:.1f} in batches of {MATES[-1]}, and up to "
        f"{100 * most.mean:.1f} if the samples come class by class.",
        tests=(
            Test("eval mode: the output is the same to the last bit", exactly(float(in_eval == 0)), 0.5),
            Test("train mode: least change of the output", exactly(in_train), ROUNDING, "%"),
        ),
        numbers=(
            *(
                Number(f"change of the output in train mode, batch of {size}", change, "%")
                for size, change in zip(sizes, by_size, strict=True)
            ),
            *(
                Number(
                    f"accuracy lost by a forgotten eval(), batches of {size}, {how}",
                    over_seeds([run[i] for run in half], 1 / TESTED),
                    "%",
                )
                for how, half in (("in random order", shuffled), ("class by class", ordered))
                for i, size in enumerate(MATES)
            ),
        ),
        pictures=(
            Picture(
                "The same sample in two batches",
                "batch size",
                "change of its output, relative to its size",
                tuple(
                    line(
                        f"{mode} mode",
                        sizes,
                        [[pairs[i][which] for pairs in changes] for i in range(len(sizes))],
                    )
                    for which, mode in enumerate(("train", "eval"))
                ),
                log="x",
            ),
            Picture(
                "What a forgotten eval() costs",
                "batch size at test time",
                "accuracy lost [%]",
                tuple(
                    line(how, MATES, [[100 * run[i] for run in half] for i in range(len(MATES))])
                    for how, half in (("samples in random order", shuffled), ("class by class", ordered))
                ),
                log="x",
            ),
        ),
        setting=(("Data", material.data.name), ("Network", f"{trial.network}, trained with batches of 32")),
    )


CLAIM = Claim(
    claim="In eval mode the output depends on the sample alone; in train mode it depends on its batch mates.",
    question="A trained network sees the same picture twice, each time with other batch mates. May its "
    "answer differ?",
    explanation="In train mode batch norm takes mean and variance from the batch, so that each sample is "
    "measured against its mates: exchange them, and the output moves. In eval mode the layer uses the "
    "statistics that it has remembered from training, which are constants, and a sample gets the same "
    "answer whatever its batch mates are. To forget eval() is a common mistake. It costs most in small "
    "batches, and where a batch is not a fair sample of all, as when the test data are sorted by class.",
    source="Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167",
    example="""import torch
import slabnorm as sn

layer = sn.BatchNorm(2)
for _ in range(100):
    layer(5 + torch.randn(64, 2))  # remembers mean 5 and variance 1
sample, mates, others = torch.full((1, 2), 6.0), 5 + torch.randn(3, 2), 9 + torch.randn(3, 2)
for mode in (True, False):
    layer.train(mode)
    first, second = layer(torch.cat([sample, mates]))[0], layer(torch.cat([sample, others]))[0]
    print("train" if mode else "eval", first.tolist(), second.tolist())""",
    measure=measure,
)
