"""Objects of other packages: recognised by the names of their classes, read from their attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from slabnorm.contracts.key import name_of
from slabnorm.contracts.statistics import Statistics
from slabnorm.errors import DataError, SlabError
from slabnorm.inputs.schemes import first_features
from slabnorm.text import printable


def class_of(source: Any) -> str:
    """Return where the class of an object is defined, as in "sklearn.preprocessing._data.StandardScaler".

    The package is not imported, and no method or attribute of the object is looked at.
    """
    kind = type(source)
    return f"{kind.__module__}.{kind.__qualname__}"


def attribute(source: Any, name: str, key: str, fix: str = "") -> Any:
    """Return an attribute of an object, or an entry of a dict of attributes.

    Raises:
        DataError: it has none of that name, or None.
    """
    found = source.get(name) if isinstance(source, dict) else getattr(source, name, None)
    if found is None:
        what = "settings" if isinstance(source, dict) else type(source).__name__
        raise unusable(key, f"the {printable(what)} has no {name}", fix)
    return found


def numbers(value: Any, what: str, key: str) -> Tensor:
    """Return finite numbers as a float64 tensor.

    Args:
        value: a number, an array, a tensor, or lists of numbers of equal length.
        what: what they are, for errors: "mean".
        key: the key of the contract that they belong to, for errors.

    Raises:
        DataError: they are something else, or not finite.
    """
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise unusable(key, f"its {what} is no array: {printable(error)}") from error
    if array.dtype.kind not in "iuf" or not array.size:
        raise unusable(key, f"its {what} has {array.size} values of dtype {printable(array.dtype)}")
    found = torch.from_numpy(array.astype(np.float64))
    if not bool(found.isfinite().all()):
        raise unusable(key, f"its {what} is not finite at {first_features(~found.isfinite())}")
    return found


def root(variance: Tensor, key: str) -> Tensor:
    """Return the standard deviation that a variance stands for.

    Raises:
        DataError: a variance is negative.
    """
    if bool((variance < 0).any()):
        raise unusable(key, f"its variance is negative at {first_features(variance < 0)}")
    return variance.sqrt()


def statistics(key: str, **parts: Any) -> Statistics:
    """Return the statistics of a key, from numbers by the name of the part.

    Raises:
        DataError: they differ in shape, or are numbers that no data have.
    """
    try:
        read: dict[str, Any] = {name: numbers(value, name, key) for name, value in parts.items()}
        return Statistics(**read)
    except DataError:
        raise
    except SlabError as error:
        raise unusable(key, f"{error.problem}: {error.got}") from error


def unusable(key: str, why: str, fix: str = "") -> DataError:
    """Return the error for statistics that cannot be used."""
    return DataError(f"Statistics of key {name_of(key)} that cannot be used", why, fix or "fit the data")
