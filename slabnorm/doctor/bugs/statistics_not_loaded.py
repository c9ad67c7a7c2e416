"""The evaluation makes its own normaliser of observations instead of loading the trained one.

Symptom: a policy that was good in training is no better than chance
Cause: a new normaliser has mean 0 and variance 1, and leaves observations as they are
Kind: inputs
Rule: 401
Healed: by the printed `sn.fit(x_train, "zscore", split="train")`, which the tests run
Thread: https://github.com/isaac-sim/IsaacLab/issues/2635
"""

import torch
from torch import Tensor, nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, network, table, train

BAD, GOOD = 0.7, 0.9


class Normaliser:
    """Keeps mean and variance of observations beside the policy, and not in its state_dict."""

    def __init__(self, size: int) -> None:
        self.mean, self.var = torch.zeros(size), torch.ones(size)

    def __call__(self, x: Tensor) -> Tensor:
        """Return observations of about mean 0 and variance 1."""
        return (x - self.mean) / self.var.sqrt()


def run(repaired: bool) -> Case:
    """Act on observations of very different units."""
    data = table("wine")
    trained, fresh = Normaliser(13), Normaliser(13)
    trained.mean, trained.var = data.x.mean(0), data.x.var(0)
    policy = network(nn.Identity, inputs=13, outputs=3)
    train(policy, trained(data.x), data.y, epochs=20, size=16, rate=0.01)
    seen = fresh(data.x_test)
    if repaired:
        seen = trained(data.x_test)
    return Case(accuracy(policy, seen, data.y_test), check(policy, seen).findings)
