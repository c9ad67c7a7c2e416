"""Small weights are set to 0 after training.

Symptom: accuracy falls further than the weights explain
Cause: the running statistics are those of the activations before pruning
Kind: modes
Rule: 203
Healed: by sn.fixes
Thread: https://github.com/anonymous47823493/EagleEye/issues/29
"""

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.75, 0.8


def run(repaired: bool) -> Case:
    """Keep the largest weights of each hidden layer."""
    data = digits()
    model = network()
    train(model, data.x, data.y, epochs=8)
    with torch.no_grad():
        for layer in (model[0], model[3]):
            assert isinstance(layer, nn.Linear)
            layer.weight *= layer.weight.abs() > layer.weight.abs().quantile(0.8)
    if repaired:
        update_bn(data.x.split(100), model)
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test), check(model, data.x[:256]).findings)
