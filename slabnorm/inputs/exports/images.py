"""Statistics of images as mean and std: torchvision's Normalize, Hugging Face's preprocessor_config.json."""

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

# Statistics of images as mean and std, and torchvision's Normalize of them.
#
# y = (x / scaled_by - mean) / std        mean = (shift - low * scale / span) / scaled_by
#                                         std  = scale / span / scaled_by


@dataclass(frozen=True)
class ImageStatistics:
    """Mean and std of images, in the way that image libraries want them.

    Attributes:
        mean, std: one number per channel, or a single one for all of them.
        scaled_by: what images are divided by before.
        per_channel: whether there is one number per channel.
    """

    mean: list[float]
    std: list[float]
    scaled_by: float
    per_channel: bool


def image_statistics(norm: InputNorm, scaled_by: float | None = None) -> ImageStatistics:
    """Return mean and std of images; what a scheme maps to is folded into them.

    Args:
        norm: fitted on images: samples of two or more axes.
        scaled_by: what images are divided by before: by default 255 for uint8, as torchvision's ToTensor
            and Hugging Face's processors do, and 1 for other dtypes.

    Raises:
        OptionError: statistics that are neither one per channel nor one for all; data so far from 0 that
            float32 loses digits; or `scaled_by` is not a positive number.
        StatisticsError: statistics without values, on the meta device.

    The channels are the axis called c, or else the third from last; images may also have them last, since
    both libraries reorder such images.

    >>> import torch, slabnorm as sn
    >>> pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    >>> image_statistics(sn.fit(pixels, "zscore", "n c h w -> c", split="train"))
    ImageStatistics(mean=[0.5], std=[0.5], scaled_by=255.0, per_channel=True)
    """
    check_numbers(norm)
    if norm.scheme.clip is not None:
        raise _refused("mean and std cannot clip", f"clip={norm.scheme.clip}")
    divisor = _divisor(norm, scaled_by)
    per_channel = _is_per_channel(norm)
    shift, low, scale = (t.reshape(-1).cpu() for t in (norm.shift, norm.shift_low, norm.scale))
    if not per_channel:
        if bool((shift != shift[0]).any() | (low != low[0]).any() | (scale != scale[0]).any()):
            raise _refused("statistics are one per channel, or one for all", _what(norm))
        shift, low, scale = shift[:1], low[:1], scale[:1]
    if len(norm.record.sample) < 2:
        raise _refused("a sample is an image, of two axes or more", _what(norm))
    span, base = norm.scheme.target
    std = scale / span
    offset = float((shift.abs() / std).max())
    mean = (shift - (base * std - low)) / divisor
    std = std / divisor
    if not bool(mean.isfinite().all() & std.isfinite().all() & (std > 0).all()):
        raise _refused("mean and std are finite float64, and std positive", f"scaled_by={divisor:g}")
    if offset > OFFSET:
        raise OptionError(
            f"images lie within {OFFSET} of their scale from 0: image libraries subtract in float32",
            f"an offset of {offset:.3g} times the scale",
            "keep the InputNorm, or export to ONNX: both subtract exactly",
        )
    return ImageStatistics(mean.tolist(), std.tolist(), divisor, per_channel)


def to_torchvision(norm: InputNorm, scaled_by: float | None = None) -> Any:
    """Return `torchvision.transforms.Normalize(mean, std)`, see `image_statistics`.

    It takes what ToTensor returns: float images of channels, rows and columns, where uint8 has been divided
    by 255. In float32 it is within 1e-6 * max(1, abs(y), abs(mean / std)) of the InputNorm.

    Raises:
        ExtraError: torchvision is not installed; `torchvision_text` and `image_statistics` do without.
        OptionError: it cannot be said as mean and std of channels.

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
    """Return the line of code that makes `to_torchvision`'s transform; torchvision is not needed.

    Raises:
        OptionError: it cannot be said as mean and std of channels.

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
        raise OptionError("scaled_by is a positive number", repr(scaled_by), "255 for images of uint8")
    return float(scaled_by)


def _is_per_channel(norm: InputNorm) -> bool:
    """Whether statistics are one per channel of images, channels first or last."""
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


def _refused(rule: str, got: str) -> OptionError:
    return OptionError(
        f"as mean and std of images, {rule}", got, 'fit with the pattern "n c h w -> c", or export to ONNX'
    )


# Statistics of images as Hugging Face's image processors read them: preprocessor_config.json.

_LARGEST = 1 << 24  # bytes that a configuration may have
# EfficientNet's and ViViT's processors do these after rescaling or normalising.
_CHANGE_VALUES = ("rescale_offset", "include_top", "offset")


def to_huggingface(norm: InputNorm, scaled_by: float | None = None) -> dict[str, Any]:
    """Return the keys of preprocessor_config.json that rescale and normalise images.

        y = (x * rescale_factor - image_mean) / image_std        rescale_factor = 1 / scaled_by

    Args:
        norm: fitted on images, with one statistic per channel or one for all.
        scaled_by: what pixels are divided by before; by default 255 for uint8, 1 for other dtypes, which
            turns rescaling off.

    Raises:
        OptionError: it cannot be said as mean and std of channels, see `image_statistics`.

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
    # One for all is a plain number there: a list has one for each channel.
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
    """Put `to_huggingface`'s keys into a preprocessor_config.json, made if there is none; keep all others.

    The file is written beside its place and moved there, so that on any failure the old one stays.

    Returns:
        All that is now in the file.

    Raises:
        DataError: the file is no JSON object, or has keys twice or numbers that JSON does not have.
        OptionError: its processor changes values in a further step; the file cannot be written; or the
            statistics cannot be said as mean and std of channels.

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
    """Return the content of the file: the keys alone, or with those that are at `path` now."""
    keys = to_huggingface(norm, scaled_by)
    present = {} if path is None or not os.path.lexists(path) else _present(Path(path))
    return json.dumps({**present, **keys}, indent=2, allow_nan=False) + "\n"


def _present(path: Path) -> dict[str, Any]:
    """Return what a configuration holds, if the keys mean there what they mean here."""
    try:
        size = path.stat().st_size if path.is_file() else None  # a pipe would be waited for
        if size is None or size > _LARGEST:
            raise ValueError("no regular file" if size is None else f"{size:,} bytes")
        plain = record.read(path.read_bytes().decode())
        if not isinstance(plain, dict):
            raise ValueError("JSON that is no object")
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            "a preprocessor_config.json to merge into is a JSON object",
            f"{printable(path)}: {printable(why)}",
            "mend it, or name a file that does not exist",
        ) from error
    if "image_processor" in plain:
        raise OptionError(
            "the keys of an image processor stand in the outermost object",
            f'{printable(path)}: the configuration of a whole processor, with "image_processor" in it',
            "merge into preprocessor_config.json, or put the keys there by hand",
        )
    further = [key for key in _CHANGE_VALUES if plain.get(key)]
    if further:
        raise OptionError(
            "the values of an image are changed by rescaling and normalising alone",
            f'{printable(path)}: "{further[0]}" is {printable(plain[further[0]], 40)}',
            f'set "{further[0]}" to false first',
        )
    return plain
