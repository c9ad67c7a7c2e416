"""3xx, structure: what stands around a norm makes it useless, redundant or harmful."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from slabnorm.doctor.record import Layer, ModelRecord, Norm
from slabnorm.doctor.rules.findings import fewer_groups
from slabnorm.report.check import Finding

UPSTREAM = 8  # layers that are followed back from a norm


def redundant_bias(record: ModelRecord) -> Iterator[Finding]:
    """301: the bias of the layer before a centring norm is subtracted at once."""
    taken = Counter(layer.before for layer in record.layers)
    for layer, norm in _norms(record):
        before = record.layer(layer.before)
        if before is None or not layer.alone or not norm.centers or not norm.per_channel:
            continue
        # What fixed statistics subtract does not follow the bias, which learns.
        fixed = norm.tracks and (layer.frozen or (record.training and not layer.training))
        # The graph, by which it is alone, knows no takers without gradients.
        if before.role == "linear" and before.bias and not fixed and taken[before.name] == 1:
            yield Finding(
                301, "note", before.name,
                f"its bias is subtracted by {layer.name or 'the norm'}, which takes its output",
                "it costs memory and time, and has no effect but through running statistics",
                f"bias=False in {before.name or 'the layer'}",
            )  # fmt: skip


def weight_decay(record: ModelRecord) -> Iterator[Finding]:
    """302: weight decay shrinks weight and bias of norms."""
    if record.decayed:
        names = ", ".join(record.decayed[:4]) + (", ..." if len(record.decayed) > 4 else "")
        norms = _counted(record.decayed, "norm")
        yield Finding(
            302, "note", record.decayed[0],
            f"the optimiser's weight decay shrinks weight and bias of {norms}: {names}",
            "decay bounds functions through the weights of layers that scale; a norm's weight undoes that",
            "a parameter group with weight_decay=0 for them",
            (("norms", len(record.decayed)),),
        )  # fmt: skip


def dropout_before(record: ModelRecord) -> Iterator[Finding]:
    """303: a dropout changes the variance that a batch-pooling norm sees, in train mode alone."""
    for layer, norm in _norms(record):
        if not norm.pools_samples or not norm.tracks:
            continue
        for before in _upstream(record, layer):
            if before.role == "norm":
                break
            if before.role == "dropout" and before.rate > 0:
                larger = 1 / (1 - before.rate) if before.rate < 1 else float("inf")
                yield Finding(
                    303, "warning", layer.name,
                    f"the dropout {before.name} before it makes its input's variance in train mode up to "
                    f"{larger:.2g} times that in eval mode",
                    "its running variance is that of train mode, and wrong in evaluation (Li et al. 2019)",
                    "dropout after the last batch norm",
                    (("rate", before.rate),),
                )  # fmt: skip
                break


def two_in_a_row(record: ModelRecord) -> Iterator[Finding]:
    """304: a norm takes the output of a norm, which nothing else takes."""
    for layer, norm in _norms(record):
        before = record.layer(layer.before)
        if before is None or before.norm is None or not layer.alone:
            continue
        # What mixes channels keeps what weights of its own do to each channel before it.
        undone = norm.centers and norm.per_channel
        yield Finding(
            304, "warning" if undone else "note", layer.name,
            f"it takes the output of {before.name or 'another norm'}, which is a norm",
            "the second undoes what weight and bias of the first do" if undone
            else "the second normalises what is normalised already",
            "leave one of them out, with nn.Identity() in its place",
        )  # fmt: skip


def one_channel_a_group(record: ModelRecord) -> Iterator[Finding]:
    """305: as many groups as channels."""
    for layer, norm in _norms(record):
        if norm.family == "group" and norm.groups == norm.channels > 1 and norm.elements > 1:
            yield Finding(
                305, "warning", layer.name,
                f"{norm.groups} groups of one channel each: this is instance norm",
                "it removes the mean and the contrast of each channel of each image",
                f"fewer groups, such as {fewer_groups(norm.channels)}",
                (("groups", norm.groups), ("channels", norm.channels)),
            )  # fmt: skip


def foldable(record: ModelRecord) -> Iterator[Finding]:
    """306: a model in eval mode has batch norms that could be part of the layers before them."""
    found = [
        layer.name
        for layer, norm in _norms(record)
        if norm.family == "batch" and norm.tracks and layer.alone
        and (before := record.layer(layer.before)) is not None and before.role == "linear"
    ]  # fmt: skip
    if found and not record.training:
        yield Finding(
            306, "note", found[0],
            f"{_counted(found, 'batch norm')} could be part of the weights before",
            "in evaluation a batch norm multiplies and adds constants, as the layer before does anyway",
            "sn.fold(model), on a copy that is not trained further",
            (("norms", len(found)),),
        )  # fmt: skip


def _counted(names: list[str], kind: str) -> str:
    return f"{len(names)} {kind}{'' if len(names) == 1 else 's'}"


def _norms(record: ModelRecord) -> Iterator[tuple[Layer, Norm]]:
    for layer in record.norms:
        if layer.norm is not None and layer.order is not None:
            yield layer, layer.norm


def _upstream(record: ModelRecord, layer: Layer) -> Iterator[Layer]:
    """Walk back from a layer, as far as each takes the output of the one before it."""
    for _ in range(UPSTREAM):
        before = record.layer(layer.before)
        if before is None:
            return
        yield before
        layer = before


RULES = (two_in_a_row, dropout_before, one_channel_a_group, redundant_bias, weight_decay, foldable)
