"""`audit`: compare another data set with the statistics of the training split, and say what is wrong."""

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
from slabnorm.inputs.sources.open import known_options
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

    The data are read once. The overlap is the share of distinct samples that were in the training data. The
    fit keeps the smallest hashes of its samples, which are a fair sample of all, so that the artifact alone
    is enough to estimate the share, with an exact binomial interval. With up to 16384 distinct training
    samples the share is exact. Hashes are of values: 1 as uint8 and as float32 is the same, but 0.1 as
    float32 and as float64 are two numbers.

    The thresholds are named constants in findings.py, with their reasons. A difference is a finding only if
    it is large enough to matter and too large for chance. If one cause explains all features (normalised
    twice, another scale, another order of channels), the drift of single features is left out.

    Args:
        norm: the statistics, from `slabnorm.fit` or `slabnorm.load`, or the path of an artifact.
        against: the data to check, anything that `fit` takes. Held-out data are allowed here.
        train: the training split, to check whether the statistics come from it alone.
        key: the name of x among the entries of a dict or the arrays of a file, in both data sets.
        missing_chunks, convert, delimiter: as in `fit`, for both data sets. Give what the fit was given.
        skip_bad: whether to leave out, and report, what cannot be read.
        workers, memory, progress: as in `fit`.

    Returns:
        An AuditRecord with the findings, the overlap, the leaked samples by file and row, and the statistics
        of every feature in both data sets. `record.clean` is True if nothing was found.

    Raises:
        DataError: the data cannot be read, are empty, or hold infinity.
        ShapeError, PatternError: the samples do not have the fitted features.
        ArtifactError: there is no such artifact, or it is damaged.
        OptionError: an argument is out of its range.
        StatisticsError: the statistics have no values, because they are on the meta device.
        ExtraError: the extra `slabnorm[study]` is not installed.

    Papers: Cohen and Kaplan, "Summarizing data using bottom-k sketches" (2007); Clopper and Pearson, "The use
    of confidence or fiducial limits illustrated in the case of the binomial" (1934).

    >>> import numpy as np, slabnorm as sn
    >>> x = np.random.default_rng(0).normal(size=(3000, 4))
    >>> norm = sn.fit(x[:2000], split="train")
    >>> sn.audit(norm, x[2000:]).clean
    True
    >>> print(sn.audit(norm, x[1900:]).verdict)
    1 error in array. 100 of 1,100 distinct samples (9.09%) are identical to training samples.
    """
    extra("scipy.stats", "audit", "'slabnorm[study]'")  # before the data are read
    norm = _at_hand(norm if isinstance(norm, InputNorm) else load(norm))
    effort = Effort(workers=workers, memory=memory)
    with plain_tensors():
        options = {"missing_chunks": missing_chunks, "convert": convert, "delimiter": delimiter}
        given = [data for data in (against, train) if data is not None]
        sources = [_open(norm, data, _options_for(data, given, {"key": key, **options})) for data in given]
        opened = [Opened(source, skip_bad) for source in sources]
        effort = replace(effort, progress=_joint(opened, progress))
        tallies = [_count(norm, each, effort, skip_bad) for each in opened]
        return _record(norm, opened[0], tallies[0], tallies[1] if train is not None else None)


def _options_for(data: Any, both: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options for one data set: without those that only the other one has."""
    if len(both) < 2:
        return options
    mine, known = known_options(data), {name for each in both for name in known_options(each)}
    return {name: value for name, value in options.items() if name in mine or name not in known}


def _open(norm: InputNorm, data: Any, options: dict[str, Any]) -> Source | Stream:
    """Open a data set; of a table, only the columns that were fitted."""
    fitted = norm.record.names
    try:
        source = open_source(data, **options)
    except DataError as error:  # about a column that cannot be fitted, and was perhaps left out of the fit
        try:
            return open_source(data, columns=fitted or None, **options)
        except SlabError:
            raise error from None
    given = source.schema().names if fitted and hasattr(source, "schema") else ()
    return open_source(data, columns=fitted, **options) if set(fitted) < set(given) else source


