"""anemoi: the statistics inside a Zarr data set of anemoi-datasets.

Documented by ecmwf/anemoi-datasets, `stores.py` and `statistics.rst`: arrays `mean`, `stdev`, `minimum` and
`maximum` have a number for each variable; variables are the last axis of the batches. The attribute
`variables` has their names. The statistics come from the dates between `statistics_start_date` and
`statistics_end_date`, by default without the last years; these become the split. Units and counts are not
read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from slabnorm.contracts.formats.found import Found, last_axes, usual_scheme
from slabnorm.contracts.formats.json_file import AGAIN, MOST_KEYS, statistics_of
from slabnorm.contracts.key import Key
from slabnorm.contracts.statistics import Provenance
from slabnorm.errors import DataError, SlabError
from slabnorm.inputs.sources.zarr import ArrayLocation, MissingChunkError, is_zarr_folder, open_array
from slabnorm.text import printable

TITLE = "a Zarr data set of anemoi"
PARTS = {"mean": "mean", "std": "stdev", "min": "minimum", "max": "maximum"}


def recognises(source: Any) -> bool:
    """Whether a source is a folder of Zarr with arrays of statistics."""
    if not isinstance(source, Path) or not is_zarr_folder(str(source)):
        return False
    return all((source / name).is_dir() for name in PARTS.values())


def read(source: Any) -> dict[str, Found]:
    """Return one key, "data", whose features are the variables.

    Raises:
        DataError: the data set is damaged, or holds numbers that no data have.
        ExtraError: zarr is not installed.
    """
    path = Path(source)
    where = printable(path)
    try:
        with open_array(ArrayLocation(where, str(path))) as group:
            attributes = dict(group.attrs)
        parts = {part: _read(path, name) for part, name in PARTS.items()}
    except MissingChunkError as error:
        raise DataError(f"A chunk is missing: {where}", printable(error.key), AGAIN) from error
    except SlabError:
        raise
    except Exception as error:  # zarr and its codecs raise anything for damaged files
        raise DataError(f"Damaged Zarr data set: {where}", printable(error, 300), AGAIN) from error
    statistics = statistics_of(parts, {}, "data", where)
    pattern, sample = last_axes(statistics.shape)
    key = Key(pattern, usual_scheme(statistics), names=_names(attributes, statistics.shape[0]))
    return {"data": Found(key, statistics, sample, Provenance("anemoi", _dates(attributes)))}


def _read(path: Path, name: str) -> np.ndarray:
    """Return an array; raise ValueError unless it has a number for each variable."""
    # Each array by its own location: `open_array` refuses codecs that run code.
    with open_array(ArrayLocation(f"{printable(path)}[{name!r}]", str(path), name), strict=True) as array:
        if len(array.shape) != 1 or array.shape[0] > MOST_KEYS:
            raise ValueError(f"{name} has the shape {array.shape}, not a number for each variable")
        return np.asarray(array[:], dtype=np.float64)


def _names(attributes: dict[str, Any], features: int) -> tuple[str, ...]:
    """Return the names of the variables; () if they are not there."""
    names = attributes.get("variables")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names) if len(names) == len(set(names)) == features else ()


def _dates(attributes: dict[str, Any]) -> str:
    dates: list[Any] = [attributes.get(f"statistics_{end}_date") for end in ("start", "end")]
    return " to ".join(dates) if all(isinstance(date, str) and len(date) < 100 for date in dates) else ""
