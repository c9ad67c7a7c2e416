"""Surgery on an existing model: faster norms in place, and back; norms folded, recalibrated, carried over."""

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
from slabnorm.surgery.fold import fold
from slabnorm.surgery.recalibrate import recalibrate
from slabnorm.surgery.record import Acceleration, Changed, Left, Replaced, Surgery

__all__ = [
    "Acceleration",
    "Changed",
    "Foreign",
    "Left",
    "Replaced",
    "Surgery",
    "accelerate",
    "fold",
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
]
