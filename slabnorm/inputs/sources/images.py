"""Images: one decoded whole from its bytes or not at all, data sets of them, and folders."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from zlib import crc32, decompressobj
from zlib import error as zlib_error

import numpy as np

from slabnorm.errors import DataError
from slabnorm.inputs.sources.base import (
    Block,
    Columns,
    MismatchError,
    NamedBlock,
    Schema,
    Shard,
    Source,
    Unreadable,
    dtype_name,
)
from slabnorm.inputs.sources.files import FoundFile
from slabnorm.inputs.split import Hint, path_hints
from slabnorm.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image


# An image from its bytes, by Pillow: decoded whole, or not at all.
#
# Pixels count as they are stored: images are not turned by their EXIF orientation, on which statistics per
# channel do not depend, and colour profiles are not applied.

# Pillow's default. It is fixed here, so that changing Pillow's limit does not change what is read.
PIXELS = 89_478_485
# Numbers of TIFF tags.
_BITS_PER_SAMPLE, _COMPRESSION, _PLANAR = 258, 259, 284
_DEFLATE = (8, 32946)
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets and sizes
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")


class DamageError(Exception):
    """An image that cannot be decoded whole, and why."""


class DepthError(Exception):
    """A colour image of more than 8 bits a channel, of which Pillow keeps 8."""


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
            if _loses_bits(image):
                raise DepthError(image.mode)
            if image.format == "TIFF":
                _check_strips(image)
            image.load()
    except (DamageError, DepthError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DamageError(f"no image of the kinds {', '.join(_FORMATS)}, or its header is damaged") from None
    # Pillow's decoders raise many types for damage: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise DamageError(printable(f"{error}" or type(error).__name__)) from error
    if image.format == "PNG":
        _check_png(data)
    elif image.format == "TIFF":
        _check_deflate(image, data)
    return image


def reader() -> str:
    """Return the decoders and their versions, as pixels of JPEG and WebP depend on them."""
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


def _loses_bits(image: Any) -> bool:
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
    # Pillow leaves the rest black: one changed bit in the height made 5 MB of zeros from 1.5 kB.
    planes = len(image.getbands()) if image.tag_v2.get(_PLANAR) == 2 else 1
    covered = sum((right - left) * (low - top) for _, (left, top, right, low), *_ in image.tile)
    compressed = any(tile[0] == "libtiff" for tile in image.tile)  # libtiff's tiles cover all planes
    width, height = image.size
    if covered < width * height * (1 if compressed else planes):
        raise DamageError(f"the file is truncated: its parts do not cover {width} x {height} pixels")


def _check_png(data: bytes) -> None:
    """Raise DamageError unless a PNG's critical chunks are as they were written, up to the last, IEND."""
    # Pillow does not check the checksums of IDAT: a changed bit would give other pixels instead of an error.
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
    # libtiff checks only some: of 300 changed bits, 18 reached the pixels.
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
    """Keeps Pillow from padding truncated images while any thread decodes, whatever the process has set."""

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

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
SHARD_BYTES = 2 << 20  # of compressed images, 20 to 250 ms of decoding: few images still fill all cores
MOST_BYTES = 1 << 30  # the largest file that is read for one image

CONVERT = ("L", "RGB", "RGBA")
_MODES = {**dict.fromkeys(CONVERT), "I;16": None, "I;16B": "I;16", "I;16L": "I;16"}
_WIDE = frozenset(("I", "F", "I;16", "I;16B", "I;16L", "I;16N"))  # with more than 8 bits
_CONVERT_ALL = 'convert all images, as with convert="RGB"'


def is_image(path: str) -> bool:
    """Whether a file's name is that of an image; names that begin with a dot are hidden."""
    name = path.rpartition("/")[2]
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def label_of(path: object) -> str:
    """Return a file's name for messages and ledgers, whole but without characters that terminals act on."""
    return printable(path, 4096)


