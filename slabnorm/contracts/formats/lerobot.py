"""LeRobot: `meta/stats.json`, the statistics of every episode, and folders of data sets.

Documented by huggingface/lerobot: `compute_stats.py` (what is computed), `io_utils.py` (`meta/stats.json`),
`dataset_metadata.py` and `convert_dataset_v21_to_v30.py` (where episodes' statistics lie).

* `meta/stats.json` (v2.0, v3.0): by feature min, max, mean, std and, since v2.1, count, a list of one number;
  since v3.0 also quantiles, as q01, q10, q50, q90 and q99.
* `meta/episodes_stats.jsonl` (v2.1): on each line {"episode_index": 0, "stats": {as above}}.
* `meta/episodes/*/*.parquet` (v3.0): a row for each episode, with columns such as "stats/action/mean".
* `meta/info.json`: dtype, shape and names of every feature, the number of frames, and the splits.

Standard deviations are those of numpy.std, which divides by the count. Statistics of images have the shape
(3, 1, 1) and are of pixels divided by 255, as LeRobot's loader returns them; their count is that of images,
of which LeRobot looks at some. Mean and standard deviation of a whole data set are merged from those of its
episodes, which is exact, here as in LeRobot. Quantiles cannot be merged. LeRobot averages those of the
episodes, or takes the outermost of them (its issue 4156 and pull request 3804). They are left out, with a
warning, where the statistics of the episodes show that they are no quantiles of the data.

How a policy normalises stands in its configuration, not beside the statistics:

    MEAN_STD      slabnorm.ZScore()
    MIN_MAX       slabnorm.MinMax(out=(-1, 1))
    QUANTILES     slabnorm.QuantileRange()
    QUANTILE10    slabnorm.QuantileRange(0.1, 0.9)
    IDENTITY      "keep"

LeRobot adds 1e-8 to the deviation that it divides by, and nothing when it multiplies by it again. A feature
without spread it divides by 1e-8, and back in units it is always the mean; slabnorm divides and multiplies
such a feature by 1.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slabnorm.contracts.formats.found import Found, last_axes, last_axes_of, usual_scheme
from slabnorm.contracts.formats.json_file import (
    AGAIN,
    LARGEST,
    begins,
    object_of,
    parse,
    read_object,
    statistics_of,
    unusable,
    write_json,
)
from slabnorm.contracts.key import KEEP, Key, name_of
from slabnorm.contracts.statistics import Provenance, Statistics
from slabnorm.errors import ContractError, DataError, DataWarning, SlabError
from slabnorm.extras import extra
from slabnorm.inputs.schemes import MinMax, QuantileRange, Scheme, ZScore
from slabnorm.mergeable_moments import FIELDS, Moments
from slabnorm.text import listing, printable

if TYPE_CHECKING:
    from slabnorm.contracts.contract import Contract

TITLE = "LeRobot's meta/stats.json"
LARGEST_EPISODES = 1 << 30  # bytes of episodes_stats.jsonl, which is read line by line
TOGETHER = 1024  # episodes that are merged at once
NUMBERS = ("mean", "std", "min", "max")
QUANTILE = re.compile(r"q(\d\d)")
COLUMN = re.compile(r"stats/(.+)/([^/]+)")
KEPT = re.compile(r"timestamp|(\w+_)?index|next\..+|complementary_info\..+")  # which no policy is given
CLOSE = 1e-6  # of the range of the episodes' quantiles: what is nearer to their average is one
Episode = tuple[int, dict[str, dict[str, Any]], str]  # its number, its statistics by key, where they stand
MODES: dict[str, Scheme] = {
    "MEAN_STD": ZScore(),
    "MIN_MAX": MinMax(out=(-1, 1)),
    "QUANTILES": QuantileRange(),
    "QUANTILE10": QuantileRange(0.1, 0.9),
}


def recognises(source: Any) -> bool:
    """Whether a source is a folder of a data set, its meta/stats.json, or its statistics of episodes."""
    if not isinstance(source, Path):
        return False
    in_data_set = source.is_dir() or source.name == "stats.json"
    if in_data_set and b'"codebase_version"' in begins(_meta(source) / "info.json"):
        return True
    if source.name == "episodes_stats.jsonl":
        return source.is_file()
    start = begins(source) if source.name.endswith("stats.json") else b""
    return (b'"observation.' in start or b'"action"' in start) and b'"norm_stats"' not in start


def read(source: Any) -> dict[str, Found]:
    """Return the keys of a data set.

    Outputs are the features whose names begin with "action". Those that LeRobot gives to no policy pass
    unchanged: "timestamp", "index", "next.reward" and the like. All others are inputs.

    Args:
        source: the folder of a data set, its `meta/stats.json`, or `meta/episodes_stats.jsonl`.

    Raises:
        DataError: it is damaged, or holds numbers that no data have.
        ExtraError: the statistics are in Parquet files, and pyarrow is not installed.

    Warns:
        DataWarning: the statistics are of several splits together; or quantiles are left out, as they are
            averages of those of the episodes.
    """
    path = Path(source)
    meta = _meta(path)
    info = _info(meta)
    if path.is_dir():
        path = meta / "stats.json"
        path = path if path.is_file() else meta / "episodes_stats.jsonl"
        path = path if path.is_file() else meta / "episodes"
    if path.suffix == ".json":
        found = _read_whole(path)
        if info and any(statistics.quantiles for statistics, _ in found.values()):
            _leave_out_averages(found, meta, info)
    else:
        wholes = _merge_all(path, info)
        found = {key: (whole.statistics(), whole.count) for key, whole in wholes.items()}
    source_of = Provenance("LeRobot", _split(info, printable(meta)), _whole_number(info.get("total_frames")))
    return {key: _found(key, *each, info, source_of, printable(path)) for key, each in found.items()}


def _meta(path: Path) -> Path:
    """Return the folder meta of a data set."""
    if not path.is_dir():
        return path.parent
    return path if path.name == "meta" else path / "meta"


def _info(meta: Path) -> dict[str, Any]:
    path = meta / "info.json"
    return read_object(path) if path.is_file() else {}


def _whole_number(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _split(info: dict[str, Any], where: str) -> str:
    """Return the split that all episodes together are, as far as info.json says."""
    splits = info.get("splits")
    if not isinstance(splits, dict) or not splits:
        return ""
    if len(splits) > 1:
        together = printable(" + ".join(splits), 100)
        warnings.warn(
            f"The statistics in {where} are of all episodes, which are the splits {together} together; "
            "fit the training split alone with slabnorm.fit_contract",
            DataWarning,
            stacklevel=5,
        )
        return together
    (name, episodes), *_ = splits.items()
    return name if episodes == f"0:{info.get('total_episodes')}" else ""


# One file with the statistics of all episodes.


def _read_whole(path: Path) -> dict[str, tuple[Statistics, int | None]]:
    where = printable(path)
    plain = read_object(path)
    raws = {key: object_of(raw, f"Key {name_of(key)}", where) for key, raw in plain.items()}
    return {key: _entry(key, raw, where) for key, raw in raws.items()}


def _entry(key: str, raw: dict[str, Any], where: str) -> tuple[Statistics, int | None]:
    """Return the statistics of a key, and how many frames or images stand behind them."""
    parts = {name: raw[name] for name in NUMBERS if name in raw}
    statistics = statistics_of(parts, _quantiles(raw), key, where, flags=True)
    return statistics, _count(raw["count"], key, where) if "count" in raw else None


def _quantiles(raw: Mapping[str, Any]) -> dict[float, Any]:
    return {int(m[1]) / 100: value for name, value in raw.items() if (m := QUANTILE.fullmatch(name))}


def _count(raw: Any, key: str, where: str) -> int:
    value = raw[0] if isinstance(raw, list) and len(raw) == 1 else raw
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise unusable(key, where, f"count is {printable(repr(raw), 80)}, not one whole number in a list")
    return value


def _found(
    key: str, statistics: Statistics, count: int | None, info: dict[str, Any], source: Provenance, where: str
) -> Found:
    """Return a key with what info.json says about it."""
    features = info.get("features")
    feature = features.get(key) if isinstance(features, dict) else None
    feature = feature if isinstance(feature, dict) else {}
    shape = statistics.shape
    source = source if count is None else replace(source, samples=count)
    role = "output" if key.startswith("action") else "input"
    valid = None
    if shape[1:] == (1, 1):
        low, high = statistics.min, statistics.max
        if low is not None and high is not None and bool(((low >= 0) & (high <= 1)).all()):
            valid = (0.0, 1.0)
    else:
        said = feature.get("shape")
        if isinstance(said, list) and said != list(shape or (1,)):
            raise unusable(key, where, f"they are of shape {shape}, and info.json says {said!r:.80}")
        if count is not None:
            statistics = replace(statistics, count=torch.full(shape, count))
        if math.prod(shape) == 1:  # LeRobot's loader returns such a feature without an axis
            statistics = statistics.reshaped(())
    pattern, sample = last_axes(statistics.shape)
    if KEPT.fullmatch(key):
        return Found(Key(KEEP), statistics, sample, source)
    names = _names(feature.get("names"), math.prod(shape))
    scheme = usual_scheme(statistics)
    return Found(Key(pattern, scheme, names=names, role=role, valid=valid), statistics, sample, source)


def _names(said: Any, features: int) -> tuple[str, ...]:
    """Return the names of the features, from the forms in which info.json has them; () if it has none.

    These are a list; {"motors": a list}; or the number of each name, as in {"delta_x": 0, "delta_y": 1}. A
    list of another length names the axes instead, as in ["height", "width", "channels"].
    """
    if isinstance(said, dict):
        places = list(said.values())
        if all(type(place) is int for place in places) and sorted(places) == list(range(features)):
            said = sorted(said, key=said.__getitem__)
        else:
            said = places[0] if len(places) == 1 else None
    if not isinstance(said, list) or not all(isinstance(name, str) for name in said):
        return ()
    return tuple(said) if len(said) == len(set(said)) == features else ()


# The statistics of every episode, and their merge.


class _Whole:
    """The statistics of the episodes that were added, of one key."""

    def __init__(self, key: str, where: str) -> None:
        self.key, self.where, self.count = key, where, 0
        self._moments = Moments.empty()
        self._ends_known = True
        self._sums: dict[float, Tensor] = {}  # of quantiles times counts
        self._ends: dict[float, tuple[Tensor, Tensor]] = {}

    def add(self, rows: list[dict[str, Any]], where: str) -> None:
        """Count some episodes more; those without a frame have no statistics."""
        counts = [_count(row.get("count"), self.key, where) for row in rows]
        rows = [row for row, count in zip(rows, counts, strict=True) if count]
        if not rows:
            return
        parts = {name: [row.get(name) for row in rows] for name in NUMBERS if name in rows[0]}
        ranks = {rank: [_quantiles(row).get(rank) for row in rows] for rank in _quantiles(rows[0])}
        read = statistics_of(parts, ranks, self.key, where, flags=True)
        weight = torch.tensor([count for count in counts if count]).reshape(-1, *[1] * (len(read.shape) - 1))
        self._ends_known &= read.min is not None and read.max is not None
        try:
            moments = replace(read, count=weight.expand(read.shape)).moments()
            self._moments = self._moments.merge(_merge_rows(moments))
        except SlabError as error:
            raise unusable(self.key, where, f"{error.problem}: {error.got}") from error
        self.count += sum(counts)
        for rank, values in read.quantiles.items():
            total = (values * weight).sum(0)
            self._sums[rank] = self._sums.get(rank, torch.zeros_like(total)) + total
            low, high = self._ends.get(rank, (values[0], values[0]))
            self._ends[rank] = torch.minimum(low, values.amin(0)), torch.maximum(high, values.amax(0))

    def statistics(self) -> Statistics:
        """Return the statistics of all, without the count; raise DataError if there was no frame."""
        if not self.count:
            raise unusable(self.key, self.where, "no episode has a frame")
        found = self._moments
        low, high = (found.min, found.max) if self._ends_known else (None, None)
        return Statistics(found.mean, found.std(), low, high)

    def is_average(self, rank: float, quantile: Tensor) -> bool:
        """Whether numbers are the average of the episodes' quantiles, or the outermost of them."""
        if rank not in self._sums or self._sums[rank].shape != quantile.shape:
            return False
        low, high = self._ends[rank]
        differ = high > low  # of episodes with equal quantiles, these are also those of the whole
        candidates = [self._sums[rank] / self.count] + ([low if rank < 0.5 else high] if rank != 0.5 else [])
        near = [((quantile - one).abs() <= CLOSE * (high - low))[differ].all() for one in candidates]
        return bool(differ.any()) and any(map(bool, near))


