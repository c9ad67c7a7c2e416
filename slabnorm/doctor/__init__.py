"""The doctor: names normalisation bugs in a model, with the evidence and the fix."""

from slabnorm.doctor.attribute import attribute
from slabnorm.doctor.check import assert_healthy, check
from slabnorm.doctor.watch import WatchRecord, watch

__all__ = ["WatchRecord", "assert_healthy", "attribute", "check", "watch"]
