"""`fit`: from a data set to an InputNorm, in one pass and in bounded memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import DataWarning, OptionError
from slabnorm.inputs.count import Effort, Opened, Progress
from slabnorm.inputs.counter import Counting
from slabnorm.inputs.features import kept_axes
from slabnorm.inputs.missing import check_left, check_policy
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.record import Record
from slabnorm.inputs.sample import SIZE as SAMPLE
from slabnorm.inputs.scheme import Scheme, first_features
from slabnorm.inputs.schemes import FixedScale, resolve
from slabnorm.inputs.sources import Source, open_source
from slabnorm.inputs.split import guard
from slabnorm.inputs.tally import Tally
from slabnorm.moments import Moments
from slabnorm.pattern import Pattern, parse


def fit(
    source: Any,
    scheme: str | Scheme = "zscore",
    pattern: str | Pattern | None = None,
    *,
    split: str | None = None,
    nan: str = "raise",
    leak: bool = False,
    key: str | None = None,
    convert: str | None = None,
    skip_bad: bool = False,
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

    The data are read once, in chunks of about 2^17 values; the Moments of the chunks are merged in a tree
    that only the data decide. The same samples in the same order give the same bits, whether they come
    as one array, as a file or in batches of any size.

    Args:
        source: where the samples come from, the first axis counting samples:
            an array or tensor, or what can be sliced like one (a memory map, an HDF5 data set);
            a path to a `.npy` or `.npz` file, read a few rows at a time;
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
        nan: "raise" refuses NaN; "omit" leaves it out, feature by feature, and counts it (`nan_count`).
            Infinity is always refused.
        leak: True takes statistics from held-out data all the same, with a warning.
        key: the entry of dicts, or the array of an npz file, that is x.
        convert: the mode "RGB", "L" or "RGBA", to which images are converted; without it all images have one
            mode: RGB, L, RGBA, or I;16, which is uint16.
        skip_bad: True leaves out files that cannot be read, and lists them in `skipped`.
        **sizes: sizes of split axes, as in `g=32`.

    Returns:
        An InputNorm on the CPU.

    Raises:
        LeakageError: no split is named; or the name, or what the source says of itself (a file called
            test.npy, a Dataset with `train=False` or `split="test"`, also inside a Subset), is that of a
            held-out split: validation, val, dev, test, eval, holdout, ..., or all of the data.
        DataError: the data cannot be read, are empty, differ in shape or dtype, or hold what cannot be
            normalised: complex numbers, objects, infinity, NaN under "raise", integers beyond 2^53.
        LedgerError: the ledger is damaged, in use, of other data or other arguments.
    OptionError: an argument out of its range, or a pattern that must be given.
        PatternError, ShapeError: the pattern is wrong, keeps the sample axis, or does not fit the data.
        StatisticsError: a feature's scale leaves the range of float64.

    Warns:
        DataWarning: constant features, which get scale 1; values outside a FixedScale's range; a
            loader that leaves samples out or repeats some; held-out data under `leak=True`.

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
    source = open_source(source, key, convert)
    split = guard(split, source.hints, leak)
    effort = Effort(
        engine,
        _whole("workers", workers),
        memory,
        Path(ledger) if ledger else None,
        resume,
        address,
        progress,
    )
    opened = Opened(source, skip_bad)
    schema = opened.schema
    scheme = resolve(scheme, schema.dtype)
    chosen = _choose(
        pattern, scheme, schema.sample, source.unit, source.pattern if isinstance(source, Source) else ""
    )
    if None in schema.sample:
        schema = schema.pinned(kept_axes(chosen, len(schema.sample)))
    record = Record(
        scheme, chosen.text, schema.sample, schema.dtype, split, 0, nan, leak, _plain_sizes(sizes)
    )
    with _plain():
        record.features()  # which finds what is wrong with the pattern, before anything is read
    counting = Counting(
        chosen.text,
        tuple(sorted(record.sizes.items())),
        schema,
        nan,
        skip_bad=skip_bad,
        unit=source.unit,
        sample=SAMPLE if scheme.ranks else 0,
    )
    if isinstance(source, Source):
        counting = replace(counting, order=source.order, whole=source.whole)
    tally = opened.count(counting, effort)
    with _plain():
        check_left(tally.moments, source.name)
        found = replace(
            record, samples=tally.samples, names=schema.names, reader=source.reader,
            skipped=len(tally.skipped), content=f"{tally.content:016x}",
        )  # fmt: skip
        norm = InputNorm(found, tally.moments, tally.nan, tally.null, _quantiles(scheme, tally))
        norm.sketch, norm.skipped = tally.sketch, tally.skipped
    _warn_of(scheme, tally.moments)
    return norm


def _quantiles(scheme: Scheme, tally: Tally) -> Tensor:
    """Return the quantiles that a scheme reads, a row per rank."""
    rows = tally.sample.quantiles(scheme.ranks) if scheme.ranks else np.empty((0, 1))
    return torch.from_numpy(rows).reshape(len(scheme.ranks), *tally.moments.shape)


def _whole(name: str, number: int | None) -> int | None:
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
        raise OptionError(f"{name} is an integer, 1 or more", repr(number))
    return number


def _plain_sizes(sizes: dict[str, int]) -> dict[str, int]:
    # NumPy's integers are no JSON; what is no size at all is left for the pattern to refuse.
    return {name: int(size) if isinstance(size, Integral) else size for name, size in sizes.items()}


@contextmanager
def _plain() -> Iterator[None]:
    """Make plain CPU tensors, whatever mode or default device the caller has set."""
    with torch.inference_mode(False), torch.device("cpu"):
        yield


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


def _warn_of(scheme: Scheme, moments: Moments) -> None:
    if isinstance(scheme, FixedScale):
        low, high = float(moments.min.min()), float(moments.max.max())
        if low < scheme.low or high > scheme.high:
            warnings.warn(
                f"values from {low:g} to {high:g} lie outside the range of {scheme}",
                DataWarning,
                stacklevel=3,
            )
        return
    constant = moments.min == moments.max
    if bool(constant.any()):
        some = f"{int(constant.sum())} of {constant.numel()} features are constant and get scale 1"
        warnings.warn(f"{some}: {first_features(constant)}", DataWarning, stacklevel=3)
