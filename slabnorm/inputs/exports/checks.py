"""What all exports ask first: real numbers, names for them, and the package that they are for."""

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
        raise StatisticsError(
            "an export writes numbers", "statistics on the meta device", "load their state_dict first"
        )


def batch_axes(norm: InputNorm) -> list[Item]:
    """Return the names in every axis of a batch of samples like the fitted ones, `...` opened."""
    left = norm.pattern.left
    dots = 1 + len(norm.record.sample) - len(left) + 1
    return [item for item in left for _ in range(dots if item == (ELLIPSIS,) else 1)]


def feature_names(names: Any, places: list[str]) -> list[str]:
    """Return one name per feature: those given, or else their places.

    Raises:
        OptionError: not one text per feature, or one twice.
    """
    if names is None:
        return places
    given = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]
    if len(given) != len(places) or not all(isinstance(name, str) for name in given):
        raise OptionError(
            f"names are one text per feature, here {len(places)}", f"{len(given)}: {given!r:.200}"
        )
    if len(set(given)) < len(given):
        raise OptionError("every feature has a name of its own", f"{given!r:.200}")
    return given


def plain_json(plain: Any) -> str:
    """Return canonical JSON.

    Raises:
        OptionError: a scheme of one's own has arguments that JSON does not have.
    """
    try:
        return record.write(plain)
    except (TypeError, ValueError) as error:
        raise OptionError(
            "a scheme's arguments are numbers, text, lists and None", f"{error}", "change the scheme's fields"
        ) from error
