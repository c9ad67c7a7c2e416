"""`fit`: the statistics of a data set as an InputNorm, in one pass and in bounded memory."""

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
from slabnorm.inputs.sources import Source, Stream, open_source
from slabnorm.inputs.split import guard
from slabnorm.inputs.weighted_moments import check_weights
from slabnorm.notation import Pattern, parse


def fit(
    source: Any,
    scheme: str | Scheme = "zscore",
    pattern: str | Pattern | None = None,
    *,
    split: str | None = None,
    leak: bool = False,
    key: str | None = None,
    columns: Sequence[str] | None = None,
    convert: str | None = None,
    delimiter: str = ",",
    weights: Any = None,
    skip_bad: bool = False,
    missing_chunks: str = "raise",
    nan: str = "raise",
    workers: int | None = None,
    memory: int | None = None,
    engine: str = "local",
    address: str | None = None,
    ledger: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **sizes: int,
) -> InputNorm:
    """Fit input statistics on the training split, and return them as a frozen layer.

        y = (x - shift) / scale * span + low          one shift and one scale per feature, from the scheme

    The data are read once, in chunks of about 2^20 values. Shards of 16 chunks are counted one by one and
    merged in a tree that only the data determine: the same samples in the same order give the same bits, as
    one array, as a file, or in batches of any size.

    Args:
        source: Which data. Where the samples come from; the first axis counts samples. One of:
            an array or tensor, or what can be sliced like one (a memory map, an HDF5 data set);
            the path of a `.npy` or `.npz` file;
            an IDX file such as `train-images-idx3-ubyte.gz`, of MNIST and its like, or a folder of them, of
            which the training images are read;
            the path or URL of a Zarr array, or of a group together with `key`, or one that is open already;
            the path, folder, glob or URL of a table: Parquet, Arrow IPC, CSV (`slabnorm[tables]`);
            a pandas or polars DataFrame, or a pyarrow Table or RecordBatch, whose columns keep their names;
            a folder of images, searched recursively, or tars of images: "train.tar",
            "shards/train-{000..009}.tar", "shards/*.tar.gz", or a folder of tars;
            a torch `Dataset`, whose items are single samples;
            a `DataLoader` or any other iterable, whose items are batches.
            If an item is a tuple or list, its first entry is x. If it is a dict, or the file an npz, x is the
            entry named by `key`, or else "x", or else the only entry.
        scheme: What is computed. "zscore", "minmax", "robust", "quantile", "fixed", or an object such as
            ZScore(ddof=1) or FixedScale(0, 16).
        pattern: Which axes keep statistics of their own, such as "n c h w -> c". Without it, one axis is read
            as "n ->" (but not in batches of an iterable), two as "n c -> c", and four as "n c h w -> c" if
            the last axis is longer than 4, so that it is hardly the channels. Every other shape needs a
            pattern, unless the scheme is FixedScale, which is the same for all features.

        split: Which data, continued. The name of the split that the samples come from, such as "train".
            Required.
        leak: True takes statistics from held-out data on purpose, with a warning.
        key: The name of x among the entries of a dict, or the arrays of an npz file or a Zarr group; of a
            folder of IDX files the one to read, such as "t10k".
        columns: The names of the columns of a table to fit; by default all that hold numbers. A column of
            lists of numbers, all of one length, becomes the features `name[0]`, `name[1]`, ...
        convert: The mode to which images are converted: "RGB", "L" or "RGBA". Without it, all images must
            have one mode: RGB, L, RGBA, or I;16, which is uint16.
        delimiter: The character between the values of CSV files, such as ";" or a tab.
        weights: How often each sample counts: an array with one number per sample in their order, or the name
            of a column of the table, which is then not a feature. Weights 2 and 0 are as if the sample came
            twice or not at all; with real weights, counts are real.
        skip_bad: True leaves out files that cannot be read, and lists them in `skipped`. Otherwise they are
            errors.
        missing_chunks: "raise" refuses a Zarr array that lacks a chunk. "fill" uses its fill value instead,
            for arrays written without the chunks that hold nothing else.

        nan: What is computed, continued. "raise" refuses NaN, and null, which is what a table has no value
            for. "omit" leaves them out, feature by feature, and counts them in `nan_count` and `null_count`.
            Infinity is always refused.
        **sizes: The sizes of axes in brackets, as in `g=32`.

        workers: How the work is done. How many shards are counted at once; by default one for every core. A
            map-style Dataset is read in this process unless this is more than 1; then it is pickled to worker
            processes.
        memory: The number of bytes that the shards being read may take together, besides blocks of 16 MB for
            each worker.
        engine: "local", or "ray" for a cluster (extra `slabnorm[ray]`).
        address: The address of the Ray cluster; by default the one that this process is part of, or else a
            new one on this machine.
        ledger: A file that keeps the result of every shard, so that a fit that was killed can continue. It is
            not deleted; delete it when the statistics are saved. The data must be files.
        resume: True continues with a ledger that is there.
        progress: A function that is called after every shard with its size in bytes and that of all shards (0
            if unknown).

    Returns:
        An InputNorm on the CPU.

    Raises:
        LeakageError: no split is named; or the name, or what the source says about itself (a file called
            test.npy, a folder test/ or split=test/, a Dataset with `train=False` or `split="test"`, also
            inside a Subset), is that of a held-out split (validation, val, dev, test, eval, holdout, testset,
            trainval, ...) or of all of the data.
        DataError: the data cannot be read, are empty, differ in shape or dtype, or hold what cannot be
            normalised: complex numbers, objects, infinity, NaN and null under "raise", integers beyond 2^53.
        LedgerError: the ledger is damaged, in use, or of other data or arguments.
        ExtraError: the package that reads this kind of data is not installed.
        OptionError: an argument is out of its range, or a pattern is needed.
        PatternError, ShapeError: the pattern is wrong, keeps the sample axis, or does not fit the data.
        StatisticsError: the scale of a feature is out of the range of float64.

    Warns:
        DataWarning: features are constant, and get scale 1; a scale is tiny compared with the values of the
            feature; values lie outside the range of a FixedScale; data are bool; a loader leaves out samples
            or repeats some; or statistics come from held-out data under `leak=True`.

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
        raise OptionError("skip_bad must be True or False", repr(skip_bad))
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
    if opened.schema.dtype == "bool" and not opened.schema.names:  # a table's columns have their own warning
        warn_of_flags(source.name)
    record = describe(opened, scheme, pattern, sizes, split=split, nan=nan, leak=leak)
    counting = count_as(opened, record, skip_bad=skip_bad, weights=given)
    norm = input_norm(record, counting, opened.count(counting, effort), source)
    norm.origin = origin
    warn_of(norm)
    return norm


def describe(
    opened: Opened,
    scheme: str | Scheme,
    pattern: str | Pattern | None,
    sizes: dict[str, int],
    *,
    split: str,
    nan: str,
    leak: bool,
) -> Record:
    """Return the record of a fit that is about to begin; its scheme and its pattern are chosen here.

    Raises:
        OptionError, PatternError, ShapeError: as in `fit`.
    """
    source, schema = opened.source, opened.schema
    scheme = resolve(scheme, schema.dtype)
    known = source.pattern if isinstance(source, Source) else ""
    chosen = _choose(pattern, scheme, schema.sample, source.unit, known)
    if None in schema.sample:
        schema = opened.schema = schema.pinned(kept_axes(chosen, len(schema.sample)))
    plain = _plain_sizes(sizes)
    record = Record(scheme, chosen.text, schema.sample, schema.dtype, split, 0, nan, leak, plain)
    with plain_tensors():
        record.features()  # raises if anything is wrong with the pattern, before the data are read
    return record


def count_as(opened: Opened, record: Record, **options: Any) -> Counting:
    """Return how to count the samples of a fit."""
    positions = POSITIONS if record.scheme.ranks else 0
    return opened.counting(record.pattern, record.sizes, nan=record.nan, positions=positions, **options)


def input_norm(record: Record, counting: Counting, tally: Tally, source: Source | Stream) -> InputNorm:
    """Return the layer of a tally.

    Raises:
        DataError: a feature has no values.
        StatisticsError: its scale is out of the range of float64.
    """
    with plain_tensors():
        shape, names = tally.moments.shape, counting.schema.names
        names = names if shape == (len(names),) else ()  # pooled columns have no names
        check_values_left(tally.moments, source.name, names)
        found = replace(
            record,
            samples=tally.samples,
            names=names,
            reader=source.reader,
            skipped=len(tally.skipped),
            order=counting.order,
            positions=_positions(tally, counting),
            content=f"{tally.content:016x}",
            weights=_kind_of_weights(tally, counting),
        )
        check_quantile_sample(tally.quantile_sample, source.name, names)
        quantiles = _quantiles(record.scheme, tally, found.weights)
        norm = InputNorm(found, tally.moments, tally.nan, tally.null, quantiles)
        norm.sketch, norm.skipped = tally.sketch, tally.skipped
    return norm


def _quantiles(scheme: Scheme, tally: Tally, weights: str) -> Tensor:
    """Return the quantiles that a scheme reads, one row for each rank."""
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
    """Return how many values the sampled positions are worth: fewer with weights or missing values."""
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
        raise OptionError("ledger must be a path", repr(ledger)) from None


def _plain_sizes(sizes: dict[str, int]) -> dict[str, int]:
    # JSON cannot hold NumPy's integers. Anything that is not an integer is refused later, by the pattern.
    return {name: int(size) if isinstance(size, Integral) else size for name, size in sizes.items()}


def _choose(
    pattern: str | Pattern | None, scheme: Scheme, sample: tuple[int | None, ...], unit: str, known: str
) -> Pattern:
    """Return the given pattern, or the only one that fits the number of axes."""
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
                "Batches of one axis can be read in two ways, and there is no pattern",
                "one sample per number, or one sample of several features",
                'give pattern="n ->" for the first; for the second, stack the samples with numpy.stack(list)',
            )
        return parse("n ->")
    readings = {
        3: ("n t c -> c", "n c t -> c"),
        4: ("n c h w -> c", "n h w c -> c"),
        5: ("n c d h w -> c", "n d h w c -> c"),
    }.get(rank, ("n c ... -> c", "n ... c -> c"))
    raise OptionError(
        "The data can be read in several ways, and there is no pattern",
        f"samples of shape {sample}",
        f'say which axes keep statistics of their own: pattern="{readings[0]}", or pattern="{readings[1]}"',
    )
