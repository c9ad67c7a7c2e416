"""Checks that several exports share: of the numbers, the names of features, and JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from slabnorm.errors import OptionError, StatisticsError
from slabnorm.inputs import record
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.notation import ELLIPSIS, Item


def check_numbers(norm: InputNorm) -> None:
    """Raise StatisticsError for statistics without values."""
    if norm.scale.is_meta:
        problem = "The statistics have no values, because they are on the meta device"
        raise StatisticsError(problem, "", "load their state_dict first")


def batch_axes(norm: InputNorm) -> list[Item]:
    """Return the names in every axis of a batch, with `...` replaced by as many axes as it stands for."""
    left = norm.pattern.left
    dots = 1 + len(norm.record.sample) - len(left) + 1
    return [item for item in left for _ in range(dots if item == (ELLIPSIS,) else 1)]


def feature_names(names: Any, places: list[str]) -> list[str]:
    """Return one name for each feature: the given names, or else the places of the features.

    Raises:
        OptionError: there is not one text for each feature, or a name is given twice.
    """
    if names is None:
        return places
    given = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]
    if len(given) != len(places) or not all(isinstance(name, str) for name in given):
        problem = f"names must be one text for each of the {len(places)} features"
        raise OptionError(problem, f"{len(given)}: {given!r:.200}", "give a list with a name for each")
    if len(set(given)) < len(given):
        raise OptionError("names must all be different", f"{given!r:.200}", "give each feature another name")
    return given


def plain_json(plain: Any) -> str:
    """Return canonical JSON.

    Raises:
        OptionError: a scheme of your own has arguments that JSON cannot hold.
    """
    try:
        return record.write(plain)
    except (TypeError, ValueError) as error:
        problem = "The arguments of the scheme cannot be written as JSON"
        raise OptionError(problem, f"{error}", "use numbers, text, lists and None in its fields") from error
