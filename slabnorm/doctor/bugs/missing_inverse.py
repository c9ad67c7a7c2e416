"""Predictions of a network that learned normalised targets are read in the unit of the targets.

Symptom: R^2 is far below 0
Cause: the inverse of the normalisation of targets is missing
Kind: inputs
Rule: 402
Healed: by the repair, `.inverse(`
Thread: https://github.com/yuqinie98/PatchTST/issues/110
"""

import torch
from torch.nn import functional as F

from slabnorm.doctor.bugs.task import Case, audited, digits, explained, network, statistics, train

BAD, GOOD = 0.0, 0.9


def run(repaired: bool) -> Case:
    """Predict how much ink is in a digit, in the grey levels of the file."""
    data = digits()
    y, y_test = (16 * x.sum(1, keepdim=True) for x in (data.x, data.x_test))
    targets = statistics(y)
    model = network(outputs=1)
    train(model, data.x, targets(y), rate=0.01, epochs=6, loss=F.mse_loss)
    model.eval()
    with torch.no_grad():
        predicted = model(data.x_test)
    if repaired:
        predicted = targets.inverse(predicted)
    return Case(explained(predicted, y_test), audited(targets, predicted))
