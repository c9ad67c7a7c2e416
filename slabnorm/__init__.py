"""slabnorm: every normalisation is the same formula over a different slab."""

from slabnorm.errors import SlabError, SlabWarning
from slabnorm.functional import moments, normalize
from slabnorm.moments import Moments
from slabnorm.nn import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, SlabNorm

__version__ = "0.1.0"
__all__ = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Moments",
    "RMSNorm",
    "SlabError",
    "SlabNorm",
    "SlabWarning",
    "moments",
    "normalize",
]
