"""Which source reads which kind of data: one table of formats, with their endings and their options.

To read another format, write a source in a file of its own, and add a row to FORMATS.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset, IterableDataset

from slabnorm.errors import DataError, DataWarning, OptionError
from slabnorm.extras import extra
from slabnorm.inputs.sources import idx, images, tars
from slabnorm.inputs.sources.base import Source, Stream, pick
from slabnorm.inputs.sources.files import (
    HIDDEN,
    HIDDEN_FROM_TABLES,
    drop_special_files,
    is_glob,
    listed,
    local_path,
    walk,
)
from slabnorm.inputs.sources.memory import (
    ArraySource,
    BatchSource,
    DatasetSource,
    IterableSource,
    is_array,
    is_frame,
)
from slabnorm.inputs.sources.npy import NpySource, NpzSource, open_npz
from slabnorm.inputs.sources.zarr import ZarrSource, is_zarr, is_zarr_folder
from slabnorm.inputs.split import Hint, held_out
from slabnorm.text import listing, printable


class Format(NamedTuple):
    """A kind of data.

    Attributes:
        name: how messages call it, in the plural.
        options: of `open_source` that it has.
        open: returns its source, given the data and its options.
        endings: of the names of its files, in lower case; of data in memory none.
        holds: of data in memory, whether a value is of this kind.
        needs: the package that reads it, and the extra that brings that.
        urls: whether it is read from URLs.
        many: whether a folder of such files is one data set.
    """

    name: str
    options: tuple[str, ...]
    open: Callable[..., Source | Stream]
    endings: tuple[str, ...] = ()
    holds: Callable[[Any], bool] = lambda _: False
    needs: tuple[str, str] | None = None
    urls: bool = False
    many: bool = False


def open_source(
    source: Any,
    key: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    missing_chunks: str = "raise",
    convert: str | None = None,
    weights: str | None = None,
    delimiter: str = ",",
) -> Source | Stream:
    """Return the Source that reads this kind of data.

    Args:
        source: a path or URL, an opened npz, Zarr array or group, an array or tensor, a frame
            (pandas, polars, pyarrow), a torch Dataset (items are samples), or any other iterable, such as a
            DataLoader (items are batches); or a Source, which is returned.
        key: the array of an npz or a Zarr group, or the entry of dict items, that is x.
        columns: of a table, the names of those that are counted.
        missing_chunks: "raise", or "fill": a chunk that a Zarr array does not have is its fill value.
        convert: the mode that images are converted to.
        weights: of a table, the name of the column of weights.
        delimiter: of CSV, what stands between values.

    Raises:
        DataError: it is of no known kind, or the file cannot be read.
        OptionError: an option that this kind of data does not have.
        ExtraError: it is read by a package that is not installed.
    """
    options = {
        "key": key,
        "columns": check_names(columns),
        "missing_chunks": missing_chunks,
        "convert": convert,
        "weights": weights,
        "delimiter": check_delimiter(delimiter),
    }
    if isinstance(source, Source | Stream):
        for name, value in options.items():
            if value != _DEFAULTS.get(name):
                raise OptionError(f"{name}= is no option of an opened source", repr(value), "leave it out")
        return source
    if isinstance(source, str | os.PathLike):
        source = local_path(os.fspath(source))
    found = check_options(source, options)
    if found.needs:
        package, brings = found.needs
        extra(package, f"reading {found.name}", brings)
    return found.open(source, **{name: options[name] for name in found.options})


def check_options(source: Any, options: dict[str, Any]) -> Format:
    """Return what kind of data a path, a URL or a value is, after a look at its options.

    Raises:
        OptionError: an option has a value that cannot be, or the data have no such option.
        DataError: as `format_of` has it.
    """
    for name, values in (("missing_chunks", ("raise", "fill")), ("convert", (None, *images.CONVERT))):
        if name in options and options[name] not in values:
            choices = listing([repr(value) for value in values if value], "or")
            raise OptionError(f"{name} must be {choices}", repr(options[name]))
    found = format_of(source)
    _check_options(found, options, source)
    return found


def known_options(source: Any) -> tuple[str, ...]:
    """Return the options that a kind of data has."""
    if isinstance(source, Source | Stream):
        return ()
    return format_of(
        local_path(os.fspath(source)) if isinstance(source, str | os.PathLike) else source
    ).options


def format_of(source: Any) -> Format:
    """Return what kind of data a path, a URL or a value is.

    Raises:
        DataError: of no known kind; or there is no such file.
    """
    if isinstance(source, str):
        return _format_of_url(source) if "://" in source else _format_of_path(source)
    for known in FORMATS:
        if known.holds(source):
            return known
    raise DataError(
        f"No known kind of data: {type(source).__name__}",
        fix="give a path, an array, a tensor, a table, a Dataset, or an iterable of batches",
    )


def format_of_name(name: str) -> Format | None:
    """Return the format of a file by the end of its name; None of one that no format has."""
    name = name.lower()
    return next((known for known in FORMATS if name.endswith(known.endings)), None)


def is_table(name: str) -> bool:
    """Whether a file of this name is part of a table."""
    found = format_of_name(name)
    return found is not None and found.open is _open_table


def is_read_in_folders(name: str) -> bool:
    """Whether a file of this name is read where its folder is."""
    found = format_of_name(name)
    return found is not None and found.many and not name.startswith(".")


def is_read_once(path: str, key: str | None = None) -> bool:
    """Whether what a path names is read in one go, from the first sample on, as compressed files are.

    Raises:
        DataError: of no known kind; or there is no such file.
    """
    path = local_path(path)
    found = format_of(path)
    return found is NPZ or (found in (IDX, IDX_FILE) and idx.is_compressed(path, key))


def _format_of_url(url: str) -> Format:
    found = format_of_name(url.rstrip("/"))
    if found and not found.urls:
        problem = f"{found.name[:1].upper()}{found.name[1:]} are not read from URLs: {url:.200}"
        raise DataError(problem, fix="fetch the file, and give its path")
    return found or TABLES


def _format_of_path(path: str) -> Format:
    if not path:  # which the system takes for the folder that one is in
        raise DataError("The path of the data is empty", fix="give a path")
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except (OSError, ValueError) as error:  # such as a name that no file system takes
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(f"Cannot read {path:.200}", why, "check the path") from error
    found = format_of_name(path.rstrip("/"))
    if mode is None:
        if found is TARS and tars.is_pattern(path):
            return TARS
        if is_glob(path) and (found is None or is_table(path)):
            return found or TABLES
        raise DataError(f"No such data file: {path:.200}", fix="check the path")
    if stat.S_ISDIR(mode):
        return ZARR if found is ZARR or is_zarr_folder(path) else _format_of_folder(path)
    if not stat.S_ISREG(mode):
        raise DataError(f"Neither a file nor a folder: {path}", fix="give a regular file")
    if found is IMAGES:
        raise DataError(f"A single image is no data set: {path}", fix="give the folder that it is in")
    if found is None:
        raise DataError(
            f"No known kind of data file: {path}",
            f"known are {_endings(known for known in FORMATS if known is not IMAGES)}, and folders of images",
            "convert it, or give an iterable of batches read from it",
        )
    return found


def _format_of_folder(folder: str) -> Format:
    """Return the format of the first file, in any folder below, that is of one."""
    for file in walk(folder, HIDDEN_FROM_TABLES, []):
        found = format_of_name(file.name)
        if found and found.many:
            return IMAGES if found is TARS else TABLES if found.open is _open_table else found
    raise DataError(
        f"No data in the folder {printable(folder)}",
        f"nothing that ends in {_endings(known for known in FORMATS if known.many)}",
        "check the path; files and folders whose names begin with . or _ are not read",
    )


def _endings(formats: Iterable[Format]) -> str:
    return ", ".join(ending for known in formats for ending in known.endings)


_DEFAULTS = {"missing_chunks": "raise", "delimiter": ","}  # of the others None


def _check_options(found: Format, options: dict[str, Any], source: Any) -> None:
    """Raise OptionError for an option that a kind of data does not have."""
    for name, value in options.items():
        if value == _DEFAULTS.get(name) or name in found.options:
            continue
        where = f" for {source:.200}" if isinstance(source, str) else ""
        others = [known.name for known in FORMATS if name in known.options]
        fix = "give an array of one weight per sample" if name == "weights" else "leave it out"
        raise OptionError(
            f"{name}= is no option of {found.name}",
            f"{name}={value!r:.200}{where}",
            f"{fix}; {name}= is for {listing(others)}",
        )


def check_delimiter(delimiter: Any) -> str:
    """Return what stands between the values of a text file.

    Raises:
        OptionError: it is no single character of ASCII, or one that means something else there.
    """
    if type(delimiter) is str and len(delimiter) == 1 and delimiter.isascii() and delimiter not in '"\r\n\0':
        return delimiter
    raise OptionError(
        "delimiter must be one character of ASCII, neither a quote nor the end of a line",
        f"{delimiter!r:.50}",
        'as delimiter=";", or a tab',
    )


def check_names(columns: Any) -> tuple[str, ...] | None:
    """Return the names given as columns=.

    Raises:
        OptionError: they are no list of texts, or one is there twice.
    """
    if columns is None:
        return None
    names = tuple(columns) if isinstance(columns, Iterable) and not isinstance(columns, str) else ()
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise OptionError(
            "columns must be a list of names, each once", f"{columns!r:.200}", 'as columns=["a", "b"]'
        )
    return names


# What opens each kind of data, where it is more than to make its source.


def _open_npy(path: str) -> Source:
    return NpySource(Path(path))


def _open_npz(path: str, key: str | None) -> Stream:
    return NpzSource(Path(path), key)


def _open_archive(archive: Any, key: str | None) -> Source:
    name, array = open_npz(archive, key)
    return ArraySource(array, f"npz[{name!r}]", _name_hints("array", name))


def _open_table(path: str, columns: Any = None, weights: Any = None, delimiter: str = ",") -> Source:
    from slabnorm.inputs.sources.tables import TableSource

    return TableSource(path, columns, weights, delimiter)


def _open_frame(frame: Any, columns: Any = None, weights: Any = None, name: str = "") -> Source:
    from slabnorm.inputs.sources.tables import FrameSource

    return FrameSource(frame, columns, weights, name)


def _open_images(folder: str, convert: str | None) -> Source:
    """Return the source of a folder of images, or of tars of images.

    Raises:
        DataError: it holds neither, or both, or cannot be listed.

    Warns:
        DataWarning: what is no file was left out, and folders that links lead to a second time.
    """
    folder, left_out = str(Path(folder)), list[str]()
    files = drop_special_files(folder, walk(folder, HIDDEN, left_out), left_out)
    pictures = [file for file in files if images.is_image(file.name)]
    archives = [file.name for file in files if tars.is_tar(file.name)]
    if archives and pictures:
        raise DataError(
            f"Both images and tars of images in {printable(folder)}",
            f"{len(pictures)} images, and tars such as {printable(archives[0])}",
            "give them one by one, or move the tars away",
        )
    if left_out:
        warnings.warn(f"{printable(folder)}: left out {listed(left_out)}", DataWarning, stacklevel=4)
    if archives:
        return tars.open_tars([Path(folder, name) for name in archives], folder, convert)
    return images.folder_source(folder, pictures, convert)


def _open_tar(path: str, convert: str | None) -> Source:
    paths = tars.expand(path) if tars.is_pattern(path) else [Path(path)]
    return tars.open_tars(paths, path, convert)


def _open_mapping(arrays: Mapping[Any, Any], key: str | None) -> Source:
    name = pick(list(arrays), key, "the dict")
    hints = _name_hints("entry", name)
    if not is_frame(arrays[name]):
        return ArraySource(arrays[name], f"dict[{name!r}]", hints)
    found = _open_frame(arrays[name], name=f"dict[{name!r}]")
    found.hints = hints
    return found


def _open_batches(batches: Any, key: str | None) -> Stream:
    first = batches[0] if isinstance(batches, list | tuple) and batches else None
    if isinstance(first, bool | int | float | complex | str):
        raise DataError(
            f"Not batches: a {type(batches).__name__} of {type(first).__name__}",
            "each item of a list or tuple is read as a batch, an array or tensor",
            "make it one array, as with numpy.asarray(source)",
        )
    return BatchSource(batches, key)


def _name_hints(what: str, name: Any) -> tuple[Hint, ...]:
    word = held_out(str(name))
    return (Hint(f"the {what} {name!r}", word),) if word else ()


def _is_one_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _is_batches(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | str)


_ARROW, _PILLOW = ("pyarrow", "'slabnorm[tables]'"), ("PIL", "'slabnorm[images]'")
_CHOICE = ("columns", "weights")


def _tables(name: str, options: tuple[str, ...], *endings: str) -> Format:
    return Format(name, options, _open_table, endings, needs=_ARROW, urls=True, many=True)


# Folders, wildcards and URLs may hold tables of several formats.
TABLES = _tables("tables", (*_CHOICE, "delimiter"))
PARQUET = _tables("Parquet files", _CHOICE, ".parquet", ".parq", ".pq")
ARROW = _tables("Arrow files", _CHOICE, ".arrow", ".arrows", ".feather", ".ipc")
CSV = _tables("CSV files", (*_CHOICE, "delimiter"), ".csv", ".csv.gz")
NPZ = Format(".npz files", ("key",), _open_npz, (".npz",))
IDX = Format("IDX files", ("key",), idx.open_idx, idx.ENDINGS, many=True)
IDX_FILE = Format("IDX files", (), idx.open_idx, idx.OTHER_ENDINGS)
ZARR = Format(
    "Zarr arrays", ("key", "missing_chunks"), ZarrSource, (".zarr", ".zarr.zip"), is_zarr, urls=True
)
IMAGES = Format("images", ("convert",), _open_images, images.SUFFIXES, needs=_PILLOW, many=True)
TARS = Format("tars of images", ("convert",), _open_tar, tars.SUFFIXES, needs=_PILLOW, many=True)
_FRAMES = ("pyarrow", "'slabnorm[tables]', or give frame.to_numpy()")

# The first row that fits is taken: a frame is also an array, and a data set an iterable.
FORMATS = (
    Format(".npy files", (), _open_npy, (".npy",)),
    NPZ,
    ZARR,
    IMAGES,
    TARS,
    PARQUET,
    ARROW,
    CSV,
    IDX,
    IDX_FILE,
    Format("frames", _CHOICE, _open_frame, holds=is_frame, needs=_FRAMES),
    Format("opened npz files", ("key",), _open_archive, holds=_is_one_of(np.lib.npyio.NpzFile)),
    Format("iterable data sets", ("key",), IterableSource, holds=_is_one_of(IterableDataset)),
    Format("data sets", ("key",), DatasetSource, holds=_is_one_of(Dataset)),
    Format("arrays", (), ArraySource, holds=is_array),
    Format("dicts", ("key",), _open_mapping, holds=_is_one_of(Mapping)),
    Format("batches", ("key",), _open_batches, holds=_is_batches),
)
