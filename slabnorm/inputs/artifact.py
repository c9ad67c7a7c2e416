"""The artifact: fitted input statistics as one file, written whole and read strictly.

A safetensors file: Moments and NaN counts as tensors, and in its metadata one line of canonical JSON, which
says how they came to be and has a digest of everything. Shift and scale are not in it: they follow from the
scheme and the moments. Nothing is ever unpickled, and nothing is read that the checks below do not expect.
"""

from __future__ import annotations

import hashlib
import os
import struct
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
from slabnorm.inputs.schemes import SCHEMES
from slabnorm.inputs.sketch import Sketch
from slabnorm.inputs.validation import MOMENTS, check_moments
from slabnorm.mergeable_moments import Moments
from slabnorm.text import printable

FORMAT = "slabnorm.inputs"
VERSION = 1  # of the format; a file of another one is refused
_DTYPES = dict.fromkeys((*MOMENTS, "quantiles"), torch.float64) | dict.fromkeys(
    ("count", "nan_count", "null_count", "sketch"), torch.int64
)
_HEADER = 1 << 24  # bytes that a header may have
_LARGEST = 1 << 28  # bytes that a file may have: 4 million features


def save(norm: InputNorm, path: str | os.PathLike[str]) -> None:
    """Write fitted statistics to a file; the same statistics give the same bytes.

    The file is written beside its place and moved there, so that on any failure the old one stays.

    Args:
        norm: from `slabnorm.fit`.
        path: the file, such as "inputs.safetensors".

    Raises:
        OptionError: `norm` is no InputNorm; the file cannot be written, or is one of those the statistics
            were fitted on; or the scheme is one of your own.

    >>> import tempfile, pathlib, torch, slabnorm as sn
    >>> norm = sn.fit(torch.tensor([[1.0, 10.0], [3.0, 30.0]]), split="train")
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "inputs.safetensors"
    >>> sn.save(norm, path)
    >>> sn.load(path)
    InputNorm(ZScore(ddof=0, eps=0.0), 'n c -> c', split='train', samples=2, mean=2..20, std=1..10)
    """
    from safetensors.torch import save as serialise

    if not isinstance(norm, InputNorm):
        raise OptionError(
            "save writes fitted input statistics: an InputNorm",
            printable(type(norm).__name__),
            _instead(norm),
        )
    path, kind = output_path(path), type(norm.scheme)
    if SCHEMES.get(norm.scheme.name) is not kind:
        raise OptionError("an artifact holds one of slabnorm's own schemes", kind.__name__, "use state_dict")
    check_outputs([path], norm.origin)
    tensors = {name: getattr(norm, f"moments_{name}").cpu().contiguous() for name in MOMENTS}
    tensors |= {
        name: getattr(norm, name).cpu().contiguous() for name in ("nan_count", "null_count", "quantiles")
    }
    tensors["sketch"] = torch.from_numpy(norm.sketch.hashes.view(np.int64).copy())
    plain = {
        "format": FORMAT,
        "version": VERSION,
        "record": norm.record.to_plain(),
        "sketch": norm.sketch.size,
        "libraries": {name: version.partition("+")[0] for name, version in _versions().items()},
    }
    text = record.write({**plain, "digest": _digest(plain, tensors)})
    write_atomically(path, serialise(tensors, {FORMAT: text}))


def load(path: str | os.PathLike[str]) -> InputNorm:
    """Read fitted statistics from a file that `save` wrote.

    Raises:
        OptionError: `path` is no path.
        ArtifactError: there is no such file, it is damaged or of another version, or its numbers cannot be.

    >>> import slabnorm as sn
    >>> sn.load("nowhere.safetensors")
    Traceback (most recent call last):
    slabnorm.errors.ArtifactError: an artifact is a file that slabnorm wrote
      got: nowhere.safetensors: No such file or directory
    """
    content = _read(_as_path(path))
    try:
        plain, tensors = _parse(content)
        record = Record.from_plain(plain["record"])
        _check_shapes(tensors, record)
        check_moments(tensors, record)
        found = {name: tensors[name] for name in MOMENTS}
        moments = Moments(**found, weighted=record.weights == "real")
        missing = tensors["nan_count"], tensors["null_count"]
        norm = InputNorm(record, moments, *missing, tensors["quantiles"])
        norm.sketch = _sketch(tensors["sketch"], plain["sketch"], record.samples)
        norm.loaded_from = os.path.abspath(path)
        return norm
    except (ValueError, TypeError, KeyError, OverflowError, RuntimeError, SlabError) as error:
        raise _refused(path, str(error), _reader(content)) from error


