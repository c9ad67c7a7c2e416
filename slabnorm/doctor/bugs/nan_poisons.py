"""One overflow in half precision makes a NaN, the gradient scaler skips the step, and all seems well.

Symptom: every output is NaN in eval mode
Cause: the forward of that step has entered the running statistics, which no scaler takes back
Kind: modes
Rule: 201
Healed: by sn.fixes
Thread: https://github.com/pytorch/pytorch/issues/88474
"""

import torch
from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.3, 0.85


def run(repaired: bool) -> Case:
    """Train, with one batch that overflows and whose step is skipped."""
    data = digits()
    model = network()
    train(model, data.x, data.y)
    kept = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        model((70000.0 * data.x[:64]).half().float())  # infinite in half precision
    if repaired:
        nn.Module.load_state_dict(model, kept, strict=False)
    train(model, data.x, data.y, epochs=1)
    findings = check(model, data.x[:64]).findings
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test), findings)
