"""slabnorm: every normalisation is the same formula over a different slab."""

from typing import TYPE_CHECKING, Any

from slabnorm import interrupt

if interrupt.started_as_command():
    interrupt.catch()  # now, as what follows takes seconds

from slabnorm.errors import SlabError, SlabWarning
from slabnorm.functional import moments, normalize
from slabnorm.inputs import FixedScale, InputNorm, MinMax, Robust, ZScore, fit, load, save
from slabnorm.moments import Moments
from slabnorm.nn import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, SlabNorm

if TYPE_CHECKING:
    from slabnorm.inputs.audit import audit
    from slabnorm.inputs.sklearn import SlabScaler
    from slabnorm.study import compare
    from slabnorm.surgery.accelerate import accelerate, restore

__version__ = "0.1.0"
__all__ = [
    "BatchNorm",
    "FixedScale",
    "GroupNorm",
    "InputNorm",
    "InstanceNorm",
    "LayerNorm",
    "MinMax",
    "Moments",
    "RMSNorm",
    "Robust",
    "SlabError",
    "SlabNorm",
    "SlabScaler",
    "SlabWarning",
    "ZScore",
    "accelerate",
    "audit",
    "compare",
    "fit",
    "load",
    "moments",
    "normalize",
    "restore",
    "save",
]


def __getattr__(name: str) -> Any:
    # What loads more than torch loads when it is used.
    if name == "audit":
        from slabnorm.inputs.audit import audit

        return audit
    if name == "SlabScaler":
        from slabnorm.inputs.sklearn import SlabScaler

        return SlabScaler
    if name == "compare":
        from slabnorm.study import compare

        return compare
    if name in ("accelerate", "restore"):
        from slabnorm import surgery

        return getattr(surgery, name)
    raise AttributeError(f"module 'slabnorm' has no attribute {name!r}")
