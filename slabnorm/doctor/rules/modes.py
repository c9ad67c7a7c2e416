"""1xx, modes: layers that run in another mode than the user means, and what that does."""

from __future__ import annotations

from collections.abc import Iterator

from slabnorm.doctor import thresholds as t
from slabnorm.doctor.record import ModelRecord
from slabnorm.doctor.rules.findings import eval_finding, half_frozen_finding
from slabnorm.report.check import Finding


def left_in_eval(record: ModelRecord) -> Iterator[Finding]:
    """102: a norm that learns is in eval mode in a model that trains."""
    for layer in record.norms:
        norm = layer.norm
        assert norm is not None
        if record.training and norm.tracks and not layer.training and not layer.frozen and norm.learns:
            found = "the model trains, but this layer is in eval mode and its weight still learns"
            yield eval_finding(layer.name, found)


def moves_though_frozen(record: ModelRecord) -> Iterator[Finding]:
    """103: weight and bias are frozen, the running statistics are not."""
    for layer in record.norms:
        norm = layer.norm
        assert norm is not None
        if record.training and norm.tracks and layer.training and norm.learns is False:
            yield half_frozen_finding(layer.name)


def depends_on_mates(record: ModelRecord) -> Iterator[Finding]:
    """104: in eval mode, a sample's output depends on the other samples. The first layer is named."""
    if record.mates.get("", 0.0) <= t.MATES:
        return
    # Modules are listed in the order in which their forwards end: the first one is where samples meet.
    name = next(name for name, change in record.mates.items() if change > t.MATES)
    guilty = record.layer(name)
    norm = None if guilty is None else guilty.norm
    cause, fix = (
        "find what pools",
        "training=self.training in F.batch_norm, model.eval() before a trace or an export, and fixed "
        "statistics where inputs are normalised by those of their batch",
    )
    if norm is not None and norm.pools_samples and not norm.tracks:
        cause = "it keeps no running statistics"
        fix = "track_running_stats=True, or a norm that does not pool samples, such as group norm"
    share = record.mates.get(name, record.mates[""])
    yield Finding(
        104, "error", name,
        f"in eval mode the output for a sample changes by {share:.0%} with the rest of its batch",
        f"the same sample gets another answer in another batch; {cause}",
        fix,
        (("change", share),),
    )  # fmt: skip


def modes_differ(record: ModelRecord) -> Iterator[Finding]:
    """105: train and eval mode of a trained layer give different outputs for the same batch."""
    for layer in record.norms:
        norm = layer.norm
        assert norm is not None
        if norm.gap is not None and norm.gap > t.GAP and norm.tracked:
            yield Finding(
                105, "note", layer.name,
                f"its outputs in eval mode differ from those in train mode by {norm.gap:.0%} of their size",
                "what the later layers have learned from is not what they get in evaluation",
                "sn.recalibrate(model, train_loader), or larger batches",
                (("gap", norm.gap),),
            )  # fmt: skip


RULES = (left_in_eval, moves_though_frozen, depends_on_mates, modes_differ)
