"""Gradients of 16 pairs are accumulated for one step, as if that were a batch of 32.

Symptom: test accuracy is below that of batches of 32
Cause: batch norm normalises each pair by itself
Kind: modes
Rule: 307
Healed: by the printed `sn.virtual_batch(model, parts, loss)`, which the tests run
Thread: https://github.com/ultralytics/yolov5/issues/1630
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from slabnorm.doctor import watch
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network

BAD, GOOD = 0.75, 0.8


def run(repaired: bool) -> Case:
    """Train with batches of 32, whole or in pairs."""
    data = digits()
    parts = 16
    if repaired:
        parts = 1
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        for some, targets in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (F.cross_entropy(model(some), targets) / parts).backward()
        optimizer.step()

    with watch(model) as seen:
        for x, y in zip(data.x[:1184].split(32), data.y[:1184].split(32), strict=True):
            step(x, y)
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test), seen.findings)
