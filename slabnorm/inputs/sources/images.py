"""Images: one decoded whole from its bytes or not at all; and what folders and tars of them share."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from threading import Lock
from typing import TYPE_CHECKING, Any
from zlib import crc32, decompressobj
from zlib import error as zlib_error

import numpy as np

from slabnorm.errors import DataError, OptionError
from slabnorm.inputs.sources.base import (
    Bad,
    Block,
    Columns,
    MismatchError,
    Named,
    Schema,
    Shard,
    Source,
    dtype_name,
)
from slabnorm.inputs.split import Hint
from slabnorm.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image


# An image from its bytes, by Pillow: decoded whole, or not at all.
#
# Pixels count as they are stored: an orientation in EXIF turns none, as statistics per channel do not depend
# on it, and colour profiles are not applied.

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


# What folders and tars of images share: their mode, how they are cut into shards, and the source.

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)  # fmt: skip
SHARD_BYTES = 2 << 20  # of compressed images, 20 to 250 ms of decoding: few images still fill all cores
BYTES = 1 << 30  # the largest file that is read for one image

CONVERT = ("L", "RGB", "RGBA")
_MODES = {**dict.fromkeys(CONVERT), "I;16": None, "I;16B": "I;16", "I;16L": "I;16"}
_WIDE = frozenset(("I", "F", "I;16", "I;16B", "I;16L", "I;16N"))  # which 8 bits do not hold


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image: by its suffix; names that begin with a dot are hidden."""
    path = PurePath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def shown(name: object) -> str:
    """Return a file's name for messages and ledgers: unique, and nothing in it that a terminal acts on."""
    return printable(name, 4096)


