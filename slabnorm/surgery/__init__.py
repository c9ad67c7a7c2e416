"""Surgery on an existing model: faster norms in place, and back."""

from slabnorm.surgery.accelerate import accelerate, restore
from slabnorm.surgery.record import Acceleration, Left, Replaced

__all__ = ["Acceleration", "Left", "Replaced", "accelerate", "restore"]
