"""Weights of Keras are converted, and eps=1e-3 becomes PyTorch's 1e-5.

Symptom: the outputs of the converted model are others than those of the original
Cause: activations of variance below 1e-3 come out several times too large
Kind: structure
Rule: none
Healed: not tested, nothing is found
Thread: https://github.com/r9y9/tacotron_pytorch/issues/19
"""

from functools import partial

import torch
from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, digits, network, train

BAD, GOOD = 0.1, 1e-6


def run(repaired: bool) -> Case:
    """Convert a model of faint inputs, and compare the outputs."""
    data = digits()
    x, test = 0.06 * data.x, 0.06 * data.x_test
    model = network(partial(nn.BatchNorm1d, eps=1e-3))
    train(model, x, data.y, rate=0.3)
    model.eval()
    eps = 1e-5
    if repaired:
        eps = 1e-3
    converted = network(partial(nn.BatchNorm1d, eps=eps))
    converted.load_state_dict(model.state_dict())
    converted.eval()
    with torch.no_grad():
        off = (converted(test) - model(test)).norm() / model(test).norm()
    return Case(float(off), check(converted, test[:256]).findings)
