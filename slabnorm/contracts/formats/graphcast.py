"""GraphCast and GenCast: NetCDF files of means and standard deviations, by variable and pressure level.

Documented by google-deepmind/graphcast, `normalization.py`: `mean_by_level.nc` and `stddev_by_level.nc` hold
one number for a variable at the surface, and one for each level of another. In batches level, latitude and
longitude, or the last two alone, are the last axes. The unit of a variable is its attribute "units". The
files say neither extremes nor counts, nor the years that they come from.

What a model predicts is scaled by a third file, of the differences between steps, which is not read.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slabnorm.contracts.formats.found import Found, usual_scheme
from slabnorm.contracts.formats.json_file import AGAIN, LARGEST, read_bytes, statistics_of, unusable
from slabnorm.contracts.key import Key, name_of
from slabnorm.contracts.statistics import Provenance
from slabnorm.errors import DataError, SlabError
from slabnorm.extras import extra
from slabnorm.text import listing, printable

TITLE = "GraphCast's mean_by_level.nc"
MEAN, DEVIATION = "mean_by_level", "stddev_by_level"
LARGEST_CLASSIC = (
    1 << 20
)  # bytes of NetCDF 3, whose variables may all be the same bytes; real files have 10 kB
PACKED = ("scale_factor", "add_offset")


class Variable(NamedTuple):
    """A variable of a NetCDF file."""

    axes: tuple[str, ...]
    values: np.ndarray
    attributes: dict[str, Any]


def recognises(source: Any) -> bool:
    """Whether a source is one of the two files, or a folder that has them."""
    return isinstance(source, Path) and _mean_file(source) is not None


def _mean_file(path: Path) -> Path | None:
    """Return the file of means: the one that is meant, or the only one of a folder."""
    if path.is_dir():
        found = sorted(path.glob(f"*{MEAN}*.nc"))
        return found[0] if len(found) == 1 else None
    if path.suffix != ".nc" or "diffs" in path.name:
        return None
    if DEVIATION in path.name:
        return path.with_name(path.name.replace(DEVIATION, MEAN))
    return path if MEAN in path.name else None


def read(source: Any) -> dict[str, Found]:
    """Return a key for each variable; those with levels have a feature for each.

    Raises:
        DataError: a file is missing or damaged, or holds numbers that no data have.
        ExtraError: the package that reads such a file is not installed: scipy, or h5py for NetCDF 4.
    """
    path = Path(source)
    mean_file = _mean_file(path)
    if mean_file is None:
        fix = f"name the folder of one *{MEAN}*.nc and one *{DEVIATION}*.nc"
        raise DataError(f"No file of means: {printable(path)}", "", fix)
    other = mean_file.with_name(mean_file.name.replace(MEAN, DEVIATION))
    means, deviations = _variables(mean_file), _variables(other)
    if odd := sorted(_without_axes(means).keys() ^ _without_axes(deviations).keys()):
        raise DataError(
            f"Variables of only one of {printable(mean_file.name)} and {printable(other.name)}",
            listing(list(map(name_of, odd[:10]))), AGAIN,
        )  # fmt: skip
    where = printable(mean_file)
    return {name: _found(name, means, deviations[name], where) for name in _without_axes(means)}


def _without_axes(variables: dict[str, Variable]) -> dict[str, Variable]:
    """Return the variables that are not the coordinates along an axis."""
    return {name: each for name, each in variables.items() if each.axes != (name,)}


def _found(name: str, means: dict[str, Variable], deviation: Variable, where: str) -> Found:
    mean = means[name]
    if mean.axes != deviation.axes or len(mean.axes) > 1:
        raise unusable(name, where, f"axes {mean.axes} and {deviation.axes}, where level, or none, belongs")
    packed = [part for part in PACKED if part in mean.attributes or part in deviation.attributes]
    if packed:
        raise unusable(name, where, f"packed numbers, with the attribute {packed[0]}")
    statistics = statistics_of({"mean": mean.values, "std": deviation.values}, {}, name, where)
    unit = mean.attributes.get("units", "")
    names: tuple[str, ...] = ()
    if mean.axes and mean.axes[0] in means:
        levels = [f"{level:g}" for level in means[mean.axes[0]].values.tolist()]
        names = tuple(levels) if len(set(levels)) == len(levels) else ()
    pattern = "n ... level lat lon -> level" if mean.axes else "n ... lat lon ->"
    sample = (*statistics.shape, None, None)
    key = Key(pattern, usual_scheme(statistics), unit if isinstance(unit, str) else "", names)
    return Found(key, statistics, sample, Provenance("GraphCast"))


def _variables(path: Path) -> dict[str, Variable]:
    """Return the variables of numbers of a NetCDF file."""
    content, where = read_bytes(path), printable(path)
    try:
        if content.startswith((b"CDF\x01", b"CDF\x02")):
            return _classic(read_bytes(path, LARGEST_CLASSIC))
        if content.startswith(b"\x89HDF"):
            return _hdf(content)
    except SlabError:
        raise
    except Exception as error:  # these libraries raise anything for damaged files
        raise DataError(f"Damaged NetCDF file: {where}", printable(error, 300), AGAIN) from error
    raise DataError(f"Not a NetCDF file: {where}", f"it begins with {content[:4]!r}", AGAIN)


def _classic(content: bytes) -> dict[str, Variable]:
    """Return the variables of NetCDF 3."""
    scipy = extra("scipy.io", "reading NetCDF files", "'slabnorm[study]'")
    with scipy.netcdf_file(io.BytesIO(content), mmap=False) as file:
        found = {name: each for name, each in file.variables.items() if each.data.dtype.kind in "iuf"}
        return {name: _variable(each.dimensions, each.data, each._attributes) for name, each in found.items()}


def _hdf(content: bytes) -> dict[str, Variable]:
    """Return the variables of NetCDF 4, which is HDF5."""
    h5py = extra("h5py", "reading NetCDF 4 files", "h5py")
    found, left = {}, LARGEST
    with h5py.File(io.BytesIO(content)) as file:
        for name in file:
            # Links to other files, and arrays whose values lie in them, are no part of this one.
            each = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
            if not isinstance(each, h5py.Dataset) or each.dtype.kind not in "iuf":
                continue
            left -= each.size * 8  # as float64; numbers that were never written take no byte of the file
            if each.external or each.is_virtual or left < 0:
                raise ValueError(f"{name} lies in another file, or there are more than {LARGEST:,} bytes")
            axes = tuple(axis[0].name.strip("/") if len(axis) else "" for axis in each.dims)
            axes = (name,) if each.attrs.get("CLASS") == b"DIMENSION_SCALE" else axes
            found[name] = _variable(axes, each[()], each.attrs)
    return found


def _variable(axes: tuple[str, ...], values: Any, attributes: Mapping[str, Any]) -> Variable:
    read = {name: attributes[name] for name in (*PACKED, "units") if name in attributes}
    texts = {k: v.decode(errors="replace") if isinstance(v, bytes) else v for k, v in read.items()}
    return Variable(axes, np.asarray(values, dtype=np.float64), texts)