def _at_hand(norm: InputNorm) -> InputNorm:
    """Return statistics on the CPU."""
    if norm.scale.is_meta:
        problem = "The statistics have no values, because they are on the meta device"
        raise StatisticsError(problem, "", "load them first")
    return norm if norm.scale.device.type == "cpu" else deepcopy(norm).cpu()


def _count(norm: InputNorm, opened: Opened, effort: Effort, skip_bad: bool) -> Tally:
    """Count a data set as the training data were counted, together with what only an audit needs."""
    record = norm.record
    if None in opened.schema.sample:  # images must have one size if the pattern keeps pixels apart
        axes = kept_axes(record.features().pattern, len(opened.schema.sample))
        opened.schema = opened.schema.pinned(axes)
    schema = opened.schema
    record.features().check((1, *(size or 1 for size in schema.sample)))
    moments = norm.moments
    bound = norm.sketch.bound if len(norm.sketch.hashes) else 0
    counting = opened.counting(
        record.pattern,
        record.sizes,
        nan="omit",
        skip_bad=skip_bad,
        reference=Reference(moments.min.cpu(), moments.max.cpu(), bound, seen=norm.sketch.hashes),
        # Samples are hashed with their axes in the order of the training data.
        order=record.order or tuple(range(len(schema.sample))),
    )
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
        notes.append("The overlap was not estimated: these statistics keep no hashes of their samples.")
    if tally.skipped:
        notes.append(f"{len(tally.skipped)} files could not be read and were left out.")
    notes += _dtype_notes(norm.dtype, schema.dtype)
    outside = (counted.below + counted.above).reshape(-1).numpy()
    return AuditRecord(
        name,
        str(norm.scheme),
        norm.record.pattern,
        norm.split,
        norm.samples,
        tally.samples,
        norm.dtype,
        schema.dtype,
        overlap,
        tuple(findings),
        tuple(notes),
        compare(names, old, new, outside),
        leaked_of(norm.sketch, counted),
    )


def _find_values(
    norm: InputNorm, names: list[str], old: Side, new: Side, counted: AuditCounts, dtype: str
) -> list[Finding]:
    """Return findings about the values: one cause for all features, or else the drift of each."""
    whole, moved = find_scale(norm, old, new, dtype)
    whole += find_order(names, moved, new)
    missing = find_missing(names, old, new)
    if whole:
        return whole + missing
    below, above = (counts.reshape(-1).numpy() for counts in (counted.below, counted.above))
    rest = find_constant(names, old, new, below, above) + missing
    kinds = [text.startswith(("float", "bfloat")) for text in (norm.dtype, dtype)]
    if kinds[0] != kinds[1]:
        text = f"these data are {dtype}, but the training data were {norm.dtype}"
        advice = "check whether they were decoded, scaled or resized in another way than the training data"
        rest.append(Finding("dtype", "warning", text, advice))
    return find_drift(names, old, new, below, above) + rest


def find_names(norm: InputNorm, schema: Schema) -> list[Finding]:
    """Return a finding if columns have other names than in training, or another order."""
    fitted, given = norm.record.names, schema.names
    if not fitted or not given or fitted == given:
        return []
    moved = tuple(name for name, other in zip(fitted, given, strict=False) if name != other)
    if sorted(fitted) == sorted(given):
        text, fix = f"{len(moved)} columns are in another order than in training", "select them by name"
    else:
        text, fix = f"{len(moved)} columns have other names than in training", "give the fitted columns"
    advice = f"{fix}, in the order of the fit: columns are normalised by their place"
    return [Finding("names", "error", text, advice, moved)]


def _dtype_notes(fitted: str, given: str) -> list[str]:
    if given == fitted or not {fitted, given} <= {"float16", "bfloat16", "float32", "float64"}:
        return []
    alike = "so that samples that are alike may not be recognised"
    return [f"The training data were {fitted} and these are {given}, which round differently, {alike}."]


def _joint(opened: list[Opened], progress: Progress | None) -> Callable[[int, int], None] | None:
    """Return a progress function that counts towards the bytes of all data sets together."""
    if progress is None:
        return None
    sizes = [sum(shard.size for shard in each.shards) if each.shards is not None else 0 for each in opened]
    total = sum(sizes) if all(sizes) else 0
    return lambda done, _: progress(done, total)
