"""Statistics of images as Hugging Face's image processors read them: preprocessor_config.json."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from slabnorm.errors import DataError, OptionError
from slabnorm.files import output_path, write_atomically
from slabnorm.inputs import record
from slabnorm.inputs.exports.images import image_statistics
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.outputs import check_outputs
from slabnorm.text import printable

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
