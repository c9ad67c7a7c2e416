"""The artifact: a file of fitted input statistics, written whole and checked strictly when it is read.

It is a safetensors file. Its tensors are the Moments and the counts of NaN; its metadata is one line of
canonical JSON, which says how they were fitted and holds a digest of everything. Shift and scale are not
stored, since they follow from the scheme and the moments. Nothing is ever unpickled, and a file with anything
in it that the checks below do not expect is refused.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slabnorm._version import __version__
from slabnorm.errors import ArtifactError, OptionError, SlabError
from slabnorm.files import output_path, write_atomically
from slabnorm.inputs import record
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.outputs import check_outputs
from slabnorm.inputs.record import Record
from slabnorm.inputs.schemes import SCHEMES, Scheme
from slabnorm.inputs.sketch import Sketch
from slabnorm.mergeable_moments import FIELDS, Moments
from slabnorm.text import printable

FORMAT = "slabnorm.inputs"
VERSION = 1  # of the format; a file of another version is refused
_DTYPES = dict.fromkeys((*FIELDS, "quantiles"), torch.float64) | dict.fromkeys(
    ("count", "nan_count", "null_count", "sketch"), torch.int64
)
TENSORS = _DTYPES.keys()
# What reading damage raises.
REFUSED = (ValueError, TypeError, KeyError, OverflowError, RuntimeError, SlabError)
_HEADER = 1 << 24  # the largest header, in bytes
_MOST_WEIGHT = 1 << 62  # the largest sum of the weights of a feature's values
_LARGEST = 1 << 28  # the largest file, in bytes: 4 million features


def save(norm: InputNorm, path: str | os.PathLike[str]) -> None:
    """Write fitted statistics to a file. The same statistics always give the same bytes.

    The file is written under another name and then moved to its place, so that an older file stays as it was
    if anything fails.

    Args:
        norm: the statistics, from `slabnorm.fit`.
        path: the file to write, such as "inputs.safetensors".

    Raises:
        OptionError: `norm` is not an InputNorm, the file cannot be written or is one of the files that were
            fitted, or the scheme is a class of your own.

    >>> import tempfile, pathlib, torch, slabnorm as sn
    >>> norm = sn.fit(torch.tensor([[1.0, 10.0], [3.0, 30.0]]), split="train")
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "inputs.safetensors"
    >>> sn.save(norm, path)
    >>> sn.load(path)
    InputNorm(ZScore(ddof=0, eps=0.0), 'n c -> c', split='train', samples=2, mean=2..20, std=1..10)
    """
    if not isinstance(norm, InputNorm):
        got = printable(type(norm).__name__)
        raise OptionError("norm must be an InputNorm, the fitted statistics", got, _instead(norm))
    path = output_path(path)
    check_scheme(norm.scheme)
    check_outputs([path], norm.origin)
    tensors = tensors_of(norm)
    plain = {
        "format": FORMAT,
        "version": VERSION,
        "record": norm.record.to_plain(),
        "sketch": norm.sketch.size,
        "libraries": libraries(),
    }
    write(path, FORMAT, plain, tensors)


def load(path: str | os.PathLike[str]) -> InputNorm:
    """Read fitted statistics from a file that `save` wrote.

    Raises:
        OptionError: `path` is not a path.
        ArtifactError: there is no such file, it is damaged or of another version, or it holds numbers that no
            data set can have.

    >>> import slabnorm as sn
    >>> sn.load("nowhere.safetensors")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    slabnorm.errors.ArtifactError: No such file of statistics: nowhere.safetensors
    """
    if not isinstance(path, str | os.PathLike):
        fix = "give a str or a Path, such as 'inputs.safetensors'"
        raise OptionError("path must be a path", type(path).__name__, fix)
    content = read(Path(path))
    try:
        plain, tensors = parse(content, FORMAT, VERSION)
        if plain.keys() != {"format", "version", "record", "sketch", "libraries"}:
            raise ValueError("the metadata have other fields than version 1 has")
        if tensors.keys() != TENSORS:
            raise ValueError(f"it holds the tensors {', '.join(sorted(tensors))[:200]}")
        norm = norm_of(plain["record"], plain["sketch"], tensors)
        norm.loaded_from = os.path.abspath(path)
        return norm
    except REFUSED as error:
        raise _refused(Path(path), content, str(error)) from error


def _instead(given: object) -> str:
    """Return how to save an object that is not an InputNorm."""
    if hasattr(given, "freeze"):
        return "its freeze() returns an InputNorm: save that"
    if isinstance(given, torch.nn.Module):
        return "torch.save(module.state_dict(), path) stores a layer or a model"
    if hasattr(given, "to_norm"):
        return "its to_norm() returns an InputNorm: save that"
    if isinstance(given, str | os.PathLike):
        return "the statistics come first, then the path: save(norm, path)"
    return "fit the statistics first: norm = slabnorm.fit(data, split=...)"


def read(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        ArtifactError: there is no such file, or it cannot be read.
    """
    shown = printable(path)
    try:
        size = path.stat().st_size
        if path.is_file() and size <= _LARGEST:
            return path.read_bytes()
        why = f"{size:,} bytes are too many" if path.is_file() else "not a regular file"  # such as a pipe
    except (FileNotFoundError, NotADirectoryError):
        fix = "check the path; slabnorm.save and the command slabnorm fit write such files"
        raise ArtifactError(f"No such file of statistics: {shown}", "", _close_name(path) or fix) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or str(error)
    raise ArtifactError(f"Cannot read the file of statistics {shown}", why, "check the path and its rights")


