"""Surgery on an existing model: faster norms in place, and back."""

from slabnorm.surgery.accelerate import accelerate, restore
from slabnorm.surgery.record import Acceleration, Left, Replaced
from slabnorm.surgery.virtual_batch import virtual_batch

__all__ = ["Acceleration", "Left", "Replaced", "accelerate", "restore", "virtual_batch"]