def _merge_rows(rows: Moments) -> Moments:
    """Return the moments of all rows, merged in pairs."""
    while (length := rows.shape[0]) > 1:
        half = length // 2
        pairs = _some(rows, 0, half).merge(_some(rows, half, 2 * half))
        rest = _some(rows, 2 * half, length)
        rows = Moments(*(torch.cat([getattr(pairs, name), getattr(rest, name)]) for name in FIELDS))
    return Moments(*(getattr(rows, name)[0] for name in FIELDS))


def _some(rows: Moments, first: int, last: int) -> Moments:
    return Moments(*(getattr(rows, name)[first:last] for name in FIELDS))


def _merge_all(path: Path, info: dict[str, Any]) -> dict[str, _Whole]:
    """Merge the statistics of all episodes, in a file or a folder."""
    wholes: dict[str, _Whole] = {}
    seen: set[int] = set()
    episodes = _episodes(path)
    while block := list(islice(episodes, TOGETHER)):
        wholes = wholes or {key: _Whole(key, printable(path)) for key in block[0][1]}
        for index, stats, where in block:
            if index in seen:
                raise DataError(f"Episode {index} comes twice: {where}", "", AGAIN)
            seen.add(index)
            if odd := sorted(stats.keys() ^ wholes.keys()):
                raise DataError(
                    f"Episode {index} has statistics of other keys than those before it: {where}",
                    ", ".join(map(name_of, odd[:10])), AGAIN,
                )  # fmt: skip
        for key, whole in wholes.items():
            whole.add([stats[key] for _, stats, _ in block], f"{block[0][2]} and the episodes after it")
    total = _whole_number(info.get("total_episodes"))
    if total is not None and total != len(seen):
        got = f"{len(seen)} of the {total} that info.json says"
        raise DataError(f"Not the statistics of all episodes: {printable(path)}", got, AGAIN)
    return wholes


