"""A labelled data set in memory, checked, its stratified split, and the two that scikit-learn brings."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slabnorm.errors import DataError, OptionError
from slabnorm.text import printable

SPLIT_SEED = 0
SHARES = (0.6, 0.2, 0.2)
VALIDATION_SHARE = 1 / 6  # of the training samples, where a test split is given: 10,000 of MNIST's 60,000
SMALLEST_CLASS = 5
PATCH = 28  # pixels along each side of what the photographs are cut into
STRIPS = (14, 4, 4)  # columns of patches for training, validation and test, from left to right


@dataclass(frozen=True)
class Split:
    """Three disjoint sets of sample numbers that together are all samples."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples and their classes.

    Args:
        x: (n, features), or (n, channels, height, width); raw values as they were stored.
        y: (n,) class numbers from 0.
        classes: the classes' names, in the order of the numbers.
        name: what to call the data set.
        axes: how the axes of the source were read, one sentence.
        notes: what was left out or converted on the way.
        value_range: the smallest and largest value there can be, where that is known beforehand.
        given_split: the split that comes with the data; without it one is drawn.
        split_by: how the given split was made, one sentence.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    classes: tuple[str, ...]
    name: str
    axes: str
    notes: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None
    given_split: Split | None = None
    split_by: str = (
        f"{SHARES[0]:.0%} training, {SHARES[1]:.0%} validation and {SHARES[2]:.0%} test samples, "
        f"stratified by class with seed {SPLIT_SEED}"
    )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample: (features,) or (channels, height, width)."""
        return self.x.shape[1:]

    @property
    def pattern(self) -> str:
        """The slab of the input statistics: per feature, or per channel of an image."""
        return "n f -> f" if self.x.ndim == 2 else "n c h w -> c"

    @cached_property
    def split(self) -> Split:
        """That of the data; else 60 % train, 20 % validation and 20 % test, by class, from a fixed seed."""
        if self.given_split is not None:
            return self.given_split
        from sklearn.model_selection import train_test_split

        every = np.arange(len(self.y))
        train, rest = train_test_split(
            every, test_size=SHARES[1] + SHARES[2], stratify=self.y, random_state=SPLIT_SEED
        )
        validation, test = train_test_split(
            rest,
            test_size=SHARES[2] / (SHARES[1] + SHARES[2]),
            stratify=self.y[rest],
            random_state=SPLIT_SEED,
        )
        return Split(train, validation, test)

    def subset(self, samples: int, held_out: int | None = None, seed: int = SPLIT_SEED) -> Dataset:
        """Return the same data with fewer samples, chosen at random from each class by its share.

        Of one seed, a smaller subset is part of a larger one.

        Args:
            samples: the largest number of training samples.
            held_out: the largest number of validation samples, and of test samples; by default the same.
            seed: of the choice.

        Raises:
            OptionError: no integers, or fewer than one sample per class.

        >>> from slabnorm.study.data import digits
        >>> few = digits().subset(100, 50)
        >>> [len(part) for part in (few.split.train, few.split.validation, few.split.test)]
        [100, 50, 50]
        """
        wanted = (samples, samples if held_out is None else held_out)
        for number in wanted:
            if not isinstance(number, Integral) or isinstance(number, bool) or number < len(self.classes):
                problem = "The samples of a subset must be an integer, one for each class or more"
                raise OptionError(problem, f"{printable(repr(number))}, {len(self.classes)} classes")
        train = stratified(self.split.train, self.y, wanted[0], seed)
        validation, test = (
            stratified(part, self.y, wanted[1], seed) for part in (self.split.validation, self.split.test)
        )
        train, validation, test = (mixed(part, self.y, seed) for part in (train, validation, test))
        chosen = np.concatenate((train, validation, test))
        ends = np.cumsum([len(train), len(validation)])
        parts = Split(*np.split(np.arange(len(chosen)), ends))
        kept = f"of which {len(train)}, {len(validation)} and {len(test)} were drawn with seed {seed}"
        return replace(
            self,
            x=self.x[chosen],
            y=self.y[chosen],
            given_split=parts,
            split_by=f"{self.split_by}; {kept}" if len(chosen) < len(self.y) else self.split_by,
        )


def mixed(numbers: NDArray[np.int64], y: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """Return sample numbers as they are, or in random order if the samples come class by class.

    Who looks at the first few samples is to see all classes.
    """
    if np.all(np.diff(y[numbers]) >= 0):
        return np.random.default_rng(seed).permutation(numbers)
    return numbers


def stratified(numbers: NDArray[Any], y: NDArray[Any], count: int, seed: int) -> NDArray[np.int64]:
    """Return at most `count` of these sample numbers, drawn so that each class keeps its share.

    Every class is shuffled, and the sample in place i of n gets the rank (i + 1/2) / n. Those of the lowest
    ranks are taken, so that fewer samples are part of more.
    """
    shuffled = np.random.default_rng(seed).permutation(numbers)
    ranks = np.empty(len(shuffled))
    for label in np.unique(y[shuffled]):
        of_class = y[shuffled] == label
        size = int(of_class.sum())
        ranks[of_class] = (np.arange(size) + 0.5) / size
    chosen = shuffled[np.argsort(ranks, kind="stable")[:count]]
    return np.sort(chosen).astype(np.int64)


def from_arrays(x: Any, y: Any, name: str = "arrays", notes: tuple[str, ...] = ()) -> Dataset:
    """Return a checked data set of arrays or CPU tensors.

    The axes are read by one rule. (n, features) is a table. (n, height, width) are images of one
    channel. Of four axes, the channels are the shorter of the second and the last; the second on a tie.

    Args:
        x: (n, features), (n, h, w), (n, c, h, w) or (n, h, w, c); integers, booleans or real numbers.
        y: n labels of any kind that can be sorted: numbers, text.
        name: what to call the data set.

    Raises:
        DataError: lengths that differ, a wrong number of axes, object arrays, complex numbers, a value
            that is not finite, a single class, or a class too small to be split.
    """
    x, y = as_array(x, "x", name), as_array(y, "y", name)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    check_kinds(x, y, name)
    x, axes = read_axes(x, name)
    values, numbers = np.unique(y, return_inverse=True)
    check_classes(values, np.bincount(numbers), name)
    classes = tuple(printable(value.item()) for value in values)
    return Dataset(x, numbers.astype(np.int64), classes, printable(name), axes, notes)


def from_splits(
    train: tuple[Any, Any], test: tuple[Any, Any], name: str, notes: tuple[str, ...] = ()
) -> Dataset:
    """Return a checked data set whose test split is given; validation is taken out of the training samples.

    Args:
        train: x and y, as of `from_arrays`.
        test: the same.
        name: what to call the data set.
        notes: what was left out or converted on the way.

    Raises:
        DataError: as of `from_arrays`; or the samples of the two differ in shape or dtype, or too few of a
            class are training samples.
    """
    parts = [(as_array(x, "x", name), as_array(y, "y", name)) for x, y in (train, test)]
    for (x, y), part in zip(parts, ("training", "test"), strict=True):
        check_kinds(x, y, f"the {part} data of {name}")
    kinds = [f"{x.dtype} of shape {x.shape[1:]}, labels {y.dtype}" for x, y in parts]
    if kinds[0] != kinds[1]:
        problem = f"Training and test samples of different kinds: {printable(name)}"
        raise DataError(problem, f"{kinds[0]}, and {kinds[1]}", "convert them to one shape and dtype")
    x, y = (np.concatenate(both) for both in zip(*parts, strict=True))
    data = from_arrays(x, y, name, notes)
    count = len(parts[0][1])
    counts = np.bincount(data.y[:count], minlength=len(data.classes))
    check_classes(np.array(data.classes), counts, f"the training data of {name}")
    validation = stratified(np.arange(count), data.y, round(count * VALIDATION_SHARE), SPLIT_SEED)
    training = np.setdiff1d(np.arange(count), validation)
    split = Split(training, validation, np.arange(count, len(data.y)))
    share = f"1/{round(1 / VALIDATION_SHARE)}"
    by = (
        f"the test samples that come with the data; {share} of its training samples for validation, "
        f"stratified by class with seed {SPLIT_SEED}"
    )
    return replace(data, given_split=split, split_by=by)


def as_array(values: Any, which: str, name: str) -> NDArray[Any]:
    """Return an array that torch can take: this machine's byte order, and no wider than it knows.

    Raises:
        DataError: nested lists of different lengths, or a tensor that is no plain CPU tensor.
    """
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{which} of {printable(name)} is no array", printable(error), "give numpy arrays"
        ) from error
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    if array.dtype.kind == "u" and array.dtype.itemsize > 2:
        return array.astype(np.int64 if array.dtype.itemsize < 8 else np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def check_kinds(x: NDArray[Any], y: NDArray[Any], name: str) -> None:
    """Raise DataError unless `x` holds finite real numbers and `y` one label for each of its samples."""
    where = printable(name)
    if x.dtype.kind not in "biuf":
        raise DataError(
            f"x of {where} must hold integers, booleans or real numbers",
            f"dtype {x.dtype}",
            "convert x to numbers",
        )
    if y.dtype.kind not in "biufUS" or y.ndim != 1:
        raise DataError(
            f"y of {where} must be one axis of labels: integers, numbers or text",
            f"dtype {y.dtype}, shape {y.shape}",
            "give one label for each sample; not one-hot",
        )
    if x.ndim == 0 or len(x) != len(y):
        raise DataError(
            f"x and y of {where} must have one entry for each sample",
            f"x has shape {x.shape}, y {y.shape}",
            "check which axis of x is the samples: it is the first",
        )
    if x.size == 0:
        raise DataError(f"No samples: {where}", f"x has shape {x.shape}", "give some")
    for label, array in (("x", x), ("y", y)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            count = int((~np.isfinite(array)).sum())
            raise DataError(
                f"NaN or infinite values in {label} of {where}",
                f"{count} of them, the first at {label}{list(first)}",
                "drop or impute these samples before the study",
            )


def read_axes(x: NDArray[Any], name: str) -> tuple[NDArray[Any], str]:
    """Return `x` as (n, features) or (n, channels, height, width), and how it was read.

    Raises:
        DataError: not two, three or four axes.
    """
    shape = tuple(int(size) for size in x.shape)
    if x.ndim == 2:
        return x, f"{shape} read as (samples, features)"
    if x.ndim == 3:
        return x[:, None], f"{shape} read as (samples, height, width), one channel"
    if x.ndim == 4 and shape[1] <= shape[3]:
        return x, f"{shape} read as (samples, channels, height, width): the second axis is not the longer"
    if x.ndim == 4:
        moved = np.ascontiguousarray(np.moveaxis(x, 3, 1))
        return moved, f"{shape} read as (samples, height, width, channels): the last axis is the shorter"
    raise DataError(
        f"x of {printable(name)} must have two axes (a table), three or four (images)",
        f"shape {shape}",
        "reshape x to (samples, features) or (samples, channels, height, width)",
    )


def check_classes(values: NDArray[Any], counts: NDArray[Any], name: str) -> None:
    """Raise DataError for a single class, or for a class with too few samples to be split in three."""
    where = printable(name)
    if len(values) < 2:
        raise DataError(
            f"One class only, {printable(values[0].item())!r}: {where}",
            "a comparison needs two classes or more",
            "give samples of another class",
        )
    small = int(counts.argmin())
    if counts[small] < SMALLEST_CLASS:
        raise DataError(
            f"Too few samples of class {printable(values[small].item())!r} to be split in three: {where}",
            f"{counts[small]}, at least {SMALLEST_CLASS} ({len(values)} classes)",
            "add samples, merge classes, or check that y holds classes and not measurements",
        )


def digits() -> Dataset:
    """Return scikit-learn's handwritten digits: 1797 images of 8x8, raw values 0 to 16, 10 classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = from_arrays(bunch.images, bunch.target, "scikit-learn digits")
    return replace(data, value_range=(0.0, 16.0))


