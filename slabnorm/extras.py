"""Packages that slabnorm works without, asked for where one is needed."""

from __future__ import annotations

import importlib
from typing import Any

from slabnorm.errors import ExtraError


def extra(package: str, what: str, install: str) -> Any:
    """Return a package that may not be installed.

    Args:
        package: the name under which it is imported.
        what: what needs it, the subject of a sentence: "a Zarr array".
        install: what `pip install` is to be given: "'slabnorm[zarr]'".

    Raises:
        ExtraError: it cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ExtraError(
            f"{what} needs the package {package}, which cannot be imported",
            str(error),
            f"pip install {install}",
        ) from error
