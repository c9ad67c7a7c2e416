"""Packages that slabnorm works without, asked for where one is needed."""

from __future__ import annotations

import importlib
from typing import Any

from slabnorm.errors import ExtraError


def extra(package: str, what: str, install: str) -> Any:
    """Return a package.

    Raises:
        ExtraError: it is not installed; says `what` needs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ExtraError(
            f"{what} wants the package {package}", str(error), f"pip install {install}"
        ) from error
