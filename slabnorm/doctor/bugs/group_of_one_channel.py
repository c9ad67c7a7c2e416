"""As many groups as channels: a converter takes 16 groups for 16 channels.

Symptom: test accuracy is that of chance
Cause: each channel of each image loses its mean, and means are all that global pooling hands on
Kind: structure
Rule: 305
Healed: by the repair, `groups = 2`, printed as `such as 2`
Thread: https://github.com/meta-pytorch/opacus/pull/580
"""

import torch
from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, images, train

BAD, GOOD = 0.3, 0.6


def run(repaired: bool) -> Case:
    """Train a network that ends with a norm and global pooling."""
    data = digits()
    groups = 16
    if repaired:
        groups = 2
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, bias=False), nn.GroupNorm(groups, 16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    train(model, images(data.x), data.y, epochs=6)
    findings = check(model, images(data.x[:64])).findings
    return Case(accuracy(model, images(data.x_test), data.y_test), findings)