def cut(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and the last file of each shard, by the files' sizes.

    >>> cut([1 << 20, 1 << 20, 1 << 19])
    [(0, 2), (2, 3)]
    """
    parts, first, held = [], 0, 0
    for number, size in enumerate(sizes, 1):
        held += max(0, size)
        if held >= SHARD_BYTES:
            parts.append((first, number))
            first, held = number, 0
    return [*parts, (first, len(sizes))] if first < len(sizes) else parts


def memory(sizes: Iterable[int]) -> int:
    """Return about how many bytes the decoding of images takes, one after another."""
    # JPEG at quality 90 is a tenth of its pixels; Pillow holds them in 4 bytes each, and a copy in 3.
    return max((32 * size for size in sizes), default=0) + (1 << 20)


@dataclass(frozen=True)
class Form:
    """What all images of a data set are.

    Attributes:
        mode: Pillow's name for it.
        convert: the mode that every image is converted to; "" for none.
    """

    mode: str = ""
    convert: str = ""

    @classmethod
    def of(cls, convert: str | None) -> Form:
        """Return the form that `fit` is asked for.

        Raises:
            OptionError: no mode that images are converted to.
        """
        if convert not in (None, *CONVERT):
            raise OptionError(f"convert is one of {', '.join(CONVERT)}", repr(convert), 'convert="RGB"')
        return cls("", convert or "")

    def read(self, name: str, data: bytes | Bad) -> Named | Bad:
        """Return an image as a block of one sample, or that it cannot be read.

        Raises:
            MismatchError: it is of another mode.
        """
        if isinstance(data, Bad):
            return data
        try:
            image = _decoded(data, name)
        except DamageError as error:
            return Bad(name, str(error))
        return Named(name, _block(self._shaped(image, name)))

    def settled(self, data: bytes, name: str) -> tuple[Form, Schema]:
        """Return the form with the mode of the first image, and what all samples have in common.

        Raises:
            MismatchError: a mode that counts by conversion only.
            DamageError: it cannot be decoded.
        """
        image = _decoded(data, name)
        form = self if self.convert else replace(self, mode=_MODES.get(image.mode) or image.mode)
        block = _block(form._shaped(image, name))
        sizes = tuple(block.shape[1:])
        return form, Schema((sizes[0], None, None), dtype_name(block), seen=sizes)

    def _shaped(self, image: Image, name: str) -> Image:
        mode = image.mode
        if self.convert:
            if mode in _WIDE and mode != self.convert:
                raise MismatchError(
                    f"conversion to {self.convert} keeps 8 bits",
                    f"{name}: mode {mode}, which has more",
                    "convert such images first, and choose the scaling",
                )
            if self.convert != "RGBA":
                image.info.pop("transparency", None)  # of which Pillow would warn
            try:
                return image if mode == self.convert else image.convert(self.convert)
            except ValueError as error:  # Pillow has no way from LAB to L
                raise MismatchError(
                    f"images are converted to {self.convert}",
                    f"{name}: {error}",
                    'convert such images first, or all to RGB (convert="RGB", --convert RGB)',
                ) from error
        if mode not in _MODES:
            raise MismatchError(
                f"images of the modes {', '.join(_MODES)} count as they are, others converted",
                f"{name}: mode {mode}",
                "give arrays of these pixels instead, as a .npy file"
                if mode in _WIDE
                else 'convert all images, as with convert="RGB" (--convert RGB)',
            )
        if (_MODES[mode] or mode) != self.mode:
            raise MismatchError(
                f"all images of a data set have one mode; the first is {self.mode}",
                f"{name}: mode {mode}",
                'convert all images, as with convert="RGB" (--convert RGB), or take this one out',
            )
        return image


@dataclass(frozen=True)
class ImageShard(Shard):
    """Some images."""

    form: Form = Form()

    def files(self) -> Iterator[tuple[str, bytes | Bad]]:
        """Yield each image's name and bytes, or that these cannot be had.

        Raises:
            DataError: the shard as a whole cannot be read.
        """
        raise NotImplementedError

    def blocks(self) -> Iterator[Block | Columns | Bad | Named]:
        """Yield the images, each a block of its own."""
        for name, data in self.files():
            yield self.form.read(name, data)


class ImageSource(Source):
    """Images, of one mode and of any size, each a sample of shape (channels, height, width).

    Args:
        name: how messages call it.
        parts: its shards, whose images' mode is not known yet.
        hints: what it says about its split.
        form: what its images are to be.
    """

    unit = "image"
    order = (1, 2, 0)
    pattern = "n c h w -> c"
    whole = True

    def __init__(self, name: str, parts: list[ImageShard], hints: tuple[Hint, ...], form: Form) -> None:
        self.name, self.hints, self.reader = name, hints, reader()
        self._parts, self._form = parts, form
        self._settled: tuple[Form, Schema] | None = None

    def shards(self) -> list[Shard]:
        """Return runs of images, about 2 MB of files each."""
        form, _ = self._first()
        return [replace(part, form=form) for part in self._parts]

    def schema(self) -> Schema:
        """Return what all images have in common, by the first that can be decoded."""
        return self._first()[1]

    def _first(self) -> tuple[Form, Schema]:
        if self._settled is None:
            self._settled = self._settle()
        return self._settled

    def _settle(self) -> tuple[Form, Schema]:
        why = ""
        for part in self._parts:
            try:
                for name, data in part.files():
                    try:
                        if not isinstance(data, Bad):
                            return self._form.settled(data, name)
                        why = why or f"{data.name}: {data.why}"
                    except DamageError as error:
                        why = why or f"{name}: {error}"
            except MismatchError:
                raise
            except DataError as error:
                why = why or error.got
        rule = "some image of a data set can be read" if why else "a data set holds images"
        raise DataError(rule, why or f"{self.name} has none", "look at the files, and at the path")


def _decoded(data: bytes, name: str) -> Image:
    try:
        return decode(data)
    except DepthError as error:
        raise MismatchError(
            "images of more than 8 bits a channel count only where they are grey, as I;16",
            f"{name}: mode {error}, stored with more, of which 8 would be left",
            "convert such images first, and choose the scaling; or give arrays of uint16",
        ) from None


def _block(image: Image) -> np.ndarray:
    """Return an image as one sample, (1, channels, height, width); a view of Pillow's order."""
    pixels = np.asarray(image)
    return pixels[None, None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)[None]