def shard_runs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and the last file of each shard, by the files' sizes.

    >>> shard_runs([1 << 20, 1 << 20, 1 << 19])
    [(0, 2), (2, 3)]
    """
    runs, first, held = [], 0, 0
    for number, size in enumerate(sizes, 1):
        held += max(0, size)
        if held >= SHARD_BYTES:
            runs.append((first, number))
            first, held = number, 0
    return [*runs, (first, len(sizes))] if first < len(sizes) else runs


def decoding_bytes(sizes: Iterable[int]) -> int:
    """Return about how much memory the decoding of images takes, one after another."""
    # JPEG at quality 90 is a tenth of its pixels; Pillow holds them in 4 bytes each, and a copy in 3.
    return max((32 * size for size in sizes), default=0) + (1 << 20)


@dataclass(frozen=True)
class ImageMode:
    """The mode that all images of a data set have.

    Attributes:
        mode: Pillow's name for it; "" while none has been seen.
        convert: the mode that every image is converted to; "" for none.
    """

    mode: str = ""
    convert: str = ""

    def block_of(self, name: str, data: bytes | Unreadable) -> NamedBlock | Unreadable:
        """Return an image as a block of one sample, or that it cannot be read.

        Raises:
            MismatchError: it is of another mode.
        """
        if isinstance(data, Unreadable):
            return data
        try:
            image = decode_named(data, name)
        except DamageError as error:
            return Unreadable(name, str(error), problem="Damaged image:")
        return NamedBlock(name, _pixels_of(self._check(image, name)))

    def with_first(self, data: bytes, name: str) -> tuple[ImageMode, Schema]:
        """Return the mode that the first image decides, and what all samples have in common.

        Raises:
            MismatchError: a mode that counts by conversion only.
            DamageError: it cannot be decoded.
        """
        image = decode_named(data, name)
        known = self if self.convert else replace(self, mode=_MODES.get(image.mode) or image.mode)
        block = _pixels_of(known._check(image, name))
        sizes = tuple(block.shape[1:])
        return known, Schema((sizes[0], None, None), dtype_name(block), seen=sizes)

    def _check(self, image: Image, name: str) -> Image:
        """Return an image of this mode, converted if that was asked for."""
        mode = image.mode
        if self.convert:
            return self._convert(image, name)
        if mode not in _MODES:
            raise MismatchError(
                f"Images of mode {mode} do not count as they are: {name}",
                f"those of the modes {', '.join(_MODES)} do",
                "give arrays of these pixels instead, as a .npy file" if mode in _WIDE else _CONVERT_ALL,
            )
        if (_MODES[mode] or mode) != self.mode:
            raise MismatchError(
                f"Images of different modes: {name}",
                f"mode {mode}, where the first image has {self.mode}",
                f"{_CONVERT_ALL}, or take this one out",
            )
        return image

    def _convert(self, image: Image, name: str) -> Image:
        if image.mode in _WIDE and image.mode != self.convert:
            raise MismatchError(
                f"Conversion to {self.convert} would drop bits: {name}",
                f"mode {image.mode}, of which 8 bits would be left",
                "convert such images first, and choose the scaling",
            )
        if self.convert != "RGBA":
            image.info.pop("transparency", None)  # of which Pillow would warn
        try:
            return image if image.mode == self.convert else image.convert(self.convert)
        except ValueError as error:  # Pillow has no way from LAB to L
            raise MismatchError(
                f"Cannot convert to {self.convert}: {name}",
                str(error),
                'convert such images first, or all to RGB: convert="RGB"',
            ) from error


def decode_named(data: bytes, name: str) -> Image:
    """Return an image with its pixels.

    Raises:
        MismatchError: it has more bits than are read.
        DamageError: it cannot be decoded whole.
    """
    try:
        return decode(data)
    except DepthError as error:
        raise MismatchError(
            f"More than 8 bits a channel count only where an image is grey: {name}",
            f"mode {error}, stored with more bits, of which Pillow keeps 8",
            "convert such images first, and choose the scaling; or give arrays of uint16",
        ) from None


def _pixels_of(image: Image) -> np.ndarray:
    """Return an image as one sample, (1, channels, height, width); a view of Pillow's order."""
    pixels = np.asarray(image)
    return pixels[None, None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)[None]


@dataclass(frozen=True)
class ImageShard(Shard):
    """Some images."""

    mode: ImageMode = ImageMode()

    def files(self) -> Iterator[tuple[str, bytes | Unreadable]]:
        """Yield each image's name and bytes, or that these cannot be had.

        Raises:
            DataError: the shard as a whole cannot be read.
        """
        raise NotImplementedError

    def blocks(self) -> Iterator[Block | Columns | Unreadable | NamedBlock]:
        """Yield the images, each a block of its own."""
        for name, data in self.files():
            yield self.mode.block_of(name, data)


