"""`audit`: another data set beside the statistics of the training split, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

from slabnorm.errors import DataError, SlabError, StatisticsError
from slabnorm.extras import extra
from slabnorm.inputs.artifact import load
from slabnorm.inputs.audit.counts import AuditCounts, Reference
from slabnorm.inputs.audit.findings import (
    Side,
    compare,
    find_constant,
    find_drift,
    find_leak,
    find_missing,
    find_order,
    find_overlap,
    find_scale,
    leaked_of,
    overlap_of,
)
from slabnorm.inputs.features import kept_axes
from slabnorm.inputs.fitting import Effort, Opened, Progress
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.plain_tensors import plain_tensors
from slabnorm.inputs.shard_statistics import Tally
from slabnorm.inputs.sources import Source, Stream, open_source
from slabnorm.inputs.sources.base import Schema
from slabnorm.inputs.statistics_record import feature_names
from slabnorm.report.audit import AuditRecord, Finding


def audit(
    norm: InputNorm | str | os.PathLike[str],
    against: Any,
    *,
    train: Any = None,
    key: str | None = None,
    missing_chunks: str = "raise",
    convert: str | None = None,
    delimiter: str = ",",
    skip_bad: bool = False,
    workers: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> AuditRecord:
    """Compare fitted training statistics with validation or test data, and say what is wrong.

        shift = (mean' - mean) / sd        spread = sd' / sd        overlap = seen / told

    The data are read once. Overlap is the share of distinct samples that were in the training data: the fit
    keeps the smallest hashes of its samples, a fair sample of them all, so that a share is estimated from
    the artifact alone, with an exact binomial interval; without error where training had up to 16384
    distinct samples. Hashes are of values: 1 is the same as uint8 and as float32, while 0.1 as float32 and as
    float64 are two numbers.

    Thresholds, and why, are named constants in findings.py. A difference is found only where it matters
    and chance does not make it; where one cause explains all features (normalised twice, another scale,
    another order of channels), their single drift is left out.

    Args:
        norm: from `slabnorm.fit` or `slabnorm.load`, or the path of an artifact.
        against: the data, anything that `fit` takes; held-out data are what this is for.
        train: the training split, to see whether the statistics are of it alone.
        key: the entry of dicts, or the array of an npz file, that is x; of both data sets.
        missing_chunks, convert, delimiter: as in `fit`, of both data sets: as the statistics were fitted.
        skip_bad: leave out what cannot be read, and say so.
        workers, memory, progress: as in `fit`.

    Returns:
        An AuditRecord: findings, the overlap, the leaked samples by file and row, and both statistics of
        every feature. `record.clean` is True where nothing was found.

    Raises:
        DataError: the data cannot be read, are empty, or hold infinity.
        ShapeError, PatternError: their samples do not have the fitted features.
        ArtifactError: there is no such artifact, or it is damaged.
        OptionError: an argument out of its range.
        StatisticsError: the statistics have no values.
        ExtraError: extra `slabnorm[study]` is not installed.

    Papers: Cohen and Kaplan, "Summarizing data using bottom-k sketches" (2007); Clopper and Pearson, "The use
    of confidence or fiducial limits illustrated in the case of the binomial" (1934).

    >>> import numpy as np, slabnorm as sn
    >>> x = np.random.default_rng(0).normal(size=(3000, 4))
    >>> norm = sn.fit(x[:2000], split="train")
    >>> sn.audit(norm, x[2000:]).clean
    True
    >>> print(sn.audit(norm, x[1900:]).verdict)
    1 error in array. Identical to training samples: 100 of 1,100 distinct samples (9.09%).
    """
    extra("scipy.stats", "audit", "'slabnorm[study]'")  # now, not after the data have been read
    norm = _at_hand(norm if isinstance(norm, InputNorm) else load(norm))
    effort = Effort(workers=workers, memory=memory)
    with plain_tensors():
        options = {"missing_chunks": missing_chunks, "convert": convert, "delimiter": delimiter}
        sources = [_open(norm, data, key, options) for data in (against, train) if data is not None]
        opened = [Opened(source, skip_bad) for source in sources]
        effort = replace(effort, progress=_joint(opened, progress))
        tallies = [_count(norm, each, effort, skip_bad) for each in opened]
        return _record(norm, opened[0], tallies[0], tallies[1] if train is not None else None)


def _open(norm: InputNorm, data: Any, key: str | None, options: dict[str, Any]) -> Source | Stream:
    """Open a data set; of a table that has more columns, those that were fitted."""
    fitted = norm.record.names
    try:
        source = open_source(data, key, **options)
    except DataError as error:  # of a column that nobody can take, which the fit may have left out
        try:
            return open_source(data, key, columns=fitted or None, **options)
        except SlabError:
            raise error from None
    given = source.schema().names if fitted and hasattr(source, "schema") else ()
    return open_source(data, key, columns=fitted, **options) if set(fitted) < set(given) else source


def _at_hand(norm: InputNorm) -> InputNorm:
    """Return statistics on the CPU."""
    if norm.scale.is_meta:
        raise StatisticsError("an audit compares numbers", "an InputNorm on the device meta", "load it first")
    return norm if norm.scale.device.type == "cpu" else deepcopy(norm).cpu()


def _count(norm: InputNorm, opened: Opened, effort: Effort, skip_bad: bool) -> Tally:
    """Count a data set as its training data were counted, and beside it what an audit asks for."""
    record = norm.record
    if None in opened.schema.sample:  # images: those of which a pattern keeps pixels have one size
        axes = kept_axes(record.features().pattern, len(opened.schema.sample))
        opened.schema = opened.schema.pinned(axes)
    schema = opened.schema
    record.features().check((1, *(size or 1 for size in schema.sample)))
    moments = norm.moments
    bound = norm.sketch.bound if len(norm.sketch.hashes) else 0
    counting = opened.counting(
        record.pattern, record.sizes, nan="omit", skip_bad=skip_bad,
        reference=Reference(moments.min.cpu(), moments.max.cpu(), bound, seen=norm.sketch.hashes),
        # Samples are hashed with their axes in the order of the training data's.
        order=record.order or tuple(range(len(schema.sample))),
    )  # fmt: skip
    return opened.count(counting, effort)


def _record(norm: InputNorm, opened: Opened, tally: Tally, train: Tally | None) -> AuditRecord:
    name, schema, counted = opened.source.name, opened.schema, tally.audit
    assert counted is not None  # it was asked for
    old, new, names = Side.of(norm), Side.of(tally), feature_names(norm)
    overlap = overlap_of(norm.sketch, counted, tally.samples)
    leaks, notes = find_leak(norm, tally, train, name)
    findings = leaks + find_overlap(overlap, norm.sketch, counted, norm.samples, tally.samples)
    findings += find_names(norm, schema) + _find_values(norm, names, old, new, counted, schema.dtype)
    findings.sort(key=lambda finding: finding.severity != "error")  # stable
    if overlap is None:
        notes.append("overlap was not looked for: these statistics keep no sketch of their samples")
    if tally.skipped:
        notes.append(f"{len(tally.skipped)} files could not be read and were left out")
    notes += _dtype_notes(norm.dtype, schema.dtype)
    outside = (counted.below + counted.above).reshape(-1).numpy()
    return AuditRecord(
        name, str(norm.scheme), norm.record.pattern, norm.split, norm.samples, tally.samples, norm.dtype,
        schema.dtype, overlap, tuple(findings), tuple(notes), compare(names, old, new, outside),
        leaked_of(norm.sketch, counted),
    )  # fmt: skip


def _find_values(
    norm: InputNorm, names: list[str], old: Side, new: Side, counted: AuditCounts, dtype: str
) -> list[Finding]:
    """Return what the statistics of the features show: one cause for all, else each one's drift."""
    whole, moved = find_scale(norm, old, new, dtype)
    whole += find_order(names, moved, new)
    missing = find_missing(names, old, new)
    if whole:
        return whole + missing
    below, above = (counts.reshape(-1).numpy() for counts in (counted.below, counted.above))
    rest = find_constant(names, old, new, below, above) + missing
    kinds = [text.startswith(("float", "bfloat")) for text in (norm.dtype, dtype)]
    if kinds[0] != kinds[1]:
        text = f"these data are {dtype}, the training data were {norm.dtype}"
        advice = "look whether they were decoded, scaled or resized otherwise than the training data"
        rest.append(Finding("dtype", "warning", text, advice))
    return find_drift(names, old, new, below, above) + rest


def find_names(norm: InputNorm, schema: Schema) -> list[Finding]:
    """Return columns that have other names than in training, or stand in another order."""
    fitted, given = norm.record.names, schema.names
    if not fitted or not given or fitted == given:
        return []
    moved = tuple(name for name, other in zip(fitted, given, strict=False) if name != other)
    if sorted(fitted) == sorted(given):
        text, fix = f"{len(moved)} columns stand in another order than in training", "select them by name"
    else:
        text, fix = f"{len(moved)} columns have other names than in training", "give the columns of the fit"
    return [Finding("names", "error", text, f"{fix}, in its order: columns are normalised by place", moved)]


def _dtype_notes(fitted: str, given: str) -> list[str]:
    if given == fitted or not {fitted, given} <= {"float16", "bfloat16", "float32", "float64"}:
        return []
    return [f"{fitted} in training and {given} here round differently: samples that are alike may go unseen"]


def _joint(opened: list[Opened], progress: Progress | None) -> Callable[[int, int], None] | None:
    """Return a progress that counts towards the bytes of all data sets."""
    if progress is None:
        return None
    sizes = [sum(shard.size for shard in each.shards) if each.shards is not None else 0 for each in opened]
    total = sum(sizes) if all(sizes) else 0
    return lambda done, _: progress(done, total)
