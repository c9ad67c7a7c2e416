"""Inputs are normalised by the mean and standard deviation of their own batch, in service too.

Symptom: accuracy is that of chance where requests come one by one
Cause: a batch of one minus its mean is 0
Kind: inputs
Rule: 104
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/deepinv/deepinv/issues/908
"""

from torch import Tensor, nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.3, 0.85


class Standardise(nn.Module):
    """Subtract the mean and divide by the standard deviation."""

    def __init__(self, x: Tensor, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("std", x.std(0))

    def forward(self, x: Tensor) -> Tensor:
        """Return inputs of about mean 0 and variance 1."""
        mean, std = x.mean(0), x.std(0, correction=0)
        if self.fixed:
            mean, std = self.mean, self.std
        return (x - mean) / (std + 0.1)


def run(repaired: bool) -> Case:
    """Serve one sample at a time."""
    data = digits()
    model = nn.Sequential(Standardise(data.x, fixed=repaired), network())
    train(model, data.x, data.y)
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test, size=1), check(model, data.x_test[:64]).findings)
