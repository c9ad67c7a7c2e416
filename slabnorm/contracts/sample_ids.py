"""Ids of samples, as 64-bit integers: by which a stream knows what it has seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from slabnorm.errors import DtypeError, ShapeError


def keys_of(ids: Any, samples: int) -> np.ndarray:
    """Return ids as int64, one a sample: integers as they are, strings as hashes.

    Raises:
        DtypeError: an id is neither an integer nor a string.
        ShapeError: there are more or fewer than samples.
    """
    fix = "give a list or tensor of integers, or a list of strings, one for each sample"
    unordered = isinstance(ids, str | bytes | Set | Mapping)  # whose order says nothing of samples
    if unordered or not (hasattr(ids, "tolist") or isinstance(ids, Iterable)):
        raise DtypeError("once must be ids, one for each sample", type(ids).__name__, fix)
    given = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if not isinstance(given, list) or len(given) != samples:
        count = len(given) if isinstance(given, list) else 1
        raise ShapeError("once must be one id for each sample", f"{count} ids for {samples} samples", fix)
    keys = np.empty(samples, np.int64)
    for at, one in enumerate(given):
        if isinstance(one, str):
            text = one.encode(errors="surrogatepass")  # names of files may hold bytes that are no text
            found = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        elif isinstance(one, int | np.integer) and not isinstance(one, bool) and -(2**63) <= one < 2**64:
            found = int(one)
        else:
            raise DtypeError("once must be integers of 64 bits, or strings", f"{one!r:.60}", fix)
        keys[at] = found if found < 2**63 else found - 2**64
    return keys


def among(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return which keys are among sorted ones."""
    if not len(known):
        return np.zeros(len(keys), bool)
    at = np.searchsorted(known, keys).clip(max=len(known) - 1)
    return known[at] == keys
