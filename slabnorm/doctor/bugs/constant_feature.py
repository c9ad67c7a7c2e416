"""A pixel that never varied in training is divided by next to nothing.

Symptom: accuracy in service is low
Cause: its standard deviation is 0, so that the least noise of the camera becomes a million
Kind: inputs
Rule: 401
Healed: by the printed `sn.fit(x_train, "zscore", split="train")`, which the tests run
Thread: https://github.com/huggingface/lerobot/pull/239
"""

import torch
from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.5, 0.8


def run(repaired: bool) -> Case:
    """Serve images of a camera that has a little noise."""
    data = digits()
    noise = 0.01 * torch.randn(data.x_test.shape, generator=torch.Generator().manual_seed(1))
    mean, std = data.x.mean(0), data.x.std(0) + 1e-8
    if repaired:
        std = torch.where(std > 0.01, std, torch.ones_like(std))
    x, served = (data.x - mean) / std, (data.x_test + noise - mean) / std
    model = network(nn.Identity)
    train(model, x, data.y, rate=0.03)
    model.eval()
    return Case(accuracy(model, served, data.y_test), check(model, served[:64]).findings)
