"""Statistics of images as mean and std, for torchvision's Normalize and for Hugging Face's processors.

y = (x / scaled_by - mean) / std        mean = (shift - low * scale / span) / scaled_by
                                        std  = scale / span / scaled_by
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slabnorm.errors import DataError, OptionError
from slabnorm.extras import extra
from slabnorm.files import output_path, write_atomically
from slabnorm.inputs import record
from slabnorm.inputs.exports.checks import batch_axes, check_numbers
from slabnorm.inputs.fold_into_layer import OFFSET
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.outputs import check_outputs
from slabnorm.notation import ELLIPSIS
from slabnorm.text import printable


@dataclass(frozen=True)
class ImageStatistics:
    """Mean and std of images, as image libraries take them.

    Attributes:
        mean, std: one number per channel, or a single number for all channels.
        scaled_by: what images are divided by first.
        per_channel: whether there is one number per channel.
    """

    mean: list[float]
    std: list[float]
    scaled_by: float
    per_channel: bool


def image_statistics(norm: InputNorm, scaled_by: float | None = None) -> ImageStatistics:
    """Return mean and std of images. The output range of the scheme is part of them.

    The channels are the axis called c, or else the third from last. They may also be the last axis, because
    both libraries reorder such images.

    Args:
        norm: statistics of images, which are samples of two or more axes.
        scaled_by: what images are divided by first. By default 255 for uint8, as torchvision's ToTensor and
            Hugging Face's processors do, and 1 for other dtypes.

    Raises:
        OptionError: the statistics are neither one per channel nor one for all, the data lie so far from 0
            that float32 loses digits, or `scaled_by` is not a positive number.
        StatisticsError: the statistics have no values, because they are on the meta device.

    >>> import torch, slabnorm as sn
    >>> pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    >>> image_statistics(sn.fit(pixels, "zscore", "n c h w -> c", split="train"))
    ImageStatistics(mean=[0.5], std=[0.5], scaled_by=255.0, per_channel=True)
    """
    check_numbers(norm)
    if norm.scheme.clip is not None:
        raise _refused("they cannot clip", f"clip={norm.scheme.clip}")
    divisor = _divisor(norm, scaled_by)
    per_channel = _is_per_channel(norm)
    shift, low, scale = (t.reshape(-1).cpu() for t in (norm.shift, norm.shift_low, norm.scale))
    if not per_channel:
        if bool((shift != shift[0]).any() | (low != low[0]).any() | (scale != scale[0]).any()):
            raise _refused("the statistics are neither one per channel nor one for all", _what(norm))
        shift, low, scale = shift[:1], low[:1], scale[:1]
    if len(norm.record.sample) < 2:
        raise _refused("samples are not images, which have two axes or more", _what(norm))
    span, base = norm.scheme.target
    std = scale / span
    offset = float((shift.abs() / std).max())
    mean = (shift - (base * std - low)) / divisor
    std = std / divisor
    if not bool(mean.isfinite().all() & std.isfinite().all() & (std > 0).all()):
        raise _refused("they are out of the range of float64", f"scaled_by={divisor:g}")
    if offset > OFFSET:
        raise OptionError(
            "The images lie so far from 0 that image libraries, which compute in float32, lose digits",
            f"{offset:.3g} times their scale; up to {OFFSET} times is allowed",
            "keep the InputNorm, or export to ONNX: both subtract exactly",
        )
    return ImageStatistics(mean.tolist(), std.tolist(), divisor, per_channel)


def to_torchvision(norm: InputNorm, scaled_by: float | None = None) -> Any:
    """Return `torchvision.transforms.Normalize(mean, std)`, see `image_statistics`.

    It takes what ToTensor returns: images of floats with channels, rows and columns, where uint8 has been
    divided by 255. In float32 it is within 1e-6 * max(1, abs(y), abs(mean / std)) of the InputNorm.

    Raises:
        ExtraError: torchvision is not installed. `torchvision_text` and `image_statistics` do not need it.
        OptionError: mean and std of channels cannot express the statistics.

    >>> import torch, slabnorm as sn
    >>> norm = sn.fit(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "fixed", split="train")
    >>> try:
    ...     mean = to_torchvision(norm).mean
    ... except sn.errors.ExtraError:
    ...     mean = image_statistics(norm).mean
    >>> mean
    [0.0]
    """
    found = image_statistics(norm, scaled_by)
    transforms = extra("torchvision.transforms", "this export", "torchvision")
    return transforms.Normalize(found.mean, found.std)


def torchvision_text(norm: InputNorm, scaled_by: float | None = None) -> str:
    """Return a line of code that makes the transform of `to_torchvision`. It does not need torchvision.

    Raises:
        OptionError: mean and std of channels cannot express the statistics.

    >>> import torch, slabnorm as sn
    >>> pixels = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    >>> print(torchvision_text(sn.fit(pixels, sn.FixedScale(0, 255, out=(-1, 1)), split="train")))
    transforms.Normalize(mean=[0.5], std=[0.5])  # of x / 255, as ToTensor returns it
    """
    found = image_statistics(norm, scaled_by)
    after = f" / {_short(found.scaled_by)}" if found.scaled_by != 1 else " as it is, in floats"
    if found.scaled_by == 255 and norm.dtype == "uint8":
        after += ", as ToTensor returns it"
    return f"transforms.Normalize(mean={found.mean}, std={found.std})  # of x{after}"


def _short(number: float) -> str:
    return repr(int(number)) if number.is_integer() else repr(number)


def _divisor(norm: InputNorm, scaled_by: Any) -> float:
    if scaled_by is None:
        return 255.0 if norm.dtype == "uint8" else 1.0
    number = isinstance(scaled_by, int | float) and not isinstance(scaled_by, bool)
    if not number or not 0 < scaled_by <= sys.float_info.max:
        raise OptionError("scaled_by must be a positive number", repr(scaled_by), "255 for images of uint8")
    return float(scaled_by)


def _is_per_channel(norm: InputNorm) -> bool:
    """Return whether there is one statistic per channel of the images, with channels first or last."""
    pattern, rank = norm.pattern, 1 + len(norm.record.sample)
    axes = batch_axes(norm)
    if len(pattern.right) != 1 or pattern.right[0] not in axes or pattern.right == ((ELLIPSIS,),):
        return False
    place = axes.index(pattern.right[0]) - rank
    if pattern.right[0] == ("c",):
        return place == -3 or (place == -1 and rank == 4)
    return ("c",) not in axes and place == -3


def _what(norm: InputNorm) -> str:
    return f'"{norm.pattern}" for samples of shape {norm.record.sample}'


def _refused(why: str, got: str) -> OptionError:
    problem = f"Mean and std of images cannot express these statistics: {why}"
    return OptionError(problem, got, 'fit with pattern="n c h w -> c", or export to ONNX')


_LARGEST = 1 << 24  # the largest configuration, in bytes
# The processors of EfficientNet and ViViT take these steps after rescaling or normalising.
_CHANGE_VALUES = ("rescale_offset", "include_top", "offset")


def to_huggingface(norm: InputNorm, scaled_by: float | None = None) -> dict[str, Any]:
    """Return the keys of preprocessor_config.json that rescale and normalise images.

        y = (x * rescale_factor - image_mean) / image_std        rescale_factor = 1 / scaled_by

    Args:
        norm: statistics of images, one per channel or one for all.
        scaled_by: what pixels are divided by first: by default 255 for uint8, and 1 for other dtypes, which
            turns rescaling off.

    Raises:
        OptionError: mean and std of channels cannot express the statistics, see `image_statistics`.

    >>> import torch, slabnorm as sn
    >>> pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    >>> keys = to_huggingface(sn.fit(pixels, "zscore", "n c h w -> c", split="train"))
    >>> for key, value in keys.items():
    ...     print(key, value)
    do_rescale True
    rescale_factor 0.00392156862745098
    do_normalize True
    image_mean [0.5]
    image_std [0.5]
    """
    found = image_statistics(norm, scaled_by)
    # There, a list has one number for each channel, and a plain number is for all of them.
    mean, std = (found.mean, found.std) if found.per_channel else (found.mean[0], found.std[0])
    return {
        "do_rescale": found.scaled_by != 1,
        "rescale_factor": 1 / found.scaled_by,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def merge_huggingface(
    norm: InputNorm, path: str | os.PathLike[str], scaled_by: float | None = None
) -> dict[str, Any]:
    """Write the keys of `to_huggingface` into a preprocessor_config.json, and keep all other keys.

    The file is made if there is none. If it cannot be written whole, an older one stays as it was.

    Returns:
        All keys that are now in the file.

    Raises:
        DataError: the file is not a JSON object, or has a key twice, or a number that JSON does not have.
        OptionError: its processor changes values in a further step, the file cannot be written, or mean and
            std of channels cannot express the statistics.

    >>> import pathlib, tempfile, torch, slabnorm as sn
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "preprocessor_config.json"
    >>> _ = path.write_text('{"size": {"height": 224, "width": 224}, "image_mean": [0, 0, 0]}')
    >>> norm = sn.fit(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "fixed", split="train")
    >>> merged = merge_huggingface(norm, path)
    >>> merged["size"], merged["image_mean"]
    ({'height': 224, 'width': 224}, 0.0)
    """
    path = output_path(path)
    check_outputs([path], (*norm.origin, norm.loaded_from))
    text = huggingface_text(norm, path, scaled_by)
    write_atomically(path, text)
    merged: dict[str, Any] = json.loads(text)
    return merged


def huggingface_text(
    norm: InputNorm, path: str | os.PathLike[str] | None = None, scaled_by: float | None = None
) -> str:
    """Return the content of the file: the keys, together with those of the file at `path` if there is one."""
    keys = to_huggingface(norm, scaled_by)
    present = {} if path is None or not os.path.lexists(path) else _present(Path(path))
    return json.dumps({**present, **keys}, indent=2, allow_nan=False) + "\n"


def _present(path: Path) -> dict[str, Any]:
    """Return the keys of a configuration, if rescaling and normalising mean in it what they mean here."""
    try:
        size = path.stat().st_size if path.is_file() else None  # reading a pipe would wait for ever
        if size is None or size > _LARGEST:
            raise ValueError("not a regular file" if size is None else f"{size:,} bytes are too many")
        plain = record.read(path.read_bytes().decode())
        if not isinstance(plain, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"Cannot merge into {printable(path)}",
            printable(why),
            "mend it, or name a file that does not exist",
        ) from error
    if "image_processor" in plain:
        raise OptionError(
            f"Cannot merge into {printable(path)}",
            'the configuration of a whole processor, with "image_processor" in it',
            "merge into preprocessor_config.json, or write the keys into that part by hand",
        )
    further = [key for key in _CHANGE_VALUES if plain.get(key)]
    if further:
        raise OptionError(
            f"The processor of {printable(path)} changes values in a further step",
            f'"{further[0]}" is {printable(plain[further[0]], 40)}',
            f'set "{further[0]}" to false first',
        )
    return plain
