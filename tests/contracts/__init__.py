"""Tests of slabnorm/contracts."""
