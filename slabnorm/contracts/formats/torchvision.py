"""torchvision: `transforms.Normalize`, of both versions of transforms.

Documented by torchvision: output[channel] = (input[channel] - mean[channel]) / std[channel], of images whose
last three axes are channels, height and width. Read are

* `Normalize` itself. It does not say which values its input has.
* a `Compose` with one `Normalize`. Its input has values from 0 to 1 if the transform just before is
  `ToTensor()`, `ConvertImageDtype(torch.float32)` or `ToDtype(torch.float32, scale=True)`.
* what `weights.transforms()` returns for classification, segmentation and video: images scaled to 0..1.

The contract takes what `Normalize` takes: resize, crop and scale images before.
"""

from __future__ import annotations

from typing import Any

import torch

from slabnorm.contracts.formats.found import Found
from slabnorm.contracts.formats.images import SCALED, channels
from slabnorm.contracts.formats.objects import attribute, class_of, unusable

TITLE = "torchvision's Normalize"
KEY = "image"
V1, V2 = "torchvision.transforms.transforms", "torchvision.transforms.v2"
NORMALIZE = (f"{V1}.Normalize", f"{V2}._misc.Normalize")
COMPOSE = (f"{V1}.Compose", f"{V2}._container.Compose")
PRESETS = tuple(
    f"torchvision.transforms._presets.{name}"
    for name in ("ImageClassification", "SemanticSegmentation", "VideoClassification")
)
TO_TENSOR = (f"{V1}.ToTensor", f"{V2}._deprecated.ToTensor")
CONVERT = (f"{V1}.ConvertImageDtype", f"{V2}._misc.ConvertImageDtype")
TO_DTYPE = (f"{V2}._misc.ToDtype",)


def recognises(source: Any) -> bool:
    """Whether an object is a Normalize, a Compose, or what `weights.transforms()` returns."""
    return class_of(source) in (*NORMALIZE, *COMPOSE, *PRESETS)


def read(source: Any) -> dict[str, Found]:
    """Return the one key, "image".

    Raises:
        DataError: there is not one Normalize, or its numbers cannot be used.
    """
    if not recognises(source):
        raise unusable(KEY, f"a {class_of(source)}", "give a Normalize, or a Compose with one")
    valid = SCALED if class_of(source) in PRESETS else None
    if class_of(source) in COMPOSE:
        transforms = list(attribute(source, "transforms", KEY))
        places = [place for place, each in enumerate(transforms) if class_of(each) in NORMALIZE]
        if len(places) != 1:
            fix = "give the Normalize itself"
            raise unusable(KEY, f"a Compose with {len(places)} transforms that are a Normalize", fix)
        place = places[0]
        source = transforms[place]
        valid = SCALED if place and _scales(transforms[place - 1]) else None
    mean, std = attribute(source, "mean", KEY), attribute(source, "std", KEY)
    return channels(KEY, mean, std, "torchvision", valid)


def _scales(transform: Any) -> bool:
    """Whether a transform returns images as floats between 0 and 1."""
    kind = class_of(transform)
    if kind in TO_TENSOR:
        return True
    dtype = getattr(transform, "dtype", None)
    floats = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    return floats and (kind in CONVERT or (kind in TO_DTYPE and getattr(transform, "scale", None) is True))
