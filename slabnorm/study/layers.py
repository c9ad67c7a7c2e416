"""The norms under comparison, each as a function from a channel count to a layer."""

from __future__ import annotations

import torch
from torch import nn

from slabnorm.errors import OptionError
from slabnorm.text import listing, printable

NORMS = ("none", "batch", "layer", "instance", "group")
MOST_GROUPS = 8


def check_norm(name: str) -> None:
    """Raise OptionError unless `name` is one of the norms, or a pattern; PatternError for a bad pattern."""
    if isinstance(name, str) and name in NORMS:
        return
    if isinstance(name, str) and "->" in name:
        from slabnorm.notation import parse

        parse(name)
        return
    raise OptionError(
        f"a norm is {listing(list(NORMS), 'or')}, or a pattern",
        printable(name),
        "for a slab of your own give a pattern such as 'n c ... -> n c'",
    )


def group_count(channels: int) -> int:
    """Return the largest number of groups, 8 at most, that divides the channels."""
    return max(groups for groups in range(1, MOST_GROUPS + 1) if channels % groups == 0)


class NormFactory:
    """A function from a channel count to a fresh norm layer; what `build(norm)` is given.

    Making a layer leaves torch's random stream as it was, so that the weights drawn after it are
    the same whatever the norm. The layers made are kept in `made`.

    Args:
        name: one of NORMS, or a pattern that names its channels `c`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.made: list[nn.Module] = []

    def __call__(self, channels: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            layer = self._make(int(channels))
        self.made.append(layer)
        return layer

    def _make(self, channels: int) -> nn.Module:
        import slabnorm as sn

        match self.name:
            case "none":
                return nn.Identity()
            case "batch":
                return sn.BatchNorm(channels)
            case "layer":
                return sn.SlabNorm("n c ... -> n", c=channels)
            case "instance":
                return sn.InstanceNorm(channels, affine=True)
            case "group":
                return sn.GroupNorm(group_count(channels), channels)
            case pattern:
                return sn.SlabNorm(pattern, c=channels)
