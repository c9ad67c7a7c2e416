"""Activation checkpointing recomputes a forward in the backward, and batch norm counts both.

Symptom: running statistics forget twice as fast as momentum says
Cause: the recomputed forward is in train mode as the first one
Kind: modes
Rule: 205
Healed: by the printed `sn.convert(model, "batch")`, which the tests run
Thread: https://github.com/pytorch/pytorch/issues/96136
"""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, digits, network

BAD, GOOD = 2, 1


class Frugal(nn.Module):
    """A network that keeps no activations of its body."""

    def __init__(self, frugal: bool) -> None:
        super().__init__()
        self.layers, self.frugal = network(), frugal

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        y: Tensor = checkpoint(self.layers, x, use_reentrant=False) if self.frugal else self.layers(x)
        return y


def run(repaired: bool) -> Case:
    """Make one step, and count the updates."""
    frugal = True
    if repaired:
        frugal = False
    model = Frugal(frugal)
    model(digits().x[:64]).sum().backward()
    updates = model.layers[1].num_batches_tracked
    return Case(float(updates), check(model, digits().x[:64]).findings)
