"""Which reader a path or URL gets: by its ending, and a folder by the first file in it that says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from slabnorm.errors import DataError, OptionError
from slabnorm.extras import extra
from slabnorm.inputs.sources import image_folders, tars
from slabnorm.inputs.sources.base import Source, Stream
from slabnorm.inputs.sources.files import KINDS, is_table, kind_of, local_path
from slabnorm.inputs.sources.images import SUFFIXES, Form, is_image
from slabnorm.inputs.sources.npy import NpySource, NpzSource
from slabnorm.inputs.sources.zarr import ZarrSource, is_zarr_path


def open_path(
    path: str,
    key: str | None,
    columns: Sequence[str] | None,
    missing_chunks: str,
    convert: str | None,
    weights: str | None = None,
    delimiter: str = ",",
) -> Source | Stream:
    """Return the source of a path or URL.

    Raises:
        DataError: there is no such file, or it is of no known kind.
        OptionError: an option that this kind of data does not have.
        ExtraError: it is read by a package that is not installed.
    """
    path = local_path(path)
    kind = _kind(path)
    _check_options(path, kind, key, columns, missing_chunks, convert)
    if weights is not None and kind != "table":
        raise DataError(
            "weights= names a column of a table, or is an array of one weight per sample",
            f"weights={weights!r:.200} for {path}", "give an array",
        )  # fmt: skip
    if delimiter != "," and kind != "table":
        raise OptionError("delimiter= is for CSV files", f"{delimiter!r:.50} for {path}", "leave it out")
    if kind == "zarr":
        return ZarrSource(path, key, missing_chunks)
    if kind == "npz":
        return NpzSource(Path(path), key)
    if kind == "npy":
        return NpySource(Path(path))
    form = Form.of(convert)
    if kind in ("images", "tar"):
        extra("PIL", "reading images", "'slabnorm[images]'")
    if kind == "images":
        return image_folders.open_folder(Path(path), form)
    if kind == "tar":
        paths = tars.expand(Path(path)) if tars.is_pattern(Path(path)) else [Path(path)]
        return tars.open_tars(paths, path, form)
    extra("pyarrow", "reading tables", "'slabnorm[tables]'")
    from slabnorm.inputs.sources.tables import TableSource

    return TableSource(path, columns, weights, delimiter)


def _kind(path: str) -> str:
    """Return "zarr", "npz", "npy", "images", "tar" or "table"."""
    if not path:  # which Path takes for the folder that one is in
        raise DataError("a data file exists", "no file: the path is empty", "give a path")
    if is_zarr_path(path):
        _exists(path)
        return "zarr"
    if tars.is_tar(os.path.basename(path)) and "://" not in path:
        if not tars.is_pattern(Path(path)):
            _exists(path)
        return "tar"
    if "://" not in path and not kind_of(path) and _exists(path, globs=True):
        if os.path.isdir(path):
            return _kind_of_folder(path)
        ending = os.path.splitext(path)[1].lower()
        if ending in (".npz", ".npy") and os.path.isfile(path):
            return ending[1:]
        if not os.path.isfile(path) and os.path.exists(path):
            raise DataError("a path leads to a file or a folder", f"{path} is neither")
    if is_table(path):
        return "table"
    raise DataError(
        f"a data file ends in .npy, .npz, .zarr, .zarr.zip, .tar, .tar.gz, .tgz, {', '.join(KINDS)};"
        " images lie in a folder",
        path,
        "convert it, or give an iterable of batches read from it",
    )


def _kind_of_folder(folder: str) -> str:
    """Return what the first file, in any folder below, that says what it is, is."""
    # What begins with _ or a dot is no data, as _SUCCESS and .DS_Store.
    for _, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        for name in sorted(name for name in files if not name.startswith((".", "_"))):
            if is_image(name) or tars.is_tar(name):
                return "images"
            if kind_of(name):
                return "table"
    raise DataError(
        f"a folder of data holds images ({', '.join(sorted(SUFFIXES))}), tars of them, or tables"
        f" ({', '.join(KINDS)})",
        f"none in {folder}",
        "check the path; files and folders whose names begin with . or _ are not read",
    )


def _exists(path: str, globs: bool = False) -> bool:
    try:
        exists = "://" in path or bool(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        exists = False
    except (OSError, ValueError) as error:  # such as a name that no file system takes
        why = getattr(error, "strerror", None) or str(error)
        raise DataError("a data file exists", f"{path:.200}: {why}", "check the path") from error
    if not exists and not (globs and is_table(path)):
        raise DataError("a data file exists", f"no file {path:.200}", "check the path")
    return exists


def _check_options(
    path: str,
    kind: str,
    key: str | None,
    columns: Sequence[str] | None,
    missing_chunks: str,
    convert: str | None,
) -> None:
    if key is not None and kind not in ("zarr", "npz"):
        raise DataError("key= names an array of several, or an entry of a dict", f"key={key!r} for {path}")
    if columns is not None and kind != "table":
        raise DataError("columns= names columns of a table", f"columns={columns!r:.200} for {path}")
    if missing_chunks == "fill" and kind != "zarr":
        raise OptionError('missing_chunks="fill" is for Zarr arrays', path, "leave it out")
    if convert is not None and kind not in ("images", "tar"):
        raise OptionError("convert= is for folders and tars of images", f"convert={convert!r} for {path}")
