"""Findings, and what is advised in them, that several families of rules share."""

from __future__ import annotations

from slabnorm.doctor.record import Layer
from slabnorm.report.check import Finding

Numbers = tuple[tuple[str, float], ...]


def eval_finding(name: str, found: str, numbers: Numbers = ()) -> Finding:
    """Return the finding of a layer that is in eval mode in a training."""
    return Finding(
        102, "warning", name, found,
        "it normalises by statistics that no longer move, while the layers before it do",
        "model.train() before each step; or, if it is meant to stay so, "
        f"sn.freeze(model, where=lambda name, _: name == {name!r})",
        numbers,
    )  # fmt: skip


def half_frozen_finding(name: str, numbers: Numbers = ()) -> Finding:
    """Return the finding of a layer whose weight and bias are frozen alone."""
    return Finding(
        103, "warning", name,
        "weight and bias have requires_grad=False, yet each batch moves the running statistics",
        "requires_grad does not stop buffers: the layer drifts from the one that was trained",
        f"sn.freeze(model, where=lambda name, _: name == {name!r})",
        numbers,
    )  # fmt: skip


def ranks_finding(name: str, ranks: int, samples: int, others: str = "") -> Finding:
    """Return the finding of processes that normalise small batches of their own."""
    return Finding(
        207, "warning", name,
        f"{ranks} processes have {samples} samples each, and statistics of their own{others}",
        "each normalises by the noise of its own few samples, and their buffers differ",
        'torch.nn.SyncBatchNorm.convert_sync_batchnorm(model) on GPUs, or sn.convert(model, to="group")',
        (("ranks", ranks), ("samples", samples)),
    )  # fmt: skip


def flat_finding(layer: Layer, share: float, when: str = "") -> Finding:
    """Return the finding of an activation that is flat for a share of its values."""
    return Finding(
        403, "warning", layer.name,
        f"{share:.0%} of its values lie where {layer.kind} is flat{when}",
        "their gradient is below a hundredth of what it could be: the layers before learn slowly",
        "normalise the inputs, or put a norm before it",
        (("flat", share),),
    )  # fmt: skip


def dead_finding(layer: Layer, share: float, when: str) -> Finding:
    """Return the finding of a ReLU of which a share of channels is 0."""
    return Finding(
        404, "warning", layer.name,
        f"{share:.0%} of its channels are 0 {when}",
        "no gradient reaches what makes them: they stay 0",
        "a smaller learning rate, inputs of mean 0, or a norm before it",
        (("dead", share),),
    )  # fmt: skip


def fewer_groups(channels: int) -> int:
    """Return a number of groups that divides the channels, with eight channels or more in each."""
    return max(groups for groups in range(1, max(1, channels // 8) + 1) if channels % groups == 0)
