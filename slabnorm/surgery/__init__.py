"""Surgery on an existing model, in place: norms made faster, other, still, exact, or folded; and back."""

from slabnorm.surgery.accelerate import accelerate, restore
from slabnorm.surgery.conventions import (
    Foreign,
    from_flax,
    from_gemma,
    from_keras,
    from_onnx,
    to_flax,
    to_gemma,
    to_keras,
    to_onnx,
)
from slabnorm.surgery.convert import convert
from slabnorm.surgery.fold import fold
from slabnorm.surgery.freeze import freeze, unfreeze
from slabnorm.surgery.recalibrate import recalibrate
from slabnorm.surgery.record import Acceleration, Changed, Left, Replaced, Surgery
from slabnorm.surgery.virtual_batch import virtual_batch

__all__ = [
    "Acceleration",
    "Changed",
    "Foreign",
    "Left",
    "Replaced",
    "Surgery",
    "accelerate",
    "convert",
    "fold",
    "freeze",
    "from_flax",
    "from_gemma",
    "from_keras",
    "from_onnx",
    "recalibrate",
    "restore",
    "to_flax",
    "to_gemma",
    "to_keras",
    "to_onnx",
    "unfreeze",
    "virtual_batch",
]
