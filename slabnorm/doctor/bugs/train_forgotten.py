"""The first evaluation leaves the model in eval mode, and training goes on in it.

Symptom: accuracy stops where it was at the first evaluation, or falls
Cause: model.train() is called once, before the loop over epochs
Kind: modes
Rule: 102
Healed: by the printed `model.train()`, which the tests run
Thread: https://github.com/facebookresearch/clevr-iep/pull/22
"""

from slabnorm.doctor import watch
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.5, 0.85


def run(repaired: bool) -> Case:
    """Evaluate before each epoch."""
    data = digits()
    model = network()
    with watch(model) as seen:
        for _ in range(4):
            model.eval()
            accuracy(model, data.x_test, data.y_test)
            if repaired:
                model.train()
            train(model, data.x, data.y, epochs=1, rate=0.5)
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test), seen.findings)
