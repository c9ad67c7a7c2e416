"""Packages that slabnorm works without, asked for where one is needed."""

from __future__ import annotations

import importlib
from typing import Any

from slabnorm.errors import ExtraError


def extra(package: str, what: str, install: str) -> Any:
    """Return a package that may not be installed.

    Args:
        package: the name under which it is imported.
        what: what needs it, the subject of a sentence: "reading Zarr arrays".
        install: what `pip install` is to be given: "'slabnorm[zarr]'".

    Raises:
        ExtraError: it cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except Exception as error:  # a broken package raises anything, as AttributeError of a half-made upgrade
        raise ExtraError(
            f"{what[:1].upper()}{what[1:]} needs the package {package}, which cannot be imported",
            str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}",
            f"pip install {install}",
        ) from error
