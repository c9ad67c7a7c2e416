"""Weight decay is for all parameters.

Symptom: the weights of norms shrink, although nothing in the data asks for it
Cause: decay bounds a function by its weights, and a norm undoes their scale but not its own weight's
Kind: structure
Rule: 302
Healed: by sn.fixes
Thread: https://github.com/ultralytics/yolov5/issues/4104
"""

import torch

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, digits, network, train

BAD, GOOD = 0.75, 0.85


def run(repaired: bool) -> Case:
    """Train, and look at the weights of the first norm."""
    data = digits()
    model = network()
    flat = [p for p in model.parameters() if p.dim() == 1]
    full = [p for p in model.parameters() if p.dim() > 1]
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.02)
    if repaired:
        groups = [{"params": full}, {"params": flat, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, 0.05, momentum=0.9, weight_decay=0.02)
    train(model, data.x, data.y, epochs=12, optimizer=optimizer)
    return Case(float(model[1].weight.detach().abs().mean()), check(model, data.x[:64], optimizer).findings)
