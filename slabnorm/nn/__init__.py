"""Norm layers: SlabNorm, and the five names everybody knows as patterns over it."""

from slabnorm.nn.named import BatchNorm, GroupNorm, InstanceNorm
from slabnorm.nn.norm import SlabNorm
from slabnorm.nn.tokens import LayerNorm, RMSNorm

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "SlabNorm"]
