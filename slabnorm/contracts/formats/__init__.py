"""Statistics from and to other programs: a file for each of them, and one table of all.

To read another format, write a file beside these with functions that recognise, read and write it, and add a
row to FORMATS. A reader says what its file says: what is not in there is unknown, never made up. It executes
nothing that it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slabnorm.contracts.formats import (
    anemoi,
    fourcastnet,
    graphcast,
    gymnasium,
    huggingface,
    keras,
    lerobot,
    nnunet,
    openpi,
    plain,
    sklearn,
    stable_baselines3,
    timm,
    torchvision,
)
from slabnorm.contracts.formats.found import Found

if TYPE_CHECKING:
    from slabnorm.contracts.contract import Contract


class Format(NamedTuple):
    """A form in which a program keeps statistics.

    Attributes:
        name: as users say it, such as "lerobot".
        title: what messages call it, such as "LeRobot's meta/stats.json".
        recognises: whether a source is of this format: a Path that exists, or an object in memory. It looks
            at names and at the first bytes, or at the class of an object, and raises nothing.
        read: returns the keys of a source, or raises DataError.
        write: writes a contract to a path; None of a format that is only read.
    """

    name: str
    title: str
    recognises: Callable[[Any], bool]
    read: Callable[[Any], dict[str, Found]]
    write: Callable[[Contract, Path], None] | None = None


FORMATS: tuple[Format, ...] = (
    Format("lerobot", lerobot.TITLE, lerobot.recognises, lerobot.read, lerobot.write),
    Format("openpi", openpi.TITLE, openpi.recognises, openpi.read, openpi.write),
    Format("nnunet", nnunet.TITLE, nnunet.recognises, nnunet.read),
    Format("anemoi", anemoi.TITLE, anemoi.recognises, anemoi.read),
    Format("graphcast", graphcast.TITLE, graphcast.recognises, graphcast.read),
    Format("fourcastnet", fourcastnet.TITLE, fourcastnet.recognises, fourcastnet.read),
    Format(
        "stable-baselines3", stable_baselines3.TITLE, stable_baselines3.recognises, stable_baselines3.read
    ),
    Format("gymnasium", gymnasium.TITLE, gymnasium.recognises, gymnasium.read),
    Format("sklearn", sklearn.TITLE, sklearn.recognises, sklearn.read),
    Format("keras", keras.TITLE, keras.recognises, keras.read),
    Format("torchvision", torchvision.TITLE, torchvision.recognises, torchvision.read),
    Format("timm", timm.TITLE, timm.recognises, timm.read),
    Format("huggingface", huggingface.TITLE, huggingface.recognises, huggingface.read, huggingface.write),
    Format("json", plain.TITLE, plain.recognises, plain.read, plain.write),  # last: most others are JSON, too
)
