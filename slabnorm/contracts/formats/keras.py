"""Keras: the layer `Normalization`.

Documented by Keras: y = (x - mean) / max(sqrt(variance), epsilon), in which epsilon is
`keras.config.epsilon()`, 1e-7 by default; with `invert=True` the other way round, which is read as an output
of the model. The axes that `axis` names keep statistics of their own. The layer does not say how many values
there were.

A feature whose spread is below epsilon is divided by epsilon. slabnorm divides one without spread by 1, and
any other by its own; the reader warns of such features.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from slabnorm.contracts.formats.found import Found
from slabnorm.contracts.formats.objects import attribute, class_of, numbers, root, statistics, unusable
from slabnorm.contracts.key import Key
from slabnorm.contracts.statistics import Provenance
from slabnorm.errors import DataWarning
from slabnorm.extras import extra
from slabnorm.inputs.schemes import ZScore, first_features

TITLE = "Keras's Normalization"
KEY = "x"


def recognises(source: Any) -> bool:
    """Whether an object is a Normalization of Keras 3."""
    return class_of(source) == "keras.src.layers.preprocessing.normalization.Normalization"


def read(source: Any) -> dict[str, Found]:
    """Return the one key, "x": an input, or an output if the layer has `invert=True`.

    Raises:
        DataError: the layer has no statistics yet, or keeps them along the axis of samples.

    Warns:
        DataWarning: the spread of a feature is below epsilon.
    """
    if not recognises(source):
        raise unusable(KEY, f"a {class_of(source)}", "give a Normalization of Keras 3")
    fix = "call adapt() with the training data before"
    mean, variance = (_numbers(attribute(source, name, KEY, fix), name) for name in ("mean", "variance"))
    if source.input_mean is None and bool((mean == 0).all() and (variance == 1).all()):
        raise unusable(KEY, "mean 0 and variance 1, as before adapt()", fix)
    shape = source.get_build_config()["input_shape"]
    kept = sorted(axis % len(shape) for axis in source.axis)
    if 0 in kept:
        raise unusable(KEY, f"axis={source.axis} keeps statistics along the samples", "name other axes")
    names = [f"a{place}" for place in range(len(shape))]
    pattern = f"{' '.join(['n', *names[1:]])} -> {' '.join(names[axis] for axis in kept)}".rstrip()
    features = tuple(shape[axis] for axis in kept)
    spread = root(variance, KEY).expand(mean.shape).reshape(features)
    _warn_of(spread, float(extra("keras", "reading a layer of Keras", "keras").config.epsilon()))
    found = statistics(KEY, mean=mean.reshape(features), std=spread)
    key = Key(pattern, ZScore(), role="output" if source.invert else "input")
    return {KEY: Found(key, found, tuple(shape[1:]), Provenance("Keras"))}


def _numbers(value: Any, what: str) -> Tensor:
    return numbers(extra("keras", "reading a layer of Keras", "keras").ops.convert_to_numpy(value), what, KEY)


def _warn_of(spread: Tensor, epsilon: float) -> None:
    small = spread < epsilon
    if bool(small.any()):
        warnings.warn(
            f"Keras divides by {epsilon:g} where the spread is below it, at {first_features(small)}; "
            "slabnorm divides by the spread, or by 1 if there is none",
            DataWarning,
            stacklevel=5,
        )
