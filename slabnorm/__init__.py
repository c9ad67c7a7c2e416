"""slabnorm: every normalisation is the same formula over a different slab."""

import importlib
from typing import TYPE_CHECKING, Any

from slabnorm import interrupt

if interrupt.started_as_command():
    interrupt.catch()  # now, as what follows takes seconds

from slabnorm._version import __version__ as __version__
from slabnorm.errors import SlabError, SlabWarning

if TYPE_CHECKING:
    from slabnorm.contracts import Contract, Key, contract, fit_contract
    from slabnorm.contracts.return_scale import ReturnScale
    from slabnorm.contracts.reversible import Reversible
    from slabnorm.contracts.running import RunningInputNorm
    from slabnorm.doctor.attribute import attribute
    from slabnorm.doctor.callbacks import LightningWatch as LightningWatch
    from slabnorm.doctor.callbacks import TensorBoardLog
    from slabnorm.doctor.callbacks import TrainerWatch as TrainerWatch
    from slabnorm.doctor.check import assert_healthy, check
    from slabnorm.doctor.fixes import fixes
    from slabnorm.doctor.watch import watch
    from slabnorm.functional import moments, normalize
    from slabnorm.inputs import FixedScale, InputNorm, MinMax, QuantileRange, Robust, ZScore, fit, load, save
    from slabnorm.inputs.audit import audit
    from slabnorm.inputs.sklearn import SlabScaler as SlabScaler
    from slabnorm.mergeable_moments import Moments
    from slabnorm.nn import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, SlabNorm
    from slabnorm.study import compare
    from slabnorm.study.claims import claims
    from slabnorm.surgery.accelerate import accelerate, restore
    from slabnorm.surgery.convert import convert
    from slabnorm.surgery.fold import fold
    from slabnorm.surgery.freeze import freeze, unfreeze
    from slabnorm.surgery.recalibrate import recalibrate
    from slabnorm.surgery.virtual_batch import virtual_batch

# Without SlabScaler, LightningWatch and TrainerWatch: an import of * has to work without their packages.
__all__ = [
    "BatchNorm",
    "Contract",
    "FixedScale",
    "GroupNorm",
    "InputNorm",
    "InstanceNorm",
    "Key",
    "LayerNorm",
    "MinMax",
    "Moments",
    "QuantileRange",
    "RMSNorm",
    "ReturnScale",
    "Reversible",
    "Robust",
    "RunningInputNorm",
    "SlabError",
    "SlabNorm",
    "SlabWarning",
    "TensorBoardLog",
    "ZScore",
    "accelerate",
    "assert_healthy",
    "attribute",
    "audit",
    "check",
    "claims",
    "compare",
    "contract",
    "convert",
    "fit",
    "fit_contract",
    "fixes",
    "fold",
    "freeze",
    "load",
    "moments",
    "normalize",
    "recalibrate",
    "restore",
    "save",
    "unfreeze",
    "virtual_batch",
    "watch",
]

# Names are loaded when they are first used: `slabnorm --help` need not wait for torch and Numba, 3 s.
# No module of this folder may have one of these names: importing it would set the name to the module.
_ROOMS = {
    "slabnorm.contracts": ("Contract", "Key", "contract", "fit_contract"),
    "slabnorm.contracts.return_scale": ("ReturnScale",),
    "slabnorm.contracts.reversible": ("Reversible",),
    "slabnorm.contracts.running": ("RunningInputNorm",),
    "slabnorm.doctor": ("assert_healthy", "attribute", "check", "fixes", "watch"),
    "slabnorm.doctor.callbacks": ("LightningWatch", "TensorBoardLog", "TrainerWatch"),
    "slabnorm.functional": ("moments", "normalize"),
    "slabnorm.inputs": (
        "FixedScale",
        "InputNorm",
        "MinMax",
        "QuantileRange",
        "Robust",
        "ZScore",
        "fit",
        "load",
        "save",
    ),
    "slabnorm.inputs.audit": ("audit",),
    "slabnorm.inputs.sklearn": ("SlabScaler",),
    "slabnorm.mergeable_moments": ("Moments",),
    "slabnorm.nn": ("BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "SlabNorm"),
    "slabnorm.study": ("compare",),
    "slabnorm.study.claims": ("claims",),
    "slabnorm.surgery": (
        "accelerate",
        "convert",
        "fold",
        "freeze",
        "recalibrate",
        "restore",
        "unfreeze",
        "virtual_batch",
    ),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in ("contracts", "doctor", "functional", "inputs", "kernels", "nn", "study", "surgery"):
        return importlib.import_module(f"slabnorm.{name}")
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'slabnorm' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_ROOM_OF[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
