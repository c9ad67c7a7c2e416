"""Norm layers: SlabNorm, and the five names everybody knows as patterns over it."""

from slabnorm.nn.layers import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from slabnorm.nn.norm import SlabNorm

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "SlabNorm"]
