"""A layer norm stands at the end of a network with one output.

Symptom: R^2 is 0: the prediction is the same for every input
Cause: layer norm of one value returns its bias
Kind: structure
Rule: 206
Healed: by the repair, `nn.Identity()`
Thread: no public thread known
"""

from torch import nn
from torch.nn import functional as F

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, digits, explained, network, train

BAD, GOOD = 0.1, 0.9


def run(repaired: bool) -> Case:
    """Predict how much ink is in a digit."""
    data = digits()
    y, y_test = ((x.sum(1, keepdim=True) - 20) / 4 for x in (data.x, data.x_test))
    model = nn.Sequential(network(outputs=1), nn.LayerNorm(1))
    if repaired:
        model[1] = nn.Identity()
    train(model, data.x, y, rate=0.01, epochs=6, loss=F.mse_loss)
    findings = check(model, data.x[:64]).findings
    model.eval()
    return Case(explained(model(data.x_test).detach(), y_test), findings)
