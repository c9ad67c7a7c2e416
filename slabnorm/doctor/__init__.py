"""The doctor: names normalisation bugs in a model, with the evidence and the fix."""

from slabnorm.doctor.check import assert_healthy, check

__all__ = ["assert_healthy", "check"]
