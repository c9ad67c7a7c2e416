"""Kinds of data, one file each; `open_source` tells which."""

from slabnorm.inputs.sources.base import (
    Block,
    BrokenShard,
    Columns,
    NamedBlock,
    Shard,
    Source,
    Stream,
    Unreadable,
)
from slabnorm.inputs.sources.memory import is_frame
from slabnorm.inputs.sources.open import open_source

__all__ = [
    "Block",
    "BrokenShard",
    "Columns",
    "NamedBlock",
    "Shard",
    "Source",
    "Stream",
    "Unreadable",
    "is_frame",
    "open_source",
]