def _close_name(path: Path) -> str:
    """Return a question for a file in the same folder with almost the same name; "" if there is none."""
    try:
        names = [file.name for file in path.parent.iterdir() if file.suffix == path.suffix]
    except OSError:
        return ""
    close = get_close_matches(path.name, names, 1)
    return f"did you mean {printable(path.with_name(close[0]))}?" if close else ""


def _refused(path: Path, content: bytes, why: str) -> ArtifactError:
    """Return the error for a file that does not hold fitted statistics, or not undamaged."""
    shown = printable(path)
    if FORMAT.encode() in content:
        fix = "fit again, or copy the file again from where it is intact"
        return ArtifactError(f"Damaged file of statistics: {shown}", why, fix)
    fix = "slabnorm.save and the command slabnorm fit write files of statistics"
    if content.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):  # torch.save, today's and the old one
        fix = f"torch.load reads a checkpoint of torch.save; {fix}"
    elif b'"slabnorm.contract"' in content[:_HEADER]:
        fix = "slabnorm.contract reads the statistics of many keys"
    elif content[8:9] == b"{":
        fix = f"safetensors.torch.load_file reads other safetensors files; {fix}"
    return ArtifactError(f"Not a file of statistics: {shown}", why, fix)


def libraries() -> dict[str, str]:
    """Return the versions of what computed the statistics."""
    versions = {"numpy": np.__version__, "slabnorm": __version__, "torch": str(torch.__version__)}
    return {name: version.partition("+")[0] for name, version in versions.items()}


def check_scheme(scheme: Scheme) -> None:
    """Raise OptionError for a scheme that a file cannot name, as it is of a user's own class."""
    kind = type(scheme)
    if SCHEMES.get(scheme.name) is not kind:
        raise OptionError(
            f"A file of statistics cannot hold the scheme {printable(kind.__name__)}",
            "a scheme that is not one of slabnorm's own",
            "store the InputNorm's state_dict instead",
        )


def tensors_of(norm: InputNorm) -> dict[str, Tensor]:
    """Return the tensors of a file of statistics."""
    tensors = {name: getattr(norm, f"moments_{name}").cpu().contiguous() for name in FIELDS}
    for name in ("nan_count", "null_count", "quantiles"):
        tensors[name] = getattr(norm, name).cpu().contiguous()
    return {**tensors, "sketch": torch.from_numpy(norm.sketch.hashes.view(np.int64).copy())}


def norm_of(plain: Any, sketch_size: Any, tensors: dict[str, Tensor]) -> InputNorm:
    """Return the statistics of a file, after a look at every number.

    Raises:
        ValueError, SlabError: numbers that no data set can have, or of another shape.
    """
    record = Record.from_plain(plain)
    _check_shapes(tensors, record)
    _check_moments(tensors, record)
    moments = Moments(**{name: tensors[name] for name in FIELDS}, weighted=record.weights == "real")
    norm = InputNorm(record, moments, tensors["nan_count"], tensors["null_count"], tensors["quantiles"])
    norm.sketch = _sketch(tensors["sketch"], sketch_size, record.samples)
    return norm


