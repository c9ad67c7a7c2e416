"""Weights of another framework are converted, and its standard deviations become running_var.

Symptom: the converted model is far worse than the original
Cause: running_var is the variance
Kind: modes
Rule: 203
Healed: by sn.fixes
Thread: https://github.com/tensorflow/tensorflow/issues/42605
"""

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.8, 0.85


def run(repaired: bool) -> Case:
    """Convert a model whose activations are far from 1."""
    data = digits()
    x, test = 0.05 * data.x, 0.05 * data.x_test
    model, converted = network(), network()
    train(model, x, data.y)
    state = model.state_dict()
    for name in ("1.running_var", "4.running_var"):
        if not repaired:
            state[name] = state[name].sqrt()
    converted.load_state_dict(state)
    converted.eval()
    assert isinstance(converted[1], nn.BatchNorm1d)
    return Case(accuracy(converted, test, data.y_test), check(converted, test[:256]).findings)
