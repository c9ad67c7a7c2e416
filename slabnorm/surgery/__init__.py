"""Surgery on an existing model: faster norms, other norms, still norms, all in place; and back."""

from slabnorm.surgery.accelerate import accelerate, restore
from slabnorm.surgery.convert import convert
from slabnorm.surgery.freeze import freeze, unfreeze
from slabnorm.surgery.record import Acceleration, Changed, Left, Replaced, Surgery

__all__ = [
    "Acceleration",
    "Changed",
    "Left",
    "Replaced",
    "Surgery",
    "accelerate",
    "convert",
    "freeze",
    "restore",
    "unfreeze",
]