def _episodes(path: Path) -> Iterator[Episode]:
    """Yield all episodes."""
    for index, stats, where in _lines(path) if path.suffix == ".jsonl" else _rows(path):
        if type(index) is not int:
            raise DataError(f"No episode_index: {where}", f"{index!r:.80}", AGAIN)
        stats = object_of(stats, "stats", where)
        yield index, {key: object_of(raw, f"Key {name_of(key)}", where) for key, raw in stats.items()}, where


def _lines(path: Path) -> Iterator[tuple[Any, Any, str]]:
    """Yield the lines of episodes_stats.jsonl."""
    shown = printable(path)
    if not path.is_file() or path.stat().st_size > LARGEST_EPISODES:
        raise DataError(f"No file of at most {LARGEST_EPISODES:,} bytes: {shown}", "", "check the path")
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LARGEST):
            number += 1
            where = f"{shown}, line {number}"
            plain = object_of(parse(line, where), "A line", where)
            yield plain.get("episode_index"), plain.get("stats"), where


def _rows(folder: Path) -> Iterator[tuple[Any, Any, str]]:
    """Yield the rows of the Parquet files of version 3.0."""
    parquet = extra("pyarrow.parquet", "reading statistics of LeRobot's episodes", "'slabnorm[tables]'")
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise DataError(f"No statistics in {printable(folder.parent)}", "no stats.json, no episodes", AGAIN)
    for path in paths:
        where = printable(path)
        if not path.is_file():  # to open a pipe would wait for ever
            raise DataError(f"Not a file: {where}", "a folder or a device", AGAIN)
        try:
            with parquet.ParquetFile(path) as file:
                columns = {name: COLUMN.fullmatch(name) for name in file.schema_arrow.names}
                wanted = [name for name, match in columns.items() if match or name == "episode_index"]
                for batch in file.iter_batches(TOGETHER, columns=wanted):
                    for row in batch.to_pylist():
                        stats: dict[str, dict[str, Any]] = {}
                        for name, match in columns.items():
                            if match:
                                stats.setdefault(match[1], {})[match[2]] = row[name]
                        yield row.get("episode_index"), stats, where
        except Exception as error:  # pyarrow raises its own errors, OSError, and others for damaged files
            raise DataError(f"Damaged Parquet file: {where}", printable(error), AGAIN) from error


