"""The doctor: names normalisation bugs in a model, with the evidence and the fix."""

from slabnorm.doctor.attribute import attribute
from slabnorm.doctor.check import assert_healthy, check
from slabnorm.doctor.fixes import Fixes, fixes
from slabnorm.doctor.watch import WatchRecord, watch

__all__ = ["Fixes", "WatchRecord", "assert_healthy", "attribute", "check", "fixes", "watch"]
