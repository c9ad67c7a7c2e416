"""Images from files into one array. Nothing is padded, resized or guessed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slabnorm.errors import DataError
from slabnorm.extras import extra
from slabnorm.text import printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
MODES = ("1", "L", "LA", "RGB", "RGBA", "P", "I;16")


def is_image(path: Path) -> bool:
    """Return whether a path is a regular file with the suffix of an image."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read_images(paths: list[Path], most_bytes: int) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return images of one size and one mode as (n, channels, height, width), and what was converted.

    Args:
        paths: the files, one at least.
        most_bytes: the largest array to make.

    Raises:
        DataError: a file that cannot be decoded whole, a decompression bomb, several frames, or the
            first file whose size or mode differs from the first image's.
    """
    extra("PIL", "reading images", "'slabnorm[images]'")
    first = read_image(paths[0])
    form = (first[0], first[1].shape)
    channels_first = np.moveaxis(first[1], 2, 0)
    if channels_first.nbytes * len(paths) > most_bytes:
        raise DataError(
            f"the data fits in memory: {most_bytes >> 30} GiB at most",
            f"{len(paths)} images of {channels_first.nbytes / 2**20:.0f} MiB",
            "give fewer or smaller images",
        )
    pixels = np.empty((len(paths), *channels_first.shape), first[1].dtype)
    for number, path in enumerate(paths):
        mode, image = read_image(path)
        if (mode, image.shape) != form:
            raise DataError(
                "all images have one size and one mode",
                f"{describe(mode, image)}: {printable(path)}; the first is {describe(*first)}: "
                f"{printable(paths[0])}",
                "resize or convert the images to one form first",
            )
        pixels[number] = np.moveaxis(image, 2, 0)
    notes = ("palette images were read as RGB",) if form[0] == "P" else ()
    return pixels, notes


def describe(mode: str, image: NDArray[Any]) -> str:
    """Return `28x14 RGB`: width, height and mode."""
    return f"{image.shape[1]}x{image.shape[0]} {mode}"


def read_image(path: Path) -> tuple[str, NDArray[Any]]:
    """Return an image's mode and its pixels, (height, width, channels).

    Raises:
        DataError: it cannot be decoded whole, is a decompression bomb, or has several frames.
    """
    from PIL import Image, ImageFile

    # Elsewhere in the process somebody may have asked Pillow to pad truncated files; not here.
    padded, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                mode, frames = image.mode, getattr(image, "n_frames", 1)
                if frames > 1 or mode not in MODES:
                    got = f"{frames} frames" if frames > 1 else f"mode {mode}"
                    raise DataError(
                        f"an image has one frame and one of the modes {', '.join(MODES)}",
                        f"{got}: {printable(path)}",
                        "convert it, or leave it out",
                    )
                image.load()
                pixels = np.asarray(image.convert({"P": "RGB", "1": "L"}.get(mode, mode)))
    except DataError:
        raise
    # Pillow's decoders raise whatever their format makes of damage: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        bomb = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning)
        raise DataError(
            "an image has at most as many pixels as Pillow allows" if bomb else "an image is whole",
            f"{printable(path)}: {printable(error)}",
            "it looks like a decompression bomb; leave it out"
            if bomb
            else "replace the file or leave it out",
        ) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = padded
    return mode, pixels[:, :, None] if pixels.ndim == 2 else pixels