def photos() -> Dataset:
    """Return grey patches of scikit-learn's two photographs, 28x28, 0 to 255; each photograph is a class.

    The patches do not overlap. They are split by strips of each photograph, from left to right, so that only
    patches on either side of two lines are neighbours in different splits: at random, most of a test patch's
    neighbours would be training samples.
    """
    from sklearn.datasets import load_sample_images

    bunch = load_sample_images()
    height, width = (size // PATCH for size in bunch.images[0].shape[:2])
    patches = []
    for photo in bunch.images:
        # The brightness of ITU-R BT.601, as Pillow rounds it.
        grey = (photo.astype(np.int64) @ np.array([19595, 38470, 7471]) + (1 << 15)) >> 16
        cut = grey[: height * PATCH, : width * PATCH].astype(np.uint8)
        patches.append(cut.reshape(height, PATCH, width, PATCH).swapaxes(1, 2))
    x = np.stack(patches)  # (photograph, row, column, height, width)
    photograph, _, column = np.indices(x.shape[:3]).reshape(3, -1)
    data = from_arrays(x.reshape(-1, PATCH, PATCH), photograph, "scikit-learn photographs")
    strip = np.searchsorted(np.cumsum(STRIPS), column, side="right")
    names = tuple(printable(os.path.splitext(os.path.basename(path))[0]) for path in bunch.filenames)
    by = (
        f"columns of patches, from the left {STRIPS[0]} for training, then {STRIPS[1]} for validation and "
        f"{STRIPS[2]} for test"
    )
    split = Split(*(np.flatnonzero(strip == part) for part in range(3)))
    return replace(data, classes=names, given_split=split, split_by=by)
