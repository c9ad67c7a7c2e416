"""Evidence: the same network under each norm, measured fairly."""

from slabnorm.study.comparison import compare

__all__ = ["compare"]
