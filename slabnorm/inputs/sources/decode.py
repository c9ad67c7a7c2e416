"""An image from its bytes, by Pillow: decoded whole, or not at all.

Pixels count as they are stored: an orientation in EXIF turns none, as statistics per channel do not depend on
it, and colour profiles are not applied.
"""

from __future__ import annotations

import io
from threading import Lock
from typing import TYPE_CHECKING, Any
from zlib import crc32, decompressobj
from zlib import error as zlib_error

from slabnorm.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

# Fixed, so that neither Pillow's limit nor whoever lifts it decides what is read: Pillow's own default.
PIXELS = 89_478_485
# TIFF's numbers for them.
_BITS_PER_SAMPLE, _COMPRESSION, _PLANAR = 258, 259, 284
_DEFLATE = (8, 32946)
_STRIPS, _TILES = (273, 279), (324, 325)  # where they begin, and their sizes
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")


class DamageError(Exception):
    """An image that cannot be decoded whole, and why."""


class DepthError(Exception):
    """An image in colour of more than 8 bits a channel, of which Pillow drops all but 8."""


def decode(data: bytes) -> Image:
    """Return an image with its pixels.

    Raises:
        DamageError: it is truncated, corrupt, of no kind that is read, animated, or too large.
        DepthError: its pixels would not be what the file holds.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise DamageError("the file is empty")
    try:
        with _unpadded:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_size(image, min(PIXELS, Image.MAX_IMAGE_PIXELS or PIXELS))
            # MPO, as phones write it, is a JPEG with further pictures behind the photo.
            frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
            if frames > 1:
                raise DamageError(f"{frames} frames, where an image has one")
            if _is_cut(image):
                raise DepthError(image.mode)
            if image.format == "TIFF":
                _check_strips(image)
            image.load()
    except (DamageError, DepthError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DamageError(f"no image of the kinds {', '.join(_FORMATS)}, or its header is damaged") from None
    # Pillow's decoders raise whatever their format makes of damage: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise DamageError(printable(f"{error}" or type(error).__name__)) from error
    if image.format == "PNG":
        _check_png(data)
    elif image.format == "TIFF":
        _check_deflate(image, data)
    return image


def reader() -> str:
    """Return what decodes, with versions: decoders of JPEG and WebP differ in pixels."""
    from PIL import __version__, features

    zlib = "zlib-ng" if features.check("zlib_ng") else "zlib"
    jpeg = "libjpeg-turbo" if features.check("libjpeg_turbo") else "libjpeg"
    parts = {
        jpeg: features.version(jpeg.replace("-", "_") if "turbo" in jpeg else "jpg"),
        zlib: features.version(zlib.replace("-", "_")),
        "libwebp": features.version("webp"),
        "libtiff": features.version("libtiff"),
    }
    return ", ".join([f"Pillow {__version__}", *(f"{name} {of}" for name, of in parts.items() if of)])


def _check_size(image: Image, most: int) -> None:
    width, height = image.size
    if width * height > most:
        raise DamageError(
            f"{width} x {height} pixels, and the most is {most:,}: perhaps a decompression bomb"
        )


def _is_cut(image: Any) -> bool:
    """Whether an image that is not loaded yet has more than 8 bits a channel, and its mode has 8."""
    if image.mode.startswith(("I", "F")):
        return False
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8
    if image.format not in ("PNG", "PPM") or not image.tile:
        return False
    # What Pillow's decoder is told: of PNG the layout of a pixel, as "RGB;16B"; of PPM the largest value.
    told = image.tile[0][3]
    if image.format == "PNG":
        return ";16" in str(told)
    return isinstance(told, tuple) and told[-1] > 255


def _check_strips(image: Any) -> None:
    """Raise DamageError unless the strips or tiles of a TIFF that is not loaded yet cover it."""
    # What none covers Pillow leaves black: one changed bit in the height made 5 MB of zeros of 1.5 kB.
    planes = len(image.getbands()) if image.tag_v2.get(_PLANAR) == 2 else 1
    covered = sum((right - left) * (low - top) for _, (left, top, right, low), *_ in image.tile)
    compressed = any(tile[0] == "libtiff" for tile in image.tile)  # which knows of the planes itself
    width, height = image.size
    if covered < width * height * (1 if compressed else planes):
        raise DamageError(f"the file is truncated: its parts do not cover {width} x {height} pixels")


def _check_png(data: bytes) -> None:
    """Raise DamageError unless a PNG's critical chunks are as they were written, up to the last, IEND."""
    # Pillow stops at the last row and checks no sum of IDAT: a changed bit gives other pixels, not an error.
    at, view = 8, memoryview(data)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        if kind[:1].isupper() and crc32(view[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise DamageError(
                f"the file is damaged or truncated: the checksum of {kind!r} at byte {at} is wrong"
            )
        if kind == b"IEND":
            return
        at = end + 4
    raise DamageError("the file is truncated: a PNG ends with IEND")


def _check_deflate(image: Any, data: bytes) -> None:
    """Raise DamageError unless the checksums of a TIFF that is compressed by deflate are right."""
    # libtiff compares some: of 300 changed bits it let 18 pass into the pixels.
    tags = image.tag_v2
    if tags.get(_COMPRESSION) not in _DEFLATE:
        return
    starts, sizes = (tags.get(tag) or () for tag in (_TILES if _TILES[0] in tags else _STRIPS))
    for start, size in zip(starts, sizes, strict=False):
        stream, rest = decompressobj(), data[start : start + size]
        try:
            while rest and not stream.eof:
                stream.decompress(rest, 1 << 20)
                rest = stream.unconsumed_tail
        except zlib_error as error:
            raise DamageError(f"the file is damaged: its part at byte {start}: {error}") from error
        if not stream.eof:
            raise DamageError(f"the file is truncated: its part at byte {start}")


class _Unpadded:
    """Has Pillow pad no truncated image while a thread decodes, whatever it was told."""

    def __init__(self) -> None:
        self._lock, self._threads, self._padded = Lock(), 0, False

    def __enter__(self) -> None:
        from PIL import ImageFile

        with self._lock:
            if not self._threads:
                self._padded, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        from PIL import ImageFile

        with self._lock:
            self._threads -= 1
            if not self._threads:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._padded


_unpadded = _Unpadded()
