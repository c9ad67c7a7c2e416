"""A model is traced before model.eval(), and the trace keeps the mode.

Symptom: in service, the answer to a sample depends on the batch in which it comes
Cause: training=True is a constant of the trace, which eval() does not reach
Kind: modes
Rule: 104
Healed: by the repair, `model.eval()`
Thread: https://github.com/microsoft/onnxruntime/issues/26584
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, train

BAD, GOOD = 0.6, 0.85


class Net(nn.Module):
    """A network that calls batch norm as a function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(64, 32, bias=False), nn.Linear(32, 10)
        self.register_buffer("mean", torch.zeros(32))
        self.register_buffer("var", torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        y = F.batch_norm(self.first(x), self.mean, self.var, training=self.training)
        return self.last(y.relu())


def run(repaired: bool) -> Case:
    """Export, and serve samples that come class by class."""
    data = digits()
    model = Net()
    train(model, data.x, data.y)
    if repaired:
        model.eval()
    exported = torch.fx.symbolic_trace(model).eval()
    order = data.y_test.argsort()
    right = accuracy(exported, data.x_test[order], data.y_test[order], size=16)
    return Case(right, check(exported, data.x_test[:64]).findings)