def write(path: Path, form: str, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write tensors with a line of JSON and the digest of all, whole or not at all.

    Raises:
        OptionError: the file cannot be written, or would be larger than `read` takes.
    """
    from safetensors.torch import save as serialise

    text = record.write({**plain, "digest": _digest(plain, tensors)})
    content = serialise(tensors, {form: text})
    (header,) = struct.unpack("<Q", content[:8])
    if header > _HEADER or len(content) > _LARGEST:
        got = f"{len(content):,} bytes, {header:,} of them names and descriptions"
        raise OptionError("The statistics are too many for one file", got, "write them to several files")
    write_atomically(path, content)


def parse(content: bytes, form: str, known: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON and the tensors of a file, after all checks that do not look at the numbers.

    Args:
        content: the file's.
        form: the format that it must be of.
        known: the version that it must be of.

    Raises:
        ValueError: it is of another format or version, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    if len(content) < 8:
        raise ValueError(f"the file has {len(content)} bytes, fewer than a header has")
    (length,) = struct.unpack("<Q", content[:8])
    if length > min(_HEADER, len(content) - 8):
        raise ValueError(f"it claims a header of {length} bytes, but the file has {len(content)}")
    header = record.read(content[8 : 8 + length].decode())
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.keys() != {form} or not isinstance(metadata[form], str):
        raise ValueError(f"the metadata are not of the format {form}")
    plain = record.read(metadata[form])
    if not isinstance(plain, dict) or plain.get("format") != form:
        raise ValueError("the metadata are of another format")
    if plain.get("version") != known or type(plain["version"]) is not int:
        raise ValueError(f"it is of version {plain.get('version')!r:.40}, and this slabnorm reads {known}")
    try:
        tensors = deserialise(content)  # this checks where tensors lie and their sizes, to the last byte
    except SafetensorError as error:
        raise ValueError(f"safetensors: {error}") from error
    digest = plain.pop("digest", None)
    if digest != _digest(plain, tensors):
        raise ValueError("its content does not match its digest: it was changed or damaged")
    return plain, tensors


def _digest(plain: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of the JSON and of every tensor in the order of their names."""
    digest = hashlib.sha256(record.write(plain).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _check_shapes(tensors: dict[str, Tensor], record: Record) -> None:
    for name, dtype in (_DTYPES | {"count": record.count_dtype}).items():
        tensor = tensors[name]
        shape = (tensor.numel(),) if name == "sketch" else record.features().shape
        if name == "quantiles":
            shape = (len(record.scheme.ranks), *shape)
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not {dtype}, {shape}")


def _check_moments(tensors: dict[str, Tensor], record: Record) -> None:
    """Raise ValueError for statistics that no data set can have."""
    count, mean, m2, low, high = (tensors[name] for name in FIELDS[:5])
    known = None not in record.sample  # whether all samples have the same number of values
    values = record.samples * math.prod(record.sample) if known else int(count.sum())  # type: ignore[arg-type]
    alike = not record.weights  # whether every value counts once
    nans = tensors["nan_count"] + tensors["null_count"]
    if values >= 1 << 62:
        raise ValueError(f"it claims {values} values")
    # Within these limits, sums of counts do not overflow.
    within = (count > 0) & (nans >= 0) & (nans <= values) & (count <= (values if alike else _MOST_WEIGHT))
    room = 4 * torch.finfo(torch.float64).eps * torch.maximum(low.abs(), high.abs())  # for rounding errors
    most = (high / 2 - low / 2).square() * (1 + 1e-9) + 1e-300
    quantiles = torch.cat([low[None], tensors["quantiles"], high[None]])
    rules = {
        "quantiles rise from minimum to maximum": quantiles.diff(dim=0) >= 0,
        "counts are positive, and no more than the values": within,
        "counts and NaN counts add up to all values": (count + nans == values // count.numel())
        | torch.tensor(not (known and alike)),
        "numbers are finite": torch.stack(
            [tensors[name].isfinite() for name in ("mean", "min", "max", "mean_low")]
        ).all(0),
        "min <= mean <= max": (low <= high) & (low - room <= mean) & (mean <= high + room),
        "mean_low is as small as what the mean has lost to rounding": tensors["mean_low"].abs()
        <= room + 1e-300,
        # Popoviciu's inequality, with room for rounding. Where the square of the range is beyond float64, m2
        # does not exist, and only min-max scaling, which does not need it, is possible.
        "0 <= m2 <= count * ((max - min) / 2)^2": (count * most).isinf()
        | (tensors["m2_low"].isfinite() & (m2 >= 0) & (m2 / torch.where(count > 0, count, 1) <= most)),
    }
    for rule, holds in rules.items():
        if not bool(holds.all()):
            raise ValueError(f"it holds numbers that no data have, as these must hold: {rule}")


def _sketch(values: Tensor, size: Any, samples: int) -> Sketch:
    hashes = values.numpy().view(np.uint64)
    if type(size) is not int or not 0 <= size <= _LARGEST or len(hashes) > min(size, samples):
        raise ValueError(
            f"the sketch has {len(hashes)} hashes of {samples} samples, and a limit of {size!r:.40}"
        )
    if not (hashes[1:] > hashes[:-1]).all():
        raise ValueError("the hashes of the sketch are not in ascending order")
    return Sketch(hashes.copy(), size)
