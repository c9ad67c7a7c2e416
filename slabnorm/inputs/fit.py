"""`fit`: from a data set to an InputNorm, in one pass and in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import OptionError
from slabnorm.inputs.accumulator import Counting, check_policy, check_quantile_sample, check_values_left
from slabnorm.inputs.data_warnings import warn_of, warn_of_flags
from slabnorm.inputs.features import kept_axes
from slabnorm.inputs.fitting import Effort, Opened, Progress
from slabnorm.inputs.ledger import Ledger
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.outputs import check_apart, paths_of
from slabnorm.inputs.plain_tensors import plain_tensors
from slabnorm.inputs.quantile_sample import SIZE as POSITIONS
from slabnorm.inputs.record import Record
from slabnorm.inputs.schemes import Scheme, resolve
from slabnorm.inputs.shard_statistics import Tally
from slabnorm.inputs.sources import Source, open_source
from slabnorm.inputs.split import guard
from slabnorm.inputs.weighted_moments import check_weights
from slabnorm.notation import Pattern, parse


def fit(
    source: Any,
    scheme: str | Scheme = "zscore",
    pattern: str | Pattern | None = None,
    *,
    split: str | None = None,
    nan: str = "raise",
    leak: bool = False,
    key: str | None = None,
    columns: Sequence[str] | None = None,
    convert: str | None = None,
    weights: Any = None,
    delimiter: str = ",",
    skip_bad: bool = False,
    missing_chunks: str = "raise",
    workers: int | None = None,
    memory: int | None = None,
    engine: str = "local",
    address: str | None = None,
    ledger: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **sizes: int,
) -> InputNorm:
    """Fit input statistics on the training split, once, and return them as a frozen layer.

        y = (x - shift) / scale * span + low          shift and scale: one per feature, from the scheme

    The data are read once, in chunks of about 2^20 values; what shards of 16 chunks hold is merged in a tree
    that only the data decide. The same samples in the same order give the same bits, whether they come
    as one array, as a file or in batches of any size.

    Args:
        source: where the samples come from, the first axis counting samples:
            an array or tensor, or what can be sliced like one (a memory map, an HDF5 data set);
            a path to a `.npy` or `.npz` file, read a few rows at a time;
            a path or URL of a Zarr array, or of a group with `key`, or one that is opened;
            the path, folder, glob or URL of a table: Parquet, Arrow IPC, CSV (`slabnorm[tables]`);
            a pandas or polars DataFrame, or a pyarrow Table or RecordBatch, whose columns keep their names;
            a path to a folder of images, searched recursively, or to tars of images: "train.tar",
            "shards/train-{000..009}.tar", "shards/*.tar.gz", or a folder of them;
            a torch `Dataset`, whose items are single samples;
            a `DataLoader` or any other iterable, whose items are batches.
            x is an item itself, the first of a tuple or list, or of a dict (and of an npz file) the
            entry named by `key`, else "x", else the only one.
        scheme: "zscore", "minmax", "robust", "fixed", or an object: ZScore(ddof=1), FixedScale(0, 16).
        pattern: which axes keep statistics of their own, such as "n c h w -> c". If it is left out:
            "n ->" for 1 axis (but not for batches of an iterable), "n c -> c" for 2; "n c h w -> c" for 4
            where the last axis is longer than 4, so that it is hardly the channels; every other shape
            wants it said. FixedScale, which is the same for all features, takes any shape.
        split: the name of the split that the samples come from, such as "train". It must be said.
        nan: "raise" refuses NaN; "omit" leaves it out, feature by feature, and counts it (`nan_count`);
            so with null, what a table has no value for (`null_count`). Infinity is always refused.
        leak: True takes statistics from held-out data all the same, with a warning.
        key: the entry of dicts, or the array of an npz file or a Zarr group, that is x.
        missing_chunks: "raise" refuses a Zarr array that lacks a chunk; "fill" takes its fill value, for
            arrays written without the chunks that hold nothing else.
        convert: the mode "RGB", "L" or "RGBA", to which images are converted; without it all images have one
            mode: RGB, L, RGBA, or I;16, which is uint16.
        weights: how often each sample counts: an array of numbers, one per sample in their order, or the name
            of a table's column, which is no feature then. Weights 2 and 0 are as if the sample came twice, or
            not at all; real ones make counts real.
        delimiter: what stands between the values of CSV files, as ";" or a tab.
        skip_bad: whether files that cannot be read are left out and listed (`skipped`); else they are errors.
        workers: how many shards are counted at once; by default one for every core. A map-style Dataset is
            read in this process unless told so: more workers are processes, to which it is pickled.
        memory: bytes that the shards being read may take together, beside blocks of 16 MB a worker.
        engine: "local", or "ray", a cluster (extra `slabnorm[ray]`).
        address: of the Ray cluster; by default the one this process is part of, else one started here.
        ledger: a file that keeps what is counted, shard by shard, so that a fit that was killed goes on. It
            stays; delete it when the statistics are saved. The data must be files.
        resume: whether to go on with a ledger that is there.
        progress: called after every shard with the bytes it had and the bytes of all (0 if unknown).
        columns: the names of a table's columns to count; by default all that hold numbers. A column of lists
            of numbers, all of one length, is the features `name[0]`, `name[1]`, ...
        **sizes: sizes of split axes, as in `g=32`.

    Returns:
        An InputNorm on the CPU.

    Raises:
        LeakageError: no split is named; or the name, or what the source says of itself (a file called
            test.npy, a folder test/ or split=test/, a Dataset with `train=False` or `split="test"`, also
            inside a Subset), is that of a held-out split: validation, val, dev, test, eval, holdout,
            testset, trainval, ..., or all of the data.
        DataError: the data cannot be read, are empty, differ in shape or dtype, or hold what cannot be
            normalised: complex numbers, objects, infinity, NaN and null under "raise", integers beyond 2^53.
        LedgerError: the ledger is damaged, in use, of other data or other arguments.
        ExtraError: a package that reads this kind of data is not installed.
        OptionError: an argument out of its range, or a pattern that must be given.
        PatternError, ShapeError: the pattern is wrong, keeps the sample axis, or does not fit the data.
        StatisticsError: a feature's scale leaves the range of float64.

    Warns:
        DataWarning: constant features, which get scale 1; features whose scale is tiny beside their own
            values; values outside a FixedScale's range; data of bool, unless cast to uint8; a loader that
            leaves samples out or repeats some; held-out data under `leak=True`.

    >>> import torch
    >>> from slabnorm.inputs import fit
    >>> images = torch.arange(2 * 3 * 6 * 6).reshape(2, 3, 6, 6).to(torch.uint8)
    >>> norm = fit(images, "zscore", "n c h w -> c", split="train")
    >>> norm.moments.mean
    tensor([ 71.5000, 107.5000, 143.5000], dtype=torch.float64)
    >>> y = norm(images)
    >>> y.dtype, bool(y.mean().abs() < 1e-6)
    (torch.float32, True)
    """
    check_policy(nan)
    if not isinstance(skip_bad, bool):
        raise OptionError("skip_bad is True or False", repr(skip_bad))
    effort = Effort(engine, workers, memory, _path(ledger), resume, address, progress)
    column = weights if isinstance(weights, str) else None
    origin = tuple(map(os.path.abspath, chain(paths_of(source), paths_of(None if column else weights))))
    if effort.ledger:
        check_apart(Ledger.files(effort.ledger), origin)
    source = open_source(
        source,
        key,
        columns=columns,
        missing_chunks=missing_chunks,
        convert=convert,
        weights=column,
        delimiter=delimiter,
    )
    given = check_weights(weights) if weights is not None and column is None else column
    split = guard(split, source.hints, leak)
    opened = Opened(source, skip_bad)
    schema = opened.schema
    if schema.dtype == "bool" and not schema.names:  # the columns of a table are warned of by their names
        warn_of_flags(source.name)
    scheme = resolve(scheme, schema.dtype)
    chosen = _choose(
        pattern, scheme, schema.sample, source.unit, source.pattern if isinstance(source, Source) else ""
    )
    if None in schema.sample:
        schema = opened.schema = schema.pinned(kept_axes(chosen, len(schema.sample)))
    record = Record(
        scheme, chosen.text, schema.sample, schema.dtype, split, 0, nan, leak, _plain_sizes(sizes)
    )
    with plain_tensors():
        record.features()  # which finds what is wrong with the pattern, before anything is read
    counting = opened.counting(
        chosen.text, record.sizes, nan=nan, skip_bad=skip_bad, positions=POSITIONS if scheme.ranks else 0,
        weights=given,
    )  # fmt: skip
    tally = opened.count(counting, effort)
    with plain_tensors():
        shape = tally.moments.shape
        names = schema.names if shape == (len(schema.names),) else ()  # pooled, columns have no names
        check_values_left(tally.moments, source.name, names)
        found = replace(
            record, samples=tally.samples, names=names, reader=source.reader,
            skipped=len(tally.skipped),
            order=counting.order,
            positions=_positions(tally, counting), content=f"{tally.content:016x}",
            weights=_kind_of_weights(tally, counting),
        )  # fmt: skip
        check_quantile_sample(tally.quantile_sample, source.name, names)
        quantiles = _quantiles(scheme, tally, found.weights)
        norm = InputNorm(found, tally.moments, tally.nan, tally.null, quantiles)
        norm.sketch, norm.skipped, norm.origin = tally.sketch, tally.skipped, origin
    warn_of(norm)
    return norm


def _quantiles(scheme: Scheme, tally: Tally, weights: str) -> Tensor:
    """Return the quantiles that a scheme reads, a row per rank."""
    rows = np.empty((0, 1))
    if scheme.ranks and weights:
        rows = tally.quantile_sample.weighted_quantiles(scheme.ranks, weights == "whole")
    elif scheme.ranks:
        rows = tally.quantile_sample.quantiles(scheme.ranks)
    return torch.from_numpy(rows).reshape(len(scheme.ranks), *tally.moments.shape)


def _kind_of_weights(tally: Tally, counting: Counting) -> str:
    if counting.weights is None:
        return ""
    return "real" if tally.moments.weighted else "whole"


def _positions(tally: Tally, counting: Counting) -> int:
    """Return what a sample of positions is worth: fewer than there are, of weights that differ, and where
    values are missing.
    """
    drawn = len(tally.quantile_sample.keys)
    every = tally.samples * counting.schema.values // max(1, tally.moments.mean.numel())
    if not drawn or drawn >= every:
        return drawn
    return min(
        tally.quantile_sample.present,
        tally.quantile_sample.effective if counting.weights is not None else drawn,
    )


def _path(ledger: Any) -> Path | None:
    try:
        return Path(ledger) if ledger else None
    except TypeError:
        raise OptionError("the ledger is a path", repr(ledger)) from None


def _plain_sizes(sizes: dict[str, int]) -> dict[str, int]:
    # NumPy's integers are no JSON; what is no size at all is left for the pattern to refuse.
    return {name: int(size) if isinstance(size, Integral) else size for name, size in sizes.items()}


def _choose(
    pattern: str | Pattern | None, scheme: Scheme, sample: tuple[int | None, ...], unit: str, known: str
) -> Pattern:
    """Return the pattern, by default the one reading that the number of axes leaves."""
    if pattern is not None:
        return pattern if isinstance(pattern, Pattern) else parse(pattern)
    if not scheme.per_feature:
        return parse("n ... ->")
    if known:
        return parse(known)
    rank = len(sample) + 1
    if rank == 4 and (sample[-1] or 0) > 4:
        return parse("n c h w -> c")
    if rank == 2:
        return parse("n c -> c")
    if rank == 1:
        if unit == "batch":
            raise OptionError(
                "batches of one axis are read as numbers, one sample each; that wants the pattern said",
                "batches of one axis, and no pattern",
                'pattern="n ->"; if each is one sample of several features, stack them: numpy.stack(list)',
            )
        return parse("n ->")
    readings = {
        3: ("n t c -> c", "n c t -> c"),
        4: ("n c h w -> c", "n h w c -> c"),
        5: ("n c d h w -> c", "n d h w c -> c"),
    }.get(rank, ("n c ... -> c", "n ... c -> c"))
    raise OptionError(
        "the pattern says which axes keep statistics of their own; this shape can be read in several ways",
        f"samples of shape {sample}, and no pattern",
        f'as pattern="{readings[0]}", or pattern="{readings[1]}"',
    )
