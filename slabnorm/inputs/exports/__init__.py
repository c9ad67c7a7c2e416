"""Fitted input statistics for other systems: ONNX, torchvision, Hugging Face, scikit-learn, JSON."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slabnorm.errors import OptionError
from slabnorm.files import output_path, write_atomically
from slabnorm.inputs.exports.images import (
    ImageStatistics,
    huggingface_text,
    image_statistics,
    merge_huggingface,
    to_huggingface,
    to_torchvision,
    torchvision_text,
)
from slabnorm.inputs.exports.json import to_json
from slabnorm.inputs.exports.onnx import onnx_bytes, to_onnx
from slabnorm.inputs.exports.sklearn import to_sklearn
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.outputs import check_outputs
from slabnorm.text import did_you_mean, printable

__all__ = [
    "ImageStatistics",
    "content",
    "export",
    "image_statistics",
    "merge_huggingface",
    "to_huggingface",
    "to_json",
    "to_onnx",
    "to_sklearn",
    "to_torchvision",
    "torchvision_text",
]


@dataclass(frozen=True)
class Target:
    """A system to export to: how to make its object and its file, and which options these take."""

    make: Callable[..., Any]
    write: Callable[..., str | bytes] | None
    options: tuple[str, ...]
    merges: bool = False  # whether an existing file keeps its other content


TARGETS = {
    "onnx": Target(to_onnx, onnx_bytes, ("dtype",)),
    "torchvision": Target(to_torchvision, lambda *a, **k: torchvision_text(*a, **k) + "\n", ("scaled_by",)),
    "huggingface": Target(to_huggingface, huggingface_text, ("scaled_by",), merges=True),
    "sklearn": Target(to_sklearn, None, ("names",)),
    "json": Target(to_json, lambda *a, **k: to_json(*a, **k) + "\n", ("names",)),
}


def export(norm: InputNorm, to: str, path: str | os.PathLike[str] | None = None, **options: Any) -> Any:
    """Return fitted input statistics as an object of another system, or write them to a file for it.

    | to            | without `path`                     | with `path`                         | options   |
    |---------------|------------------------------------|-------------------------------------|-----------|
    | `onnx`        | `onnx.ModelProto`                  | .onnx                               | dtype     |
    | `torchvision` | `torchvision.transforms.Normalize` | a line of code                      | scaled_by |
    | `huggingface` | a dict                             | JSON, merged into what is there     | scaled_by |
    | `sklearn`     | StandardScaler or MinMaxScaler     | refused: the file would be a pickle | names     |
    | `json`        | a str                              | JSON                                | names     |

    All of them compute y = ((x - shift) - shift_low) / scale * span + low, see `InputNorm`. How exact they
    are is described at `to_onnx`, `to_torchvision`, `to_huggingface`, `to_sklearn` and `to_json`. If a file
    cannot be written whole, an older one stays as it was.

    Args:
        norm: the statistics, from `slabnorm.fit` or `slabnorm.load`.
        to: the system, as in the table.
        path: the file to write; None to return the object.
        options: the options of the system, as in the table; None stands for the default.

    Returns:
        The object, or None if a file was written.

    Raises:
        OptionError: there is no such system or option, the system cannot express the statistics, or the file
            cannot be written.
        DataError: the Hugging Face configuration to merge into is not a JSON object.
        ExtraError: the package that makes the export is not installed.
        StatisticsError: the statistics have no values, because they are on the meta device.

    >>> import torch, slabnorm as sn
    >>> norm = sn.fit(torch.tensor([[1.0, 10.0], [3.0, 30.0]]), "zscore", split="train")
    >>> export(norm, "sklearn").mean_.tolist()
    [2.0, 20.0]
    """
    target, given = _target(to, options)
    if path is None:
        return target.make(norm, **given)
    path = output_path(path)
    if target.write is not None:
        check_outputs([path], (*norm.origin, norm.loaded_from))
    write_atomically(path, content(norm, to, path, **options))
    return None


def content(
    norm: InputNorm, to: str, path: str | os.PathLike[str] | None = None, **options: Any
) -> str | bytes:
    """Return what `export` writes to a file: text, or bytes for ONNX.

    Args:
        norm, to, options: as in `export`.
        path: a Hugging Face configuration to merge into, if it exists.

    Raises:
        SlabError: as in `export`.

    >>> import torch, slabnorm as sn
    >>> norm = sn.fit(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "fixed", split="train")
    >>> print(content(norm, "torchvision"), end="")
    transforms.Normalize(mean=[0.0], std=[1.0])  # of x / 255, as ToTensor returns it
    """
    target, given = _target(to, options)
    if target.write is None:
        raise OptionError(
            f"An export to {to} cannot be a file",
            "the file would be a pickle, which runs code when it is loaded",
            f"make the object in Python, with slabnorm.inputs.exports.to_{to}(norm)",
        )
    return target.write(norm, path=path, **given) if target.merges else target.write(norm, **given)


def _target(to: Any, options: dict[str, Any]) -> tuple[Target, dict[str, Any]]:
    """Return a system, and those of the options that are given."""
    target = TARGETS.get(to) if isinstance(to, str) else None
    if target is None:
        problem = f"to must be one of {', '.join(TARGETS)}"
        raise OptionError(problem, printable(repr(to)), did_you_mean(to, TARGETS))
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in target.options:
            fix = "leave it out"
            raise OptionError(f"An export to {to} does not take `{printable(name)}`", "", fix)
    return target, given
