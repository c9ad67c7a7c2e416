"""`fit_contract`: the statistics of many keys of a data set."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from slabnorm.contracts.contract import Contract
from slabnorm.contracts.key import Key, as_key, name_of
from slabnorm.contracts.nested import get, is_mapping, known_names
from slabnorm.errors import DataError, DataWarning, LeakageError, OptionError, SlabError
from slabnorm.inputs.accumulator import Counting, check_policy
from slabnorm.inputs.data_warnings import warn_of, warn_of_flags
from slabnorm.inputs.fit import count_as, describe, fit, input_norm
from slabnorm.inputs.fitting import Opened, Progress, StreamCount
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.outputs import paths_of
from slabnorm.inputs.record import Record
from slabnorm.inputs.sources import Stream
from slabnorm.inputs.sources.base import AbsentError, Block, as_block, check_schema, empty
from slabnorm.inputs.sources.memory import dataset_hints, warn_of_sampling
from slabnorm.inputs.sources.open import format_of, known_options
from slabnorm.inputs.split import guard
from slabnorm.text import did_you_mean

ITEMS = ("data sets", "iterable data sets", "batches")  # formats


def fit_contract(
    source: Any,
    keys: Mapping[str, str | Key],
    *,
    split: str | None = None,
    leak: bool = False,
    nan: str = "raise",
    skip_bad: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Contract:
    """Fit the statistics of many keys on the training split, and return them as one contract.

    The statistics of each key are those that `slabnorm.fit` gives for it alone, bit for bit. Items and
    batches are gone through once, however many keys there are; of files, each key's part is read by itself.

    Args:
        source: where the samples come from. One of: a dict of arrays or tensors, a `.npz` file, a Zarr group
            (a key is the name of an array); Parquet, Arrow and CSV files, folders of them, and frames (a key
            is the name of a column, which may be one of lists, as LeRobot has them); a torch Dataset whose
            items are dicts, each of them a sample; a DataLoader or another iterable of dicts, each of them a
            batch. Entries may lie in one another: "observation.state" is item["observation"]["state"].
        keys: by name, a pattern such as "n c -> c", or a Key with scheme, unit, names, role and valid range;
            or "keep" for an entry that passes unchanged, which is not read.
        split: the name of the split that the samples come from, such as "train". Required.
        leak: True takes statistics from held-out data on purpose, with a warning.
        nan: "raise" refuses NaN and null; "omit" leaves them out, and counts them.
        skip_bad: True leaves out files that cannot be read. Otherwise they are errors.
        workers: how many shards of files are counted at once; by default one for every core.
        progress: called after every shard with its size in bytes and that of all (0 if unknown).

    Raises:
        DataError: the data cannot be read, or have no such key.
        LeakageError: no split is named, or it is that of held-out data.
        OptionError: an argument is out of its range.
        PatternError, ShapeError: a pattern is wrong, or does not fit its key.
        StatisticsError: the scale of a feature is out of the range of float64.

    Warns:
        DataWarning: as `fit` does, with the name of the key.

    >>> import torch, slabnorm as sn
    >>> items = [{"state": torch.tensor([float(i), 1.0 - i]), "index": i} for i in range(5)]
    >>> loader = torch.utils.data.DataLoader(items, batch_size=2)
    >>> contract = sn.fit_contract(loader, {"state": "n c -> c", "index": "keep"}, split="train")
    >>> contract["state"].moments.mean
    tensor([ 2., -1.], dtype=torch.float64)
    """
    wanted = _keys_of(keys)
    check_policy(nan)
    counted = {name: key for name, key in wanted.items() if not key.keep}
    if not counted:
        raise OptionError("No key is to be normalised", 'all are "keep"', 'such as {"state": "n c -> c"}')
    origin = tuple(map(os.path.abspath, paths_of(source)))
    options: dict[str, Any] = {"split": split, "leak": leak, "nan": nan}
    if type(source).__module__.partition(".")[0] == "tensordict":
        source = dict(source.items())  # iterating over a TensorDict yields samples
    if _goes_through_items(source):
        if workers is not None:
            raise OptionError(
                "workers= is for files, npz, Zarr groups and frames", f"workers={workers!r:.80}",
                "leave it out: samples of a Dataset or of batches are read in order, in this process",
            )  # fmt: skip
        norms = _fit_items(source, counted, options, progress)
    else:
        options |= {"skip_bad": skip_bad, "workers": workers}
        norms = {name: _fit_alone(source, name, key, options, progress) for name, key in counted.items()}
    contract = Contract({name: (key, norms.get(name)) for name, key in wanted.items()})
    contract.origin = origin
    return contract


def _keys_of(keys: Any) -> dict[str, Key]:
    if not isinstance(keys, Mapping) or not keys:
        raise OptionError(
            "keys must be a dict of what to normalise", type(keys).__name__, 'such as {"state": "n c -> c"}'
        )
    return {name: as_key(key, name) for name, key in keys.items()}


def _goes_through_items(source: Any) -> bool:
    """Whether a source is read item by item or batch by batch, all keys at once."""
    return not isinstance(source, str | os.PathLike) and format_of(source).name in ITEMS


def _fit_alone(
    source: Any, name: str, key: Key, options: dict[str, Any], progress: Progress | None
) -> InputNorm:
    """Fit one key of a source that has its values in one place."""
    source, which = place_of(source, name)
    options = {**options, **which, "progress": progress, **key.sizes}
    with _naming(name):
        return fit(source, key.scheme, key.pattern, **options)


def place_of(source: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """Return what holds the values of a key, and the option of `fit` that names it there.

    Raises:
        DataError: the source is of no known kind, or has no keys.
    """
    known = known_options(source)
    if "columns" in known:
        return source, {"columns": [name]}
    if "key" not in known:
        raise DataError(
            "These data have no keys", source if isinstance(source, str) else type(source).__name__,
            "give a dict, npz, a Zarr group, a table, or items that are dicts; fit() takes one array",
        )  # fmt: skip
    if isinstance(source, Mapping) and name not in source and name in known_names(source, [name]):
        return {name: get(source, name)}, {"key": name}  # it lies in another entry
    return source, {"key": name}


class KeyStream(Stream):
    """One key of a stream of dicts: its name, and its first block, from which its schema is read."""

    def __init__(self, name: str, unit: str, first: Block) -> None:
        self.name, self.unit, self._first = name, unit, first

    def blocks(self) -> Iterator[Block]:
        """Yield the first block."""
        yield self._first


class _Counter:
    """Counts one key of a stream."""

    def __init__(self, name: str, key: Key, options: dict[str, Any]) -> None:
        self.name, self.key, self.options = name, key, options
        self.record: Record | None = None

    def add(self, block: Block, where: str, unit: str, source: str) -> None:
        if self.record is None:
            self._begin(block, f"{source}[{self.name!r}]", unit)
        with _errors_of(self.name):
            check_schema(self._opened.schema, block, self._opened.source.name, where)
            self._count.add(block)

    def _begin(self, block: Block, name: str, unit: str) -> None:
        key = self.key
        with _naming(self.name):
            self._opened = Opened(KeyStream(name, unit, block))
            if self._opened.schema.dtype == "bool":
                warn_of_flags(name)
            self.record = describe(self._opened, key.scheme, key.pattern, key.sizes, **self.options)
        self._counting: Counting = count_as(self._opened, self.record)
        self._count = StreamCount(self._counting, name)

    def norm(self, source: str) -> InputNorm:
        """Return the layer of what was counted."""
        if self.record is None:
            raise empty(source)
        with _naming(self.name):
            tally = self._count.total()
            if tally is None or not tally.samples:
                raise empty(source)
            found = input_norm(self.record, self._counting, tally, self._opened.source)
            warn_of(found)
        return found


def _fit_items(
    source: Any, keys: dict[str, Key], options: dict[str, Any], progress: Progress | None
) -> dict[str, InputNorm]:
    """Fit the keys of items or batches that are dicts, which are gone through once."""
    is_items = isinstance(source, Dataset)
    name, unit = type(source).__name__, "item" if is_items else "batch"
    if isinstance(source, DataLoader):
        warn_of_sampling(source)
    options = {**options, "split": guard(options["split"], dataset_hints(source), options["leak"])}
    counters = [_Counter(key_name, key, options) for key_name, key in keys.items()]
    for number, item in enumerate(_items(source)):
        where = f"{unit} {number} of {name}"
        if not is_mapping(item):
            raise DataError(f"No keys: {where} is no dict", type(item).__name__, "give items that are dicts")
        read = 0
        for counter in counters:
            block = as_block(_value(item, counter.name, where), f"{counter.name!r} of {where}")
            block = block[None] if is_items else block
            counter.add(block, where, unit, name)
            read += block.nbytes
        if progress is not None:
            progress(read, 0)
    return {counter.name: counter.norm(name) for counter in counters}


def _items(source: Any) -> Iterator[Any]:
    if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        if not hasattr(source, "__len__"):
            raise DataError(
                f"A map-style Dataset without a length: {type(source).__name__}", "", "add __len__"
            )
        # Not by iteration: many map-style data sets never raise the IndexError that would end it.
        return (source[number] for number in range(len(source)))
    return iter(source)


def _value(item: Any, name: str, where: str) -> Any:
    try:
        return get(item, name)
    except KeyError:
        names = list(map(str, known_names(item, [name])))
        fix = did_you_mean(name, names) or "name the entries as the items have them"
        raise DataError(
            f"No entry {name_of(name)} in {where}", f"it has {', '.join(names)[:300]}", fix
        ) from None


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Put the name of the key before what is wrong."""
    try:
        yield
    except LeakageError:  # of the data as a whole
        raise
    except SlabError as error:
        fix = error.fix
        if isinstance(error, AbsentError) and fix.endswith("="):  # an option of fit()
            fix = "name the key as the data do"
        raise type(error)(f"Key {name_of(name)}: {error.problem}", error.got, fix) from error


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the name of the key before what is wrong, and before warnings of the data."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _errors_of(name):
            yield
    for warning in caught:
        text: Any = warning.message
        if issubclass(warning.category, DataWarning):
            text = f"key {name_of(name)}: {text}"
        warnings.warn_explicit(text, warning.category, warning.filename, warning.lineno)
