"""FourCastNet and Makani: `global_means.npy` and `global_stds.npy`.

Documented by NVlabs/FourCastNet and NVIDIA/makani: arrays of the shape (1, c, 1, 1), with a number for each
channel of batches (n, ..., c, h, w). The names of the channels stand in the model's `metadata.json` or
configuration. The files say neither extremes nor counts, nor the years that they come from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from slabnorm.contracts.formats.found import Found, last_axes, usual_scheme
from slabnorm.contracts.formats.json_file import AGAIN, LARGEST, begins, statistics_of
from slabnorm.contracts.key import Key
from slabnorm.contracts.statistics import Provenance
from slabnorm.errors import DataError
from slabnorm.inputs.sources.npy import read_npy
from slabnorm.text import printable

TITLE = "FourCastNet's global_means.npy"
MEANS, DEVIATIONS = "global_means.npy", "global_stds.npy"


def recognises(source: Any) -> bool:
    """Whether a source is one of the two files, or a folder that has them."""
    if not isinstance(source, Path):
        return False
    return (source / MEANS).is_file() if source.is_dir() else source.name in (MEANS, DEVIATIONS)


def read(source: Any) -> dict[str, Found]:
    """Return one key, "x", whose features are the channels.

    Raises:
        DataError: a file is missing or damaged, or holds numbers that no data have.
    """
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    means, deviations = _channels(folder / MEANS), _channels(folder / DEVIATIONS)
    statistics = statistics_of({"mean": means, "std": deviations}, {}, "x", printable(folder))
    pattern, sample = last_axes(statistics.shape)
    return {"x": Found(Key(pattern, usual_scheme(statistics)), statistics, sample, Provenance("FourCastNet"))}


def _channels(path: Path) -> np.ndarray:
    """Return the numbers of a file in the shape (c, 1, 1)."""
    where = printable(path)
    if not begins(path):
        raise DataError(f"No such file, or an empty one: {where}", "", f"it belongs beside {MEANS}")
    if path.stat().st_size > LARGEST:
        raise DataError(f"Too large for a file of statistics: {where}", "", "check that it is the right file")
    values = read_npy(path)
    if values.size != max(values.shape, default=0):
        raise DataError(f"Not a number for each channel: {where}", f"shape {values.shape}", AGAIN)
    return values.reshape(-1, 1, 1)
