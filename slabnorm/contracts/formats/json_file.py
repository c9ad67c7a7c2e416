"""JSON files of other programs: read with limits, and with an error that names the file and the key."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slabnorm.contracts.key import name_of
from slabnorm.contracts.statistics import Statistics
from slabnorm.errors import DataError, SlabError
from slabnorm.files import write_atomically
from slabnorm.text import printable

LARGEST = 64 << 20  # bytes of a file: as Python's objects it takes about ten times as much memory
MOST_KEYS = 10_000  # each becomes a layer, which takes milliseconds
MOST_AXES = 6
FIRST_BYTES = 1 << 16
AGAIN = "write the file again, or copy it again from where it is intact"


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """Return the content of a file.

    Raises:
        DataError: it is a folder or a device, is larger than `largest` bytes, or cannot be read.
    """
    shown = printable(path)
    try:
        if not path.is_file():
            raise DataError(f"Not a file: {shown}", "a folder or a device", "name a file of statistics")
        size = path.stat().st_size
        if size > largest:
            raise DataError(
                f"Too large for a file of statistics: {shown}", f"{size:,} bytes, more than {largest:,}",
                "check that it is the right file",
            )  # fmt: skip
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {shown}", error.strerror or str(error), "check its rights") from error


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, in UTF-8, UTF-16 or UTF-32, with a byte order mark or without one.

    NaN and infinity are read as such, so that whoever uses a number can say which key it belongs to.

    Raises:
        DataError: it cannot be read, is larger than `LARGEST`, is not JSON, or has a key twice.
    """
    return parse(read_bytes(path), printable(path))


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        DataError: as `read_json` and `object_of` have it.
    """
    return object_of(read_json(path), "What it holds", printable(path))


@contextmanager
def in_file(where: str) -> Iterator[None]:
    """Put the name of a file behind what is wrong with what it holds."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{error.problem}: {where}", error.got, error.fix) from error


def parse(content: bytes, where: str) -> Any:
    """Return the value that JSON text stands for.

    Raises:
        DataError: it is not JSON, is nested too deeply, or has a key twice.
    """
    try:
        return json.loads(content.decode(json.detect_encoding(content)), object_pairs_hook=_pairs)
    except (ValueError, RecursionError) as error:
        raise DataError(f"Damaged JSON: {where}", printable(error), AGAIN) from error


def _pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(found)
    if len(whole) < len(found):
        twice = [key for key, times in Counter(key for key, _ in found).items() if times > 1]
        raise ValueError(f"it has the key {name_of(twice[0])} twice")
    return whole


def object_of(value: Any, what: str, where: str) -> dict[str, Any]:
    """Return a JSON value that has to be an object with at most `MOST_KEYS` entries.

    Raises:
        DataError: it is not.
    """
    if not isinstance(value, dict):
        raise DataError(f"{what} is no JSON object: {where}", f"{type(value).__name__}", AGAIN)
    if len(value) > MOST_KEYS:
        raise DataError(
            f"Too many entries: {where}",
            f"{len(value):,}, more than {MOST_KEYS:,}",
            "check that it is the right file",
        )
    return value


def numbers(value: Any, flags: bool = False) -> Tensor:
    """Return a number, or lists of numbers of equal length, as a float64 tensor.

    Args:
        value: as JSON has it.
        flags: whether true and false count as 1 and 0.

    Raises:
        ValueError: it is something else.
    """
    array = np.asarray(value)  # raises ValueError for lists of unequal length
    if array.dtype.kind not in ("biuf" if flags else "iuf") or not array.size:
        raise ValueError(f"{printable(repr(value), 80)}, where numbers belong")
    return torch.from_numpy(array.astype(np.float64))


def statistics_of(
    parts: Mapping[str, Any], quantiles: Mapping[float, Any], key: str, where: str, flags: bool = False
) -> Statistics:
    """Return the statistics of a key.

    Args:
        parts: as JSON has them, by the name of the part: mean, std, min, max, count.
        quantiles: as JSON has them, by rank.
        key, where: for errors, the key and the file.
        flags: whether true and false count as 1 and 0.

    Raises:
        DataError: they are no numbers, differ in shape, or are numbers that no data have.
    """
    try:
        read: dict[str, Any] = {name: numbers(value, flags) for name, value in parts.items()}
        found = Statistics(**read, quantiles={rank: numbers(q, flags) for rank, q in quantiles.items()})
        if len(found.shape) > MOST_AXES:
            raise ValueError(f"they have {len(found.shape)} axes, more than {MOST_AXES}")
        return found
    except SlabError as error:
        raise unusable(key, where, f"{error.problem}: {error.got}") from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise unusable(key, where, printable(error)) from error


def unusable(key: str, where: str, why: str) -> DataError:
    """Return the error for a key whose statistics cannot be used."""
    return DataError(f"Statistics of key {name_of(key)} that cannot be used: {where}", why, AGAIN)


def begins(path: Path) -> bytes:
    """Return the first bytes of a file; b"" of what is no file, or cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(FIRST_BYTES)
    except OSError:
        return b""


def write_json(path: Path, plain: Any) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        OptionError: it cannot be written.
    """
    write_atomically(path, json.dumps(plain, indent=4, allow_nan=False) + "\n")