class ImageSource(Source):
    """Images, of one mode and of any size, each a sample of shape (channels, height, width).

    Args:
        name: how messages call it.
        shards: its shards, whose images' mode is not known yet.
        hints: what it says about its split.
        convert: the mode that images are converted to; None for none.
    """

    unit = "image"
    order = (1, 2, 0)
    pattern = "n c h w -> c"
    whole = True

    def __init__(
        self, name: str, shards: Sequence[ImageShard], hints: tuple[Hint, ...], convert: str | None
    ) -> None:
        self.name, self.hints, self.reader = name, hints, reader()
        self._shards, self._convert = shards, convert or ""
        self._first: tuple[ImageMode, Schema] | None = None

    def shards(self) -> list[Shard]:
        """Return runs of images, about 2 MB of files each."""
        mode, _ = self._first_image()
        return [replace(shard, mode=mode) for shard in self._shards]

    def schema(self) -> Schema:
        """Return what all images have in common, by the first that can be decoded."""
        return self._first_image()[1]

    def _first_image(self) -> tuple[ImageMode, Schema]:
        if self._first is None:
            self._first = self._find_first()
        return self._first

    def _find_first(self) -> tuple[ImageMode, Schema]:
        why = ""
        for shard in self._shards:
            try:
                for name, data in shard.files():
                    try:
                        if not isinstance(data, Unreadable):
                            return ImageMode(convert=self._convert).with_first(data, name)
                        why = why or f"{data.name}: {data.why}"
                    except DamageError as error:
                        why = why or f"{name}: {error}"
            except MismatchError:
                raise
            except DataError as error:
                why = why or str(error).split("\n")[0]
        problem = "No image can be read" if why else "No images"
        raise DataError(f"{problem}: {self.name}", why, "look at the files, and at the path")


# Folders of images, searched recursively.


@dataclass(frozen=True)
class FolderShard(ImageShard):
    """Some images of a folder."""

    folder: str = ""
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    def files(self) -> Iterator[tuple[str, bytes | Unreadable]]:
        """Yield each file's name and bytes."""
        for name, size in zip(self.names, self.sizes, strict=True):
            path = os.path.join(self.folder, name)
            label = label_of(path)
            yield label, read_image_file(path, label, size)


def folder_source(folder: str, files: Sequence[FoundFile], convert: str | None) -> ImageSource:
    """Return the source of the images in a folder.

    Args:
        folder: where they are.
        files: their names, sorted.
        convert: the mode that they are converted to; None for none.
    """
    inside = {os.path.dirname(os.path.join(folder, file.name)) for file in files}
    inside |= {
        os.path.dirname(os.path.realpath(os.path.join(folder, file.name))) for file in files if file.is_link
    }
    hints = (*path_hints([folder]), *path_hints((f"{path}/" for path in sorted(inside)), folder))
    return ImageSource(label_of(Path(folder)), list(_folder_shards(folder, files)), hints, convert)


def _folder_shards(folder: str, files: Sequence[FoundFile]) -> Iterator[FolderShard]:
    for number, (first, last) in enumerate(shard_runs([file.size for file in files])):
        names, sizes = (tuple(getattr(file, at) for file in files[first:last]) for at in ("name", "size"))
        digest = blake2b(digest_size=16)
        for file in files[first:last]:
            line = f"{file.name}\0{file.size}\0{file.changed}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        more = f" and {last - first - 1} more" if last - first > 1 else ""
        yield FolderShard(
            number,
            label_of(Path(folder, names[0])) + more,
            digest.hexdigest(),
            sum(map(abs, sizes)),
            decoding_bytes(sizes),
            folder=folder,
            names=names,
            sizes=sizes,
        )


def read_image_file(path: str, label: str, size: int) -> bytes | Unreadable:
    """Return the bytes of a file that had a size when it was listed, or why they cannot be had."""
    if size > MOST_BYTES:
        return Unreadable(label, f"{size:,} bytes, and the most for one image is {MOST_BYTES:,}")
    try:
        # Not mapped into memory: if the file shrank meanwhile, that would end the process.
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    except OSError as error:
        return Unreadable(label, error.strerror or str(error))
    if len(data) != size:
        return Unreadable(label, f"{len(data):,} bytes, {size:,} when the folder was listed")
    return data
