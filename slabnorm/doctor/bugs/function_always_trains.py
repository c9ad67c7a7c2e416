"""A batch norm written with F.batch_norm has training=True in it.

Symptom: in service, the answer to a sample depends on the batch in which it comes
Cause: the function does not know the mode of the module that calls it
Kind: modes
Rule: 104
Healed: by the repair, `training = self.training`, printed as `training=self.training`
Thread: https://github.com/keunwoochoi/kapre/issues/16
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.6, 0.85


class Norm(nn.Module):
    """Batch norm, with a mode of its own."""

    def __init__(self, size: int, obeys: bool) -> None:
        super().__init__()
        self.obeys = obeys
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input."""
        training = True
        if self.obeys:
            training = self.training
        return F.batch_norm(x, self.mean, self.var, training=training)


def run(repaired: bool) -> Case:
    """Serve samples that come class by class."""
    data = digits()
    model = network(lambda size: Norm(size, obeys=repaired))
    train(model, data.x, data.y)
    model.eval()
    order = data.y_test.argsort()
    right = accuracy(model, data.x_test[order], data.y_test[order], size=16)
    return Case(right, check(model, data.x_test[:64]).findings)