def _leave_out_averages(
    found: dict[str, tuple[Statistics, int | None]], meta: Path, info: dict[str, Any]
) -> None:
    """Leave out quantiles of a whole that are averages of those of its episodes, which are not its own."""
    path = meta / "episodes_stats.jsonl"
    path = path if path.is_file() else meta / "episodes"
    if not path.exists():
        return
    wholes = _merge_all(path, info)
    averaged = []
    for key, (statistics, count) in found.items():
        ranks = statistics.quantiles if key in wholes else {}
        wrong = [rank for rank, value in ranks.items() if wholes[key].is_average(rank, value)]
        if wrong:
            averaged += [] if KEPT.fullmatch(key) else [key]
            right = {rank: value for rank, value in ranks.items() if rank not in wrong}
            found[key] = replace(statistics, quantiles=right), count
    if averaged:
        warnings.warn(
            f"Quantiles in {printable(meta / 'stats.json')} are averages of those of the episodes, or the "
            f"outermost of these, and not those of the data; they are left out: {listing(averaged[:10])}. "
            "Fit the data with slabnorm.fit_contract",
            DataWarning,
            stacklevel=5,
        )


# To a file.


def write(contract: Contract, path: Path) -> None:
    """Write a contract as `meta/stats.json`.

    Keys that pass unchanged are left out, and so are units, names and splits, for which it has no place.

    Raises:
        ContractError: a key is not known to policies by its name, is scaled as no mode of LeRobot does, or
            does not say its mean, standard deviation, minimum and maximum.
        OptionError: the file cannot be written.
    """
    plain = {name: _plain(name, key, norm) for name, (key, norm) in contract.entries().items() if norm}
    write_json(path, plain)