def _as_path(path: object) -> Path:
    if isinstance(path, str | os.PathLike):
        return Path(path)
    raise OptionError(
        "an artifact has a path, such as 'inputs.safetensors'", type(path).__name__, "give a str or a Path"
    )


def _instead(given: object) -> str:
    """Return what saves an object that is no InputNorm."""
    if isinstance(given, torch.nn.Module):
        return "torch.save(module.state_dict(), path) stores a layer or a model"
    if hasattr(given, "to_norm"):
        return "its to_norm() is an InputNorm: save that"
    if isinstance(given, str | os.PathLike):
        return "the statistics come first, then the path: save(norm, path)"
    return "fit the statistics first: norm = slabnorm.fit(data, split=...)"


def _reader(content: bytes) -> str:
    """Return what to do about a file that is no artifact."""
    if content.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):  # torch.save, today's and the old one
        return "torch.load reads a checkpoint of torch.save; slabnorm.save writes artifacts"
    if content[8:9] == b"{" and FORMAT.encode() not in content:
        return "safetensors.torch.load_file reads other safetensors files; slabnorm.save writes artifacts"
    return "fit again, or take the file from where it is whole"


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size if path.is_file() else None  # a pipe would be waited for
        if size is not None and size <= _LARGEST:
            return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _refused(path, getattr(error, "strerror", None) or str(error)) from error
    if size is not None:
        raise _refused(path, f"{size:,} bytes")
    raise _refused(path, "no regular file" if path.exists() else "No such file or directory")


def _versions() -> dict[str, str]:
    return {"numpy": np.__version__, "slabnorm": __version__, "torch": str(torch.__version__)}


def _refused(path: object, why: str, fix: str = "") -> ArtifactError:
    return ArtifactError("an artifact is a file that slabnorm wrote", f"{printable(path)}: {why}", fix)


def _parse(content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON and the tensors of a file, after every check that needs no numbers."""
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    if len(content) < 8:
        raise ValueError(f"{len(content)} bytes, fewer than a header has")
    (length,) = struct.unpack("<Q", content[:8])
    if length > min(_HEADER, len(content) - 8):
        raise ValueError(f"a header of {length} bytes in a file of {len(content)}")
    header = record.read(content[8 : 8 + length].decode())
    if not isinstance(header, dict):
        raise ValueError("a header that is no object")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.keys() != {FORMAT} or not isinstance(metadata[FORMAT], str):
        raise ValueError(f"no metadata of the format {FORMAT}")
    if header.keys() != _DTYPES.keys():
        raise ValueError(f"tensors {', '.join(sorted(header))[:200]} instead of {', '.join(sorted(_DTYPES))}")
    plain = record.read(metadata[FORMAT])
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise ValueError("metadata of another format")
    if plain.get("version") != VERSION or type(plain["version"]) is not int:
        raise ValueError(f"version {plain.get('version')!r:.40}; this slabnorm reads {VERSION}")
    if plain.keys() != {"format", "version", "record", "sketch", "libraries", "digest"}:
        raise ValueError("fields that version 1 does not have, or too few")
    try:
        tensors = deserialise(content)  # checks places and sizes, to the last byte
    except SafetensorError as error:
        raise ValueError(f"safetensors: {error}") from error
    digest = plain.pop("digest")
    if digest != _digest(plain, tensors):
        raise ValueError("its digest is not that of its content: it was changed, or damaged")
    return plain, tensors


def _digest(plain: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return SHA-256 of the JSON and of every tensor, in the order of their names."""
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


def _sketch(values: Tensor, size: Any, samples: int) -> Sketch:
    hashes = values.numpy().view(np.uint64)
    if type(size) is not int or not 0 <= size <= _LARGEST or len(hashes) > min(size, samples):
        raise ValueError(f"a sketch of {len(hashes)} hashes, {size!r:.40} at most, of {samples} samples")
    if not (hashes[1:] > hashes[:-1]).all():
        raise ValueError("hashes of a sketch that do not rise")
    return Sketch(hashes.copy(), size)
