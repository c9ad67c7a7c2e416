"""timm: the `pretrained_cfg` of a model, and the `config.json` in which the hub has it.

Documented by timm: `pretrained_cfg` holds mean, std and input_size = (channels, height, width) beside
interpolation, crop_pct and more. Images are scaled to 0..1 before, and then y = (x - mean) / std. Read are
the dict or the object of the class PretrainedCfg, what `timm.data.resolve_data_config` returns, and a
`config.json` or its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slabnorm.contracts.formats.found import Found
from slabnorm.contracts.formats.images import SCALED, channels
from slabnorm.contracts.formats.json_file import begins, in_file, object_of, read_object
from slabnorm.contracts.formats.objects import attribute, class_of, numbers, unusable
from slabnorm.text import printable

TITLE = "timm's pretrained_cfg"
KEY = "image"
CLASS = "timm.models._pretrained.PretrainedCfg"
FIELDS = {"mean", "std", "input_size"}


def recognises(source: Any) -> bool:
    """Whether a source is a pretrained_cfg, or a file or folder with one."""
    if isinstance(source, Path):
        return b'"pretrained_cfg"' in begins(_file(source))
    return class_of(source) == CLASS or (type(source) is dict and source.keys() >= FIELDS)


def read(source: Any) -> dict[str, Found]:
    """Return the one key, "image".

    Raises:
        DataError: the file is damaged, or its numbers cannot be used.
    """
    if isinstance(source, Path):
        where = printable(_file(source))
        plain = read_object(_file(source))
        config = object_of(plain.get("pretrained_cfg"), "pretrained_cfg", where)
        with in_file(where):
            return _found(config)
    if not recognises(source):
        raise unusable(KEY, f"a {class_of(source)}", "give the pretrained_cfg of a model, or its config.json")
    return _found(source)


def _file(path: Path) -> Path:
    return path / "config.json" if path.is_dir() else path


def _found(config: Any) -> dict[str, Found]:
    mean, std, size = (attribute(config, name, KEY) for name in ("mean", "std", "input_size"))
    if not isinstance(size, list | tuple) or len(size) != 3 or not all(type(n) is int for n in size):
        raise unusable(KEY, "its input_size is not (channels, height, width)", "write three integers there")
    found = channels(KEY, mean, std, "timm", SCALED)
    width = numbers(mean, "mean", KEY).numel()
    if width != size[0]:
        raise unusable(KEY, f"it has {width} means, and images of another number of channels in input_size")
    return found
