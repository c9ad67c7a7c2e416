"""Tests of slabnorm/inputs."""