def _plain(name: str, key: Key, norm: Any) -> dict[str, Any]:
    """Return the statistics of a key as LeRobot has them."""
    statistics = Statistics.of(norm)
    axes = last_axes_of(norm)
    _check(name, key, norm, statistics, axes)
    shape = (*norm.features.shape, 1, 1) if axes == "images" else norm.features.shape or (1,)
    values = {
        part: getattr(statistics, part).reshape(shape).tolist() for part in ("min", "max", "mean", "std")
    }
    for rank, value in statistics.quantiles.items():
        if math.isclose(percent := rank * 100, round(percent)) and 0 < percent < 100:
            values[f"q{round(percent):02d}"] = value.reshape(shape).tolist()
    count = norm.samples if axes == "images" or statistics.count is None else int(statistics.count.max())
    return values if count is None else {**values, "count": [count]}


def _check(name: str, key: Key, norm: Any, statistics: Statistics, axes: str) -> None:
    """Raise ContractError for what LeRobot cannot express, or would do otherwise."""
    start = "action" if key.role == "output" else "observation"
    missing = [part for part in NUMBERS if getattr(statistics, part) is None]
    ranks = [rank for rank in norm.scheme.ranks if statistics.quantile(rank) is None]
    why, fix = "", "write slabnorm's own file with Contract.save, or plain JSON"
    if not name.startswith(start):
        why = f"LeRobot's policies take an {key.role} by a name that begins with {start!r}, and no other"
    elif not axes:
        why = f"the features of {key.pattern!r} are neither the last axes nor the channels of images"
    elif missing or ranks:
        why = f"nobody says its {listing(missing + [f'quantile {rank:g}' for rank in ranks])}"
        fix = "fit the data with slabnorm.fit_contract"
    elif norm.scheme not in MODES.values():
        why = f"no mode of LeRobot computes {norm.scheme}"
        fix = f"take one of {listing([f'{scheme} ({mode})' for mode, scheme in MODES.items()], 'or')}"
    elif statistics.count is not None and bool((statistics.count != statistics.count.max()).any()):
        why = "its features have different counts, and LeRobot has one for all"
    elif axes == "images" and statistics.max is not None and bool((statistics.max > 1).any()):
        why, fix = "LeRobot's images are divided by 255, and these reach beyond 1", "fit them divided by 255"
    if why:
        raise ContractError(f"{TITLE} cannot hold key {name_of(name)}", why, fix)
