"""Hugging Face transformers: image processors, and the `preprocessor_config.json` that they are saved to.

Documented by transformers: y = (x * rescale_factor - image_mean) / image_std, channel by channel, of pixels x
between 0 and 255, if `do_rescale` and `do_normalize` are true. The contract takes these pixels, and the
factor is part of its statistics: mean = image_mean / rescale_factor, std = image_std / rescale_factor. A
processor that does not rescale does not say which values its pixels have. A file that does not say
`do_rescale` or `rescale_factor`, as old ones, has the documented defaults: true, and 1/255.

Refused, with the reason: processors that compute something else besides (`rescale_offset`, `offset`,
`include_top`, `do_flip_channel_order`), those that do not normalise or say no mean, and feature extractors
for audio, which normalise every recording by its own statistics, or a spectrogram that they compute before.

Read are a processor, such as that of CLIP; `preprocessor_config.json`; `processor_config.json`, in which the
processor of images is an entry; and a folder with one of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from slabnorm.contracts.formats.found import Found, last_axes_of
from slabnorm.contracts.formats.images import RAW, SCALED, channels
from slabnorm.contracts.formats.json_file import begins, in_file, object_of, read_object, write_json
from slabnorm.contracts.formats.objects import attribute, class_of, numbers, unusable
from slabnorm.contracts.key import Key, name_of
from slabnorm.contracts.statistics import Statistics
from slabnorm.errors import ContractError
from slabnorm.inputs.normalizer import FeatureNorm, InputNorm
from slabnorm.inputs.schemes import ZScore
from slabnorm.text import printable

if TYPE_CHECKING:
    from slabnorm.contracts.contract import Contract

TITLE = "transformers' preprocessor_config.json"
KEY = "pixel_values"  # as models of transformers call their images
FILES = ("preprocessor_config.json", "processor_config.json")
MARKS = (b'"image_processor_type"', b'"feature_extractor_type"', b'"image_mean"', b'"image_processor"')
INSIDE = ("image_processor", "feature_extractor")  # the parts of a processor of several kinds of inputs
BASES = {
    "transformers.image_processing_base.ImageProcessingMixin",
    "transformers.feature_extraction_utils.FeatureExtractionMixin",
    "transformers.processing_utils.ProcessorMixin",
}
BESIDES = ("rescale_offset", "offset", "include_top", "do_flip_channel_order")  # fields of further steps
FACTOR = 1 / 255


def recognises(source: Any) -> bool:
    """Whether a source is a processor of transformers, its file, or a folder with it."""
    if isinstance(source, Path):
        start = begins(_file(source))
        return start.lstrip().startswith(b"{") and any(mark in start for mark in MARKS)
    return any(f"{kind.__module__}.{kind.__qualname__}" in BASES for kind in type(source).__mro__)


def read(source: Any) -> dict[str, Found]:
    """Return the one key, "pixel_values".

    Raises:
        DataError: the file is damaged, or the processor computes something else.
    """
    if isinstance(source, Path):
        where = printable(_file(source))
        plain = read_object(_file(source))
        inside = next((plain[name] for name in INSIDE if name in plain), plain)
        plain = object_of(inside, "The processor", where)
        with in_file(where):
            return _found(plain)
    if not recognises(source):
        raise unusable(KEY, f"a {class_of(source)}", "give an image processor, or its file")
    inside = next((getattr(source, name) for name in INSIDE if hasattr(source, name)), source)
    return _found(inside.to_dict())


def write(contract: Contract, path: Path) -> None:
    """Write the one key of images as `preprocessor_config.json`.

    Written are do_normalize, image_mean, image_std, do_rescale and rescale_factor. A file that is there
    already keeps what else it says: the class of the processor, sizes, cropping.

    Raises:
        ContractError: there is not one key of images, it is scaled otherwise, or it does not say which values
            pixels have.
        DataError: the file that is there is damaged, or says that the processor computes something else.
        OptionError: the file cannot be written.
    """
    keys = {name: (key, norm) for name, (key, norm) in contract.entries().items() if norm is not None}
    if len(keys) != 1:
        raise ContractError(f"{TITLE} holds one key", f"the contract has {len(keys)}", "write a smaller one")
    ((name, (key, norm)),) = keys.items()
    before = read_object(path) if path.exists() else {}
    plain = {**before, **_plain(name, key, norm)}
    _found(plain)  # what was there before must not change what these numbers mean
    write_json(path, plain)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    return next((path / name for name in FILES if (path / name).is_file()), path / FILES[0])


def _found(config: dict[str, Any]) -> dict[str, Found]:
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or "a processor"
    kind = printable(kind, 60) if isinstance(kind, str) else "a processor"
    if "sampling_rate" in config or "num_mel_bins" in config:
        why = "normalises recordings by their own statistics, or features that it computes of them"
        raise unusable(KEY, f"{kind} {why}", "leave this to the feature extractor")
    if config.get("do_normalize") is not True:
        fix = "if it only rescales, fit a key with the scheme slabnorm.FixedScale(0, 255)"
        raise unusable(KEY, f"{kind} does not say do_normalize: true", fix)
    besides = [name for name in BESIDES if config.get(name)]
    if besides:
        raise unusable(KEY, f"{kind} does more than to rescale and to normalise: {', '.join(besides)}")
    mean, std = (attribute(config, name, KEY) for name in ("image_mean", "image_std"))
    rescale, factor = config.get("do_rescale", True), config.get("rescale_factor", FACTOR)
    if type(rescale) is not bool:
        raise unusable(KEY, f"do_rescale of {kind} is neither true nor false")
    if not rescale:
        return channels(KEY, mean, std, "transformers", None)
    found = numbers(factor, "rescale_factor", KEY)
    if found.dim() or not found.item() > 0:
        raise unusable(KEY, f"rescale_factor of {kind} is no number above 0")
    return channels(KEY, mean, std, "transformers", RAW, found.item())


def _plain(name: str, key: Key, norm: FeatureNorm) -> dict[str, Any]:
    """Return the fields that say how a key is normalised.

    Raises:
        ContractError: they cannot say it.
    """
    found, scheme = Statistics.of(norm), norm.scheme
    raw = key.valid == RAW or (isinstance(norm, InputNorm) and norm.record.dtype == "uint8")
    why, fix = "", "write slabnorm's own file with Contract.save"
    if key.role != "input" or last_axes_of(norm) != "images":
        why = f"{key.pattern!r}, {key.role}, are not the channels of images (n, c, h, w) that go into a model"
    elif scheme != ZScore() or found.mean is None or found.std is None:
        why, fix = f"it has mean and standard deviation, and the key is scaled by {scheme}", "take ZScore()"
    elif bool((norm.scale.cpu() != found.std).any()):
        why = "a channel has no spread, by which transformers would divide"
    elif not raw and key.valid != SCALED:
        why = "nobody says whether pixels go from 0 to 255 or are scaled to 0 to 1"
        fix = "say it: slabnorm.Key(..., valid=(0, 255)), or valid=(0, 1)"
    if why or found.mean is None or found.std is None:
        raise ContractError(f"{TITLE} cannot hold key {name_of(name)}", why, fix)
    factor = FACTOR if raw else 1.0
    return {
        "do_normalize": True,
        "do_rescale": True,
        "image_mean": (found.mean * factor).tolist(),
        "image_std": (found.std * factor).tolist(),
        "rescale_factor": FACTOR,
    }
