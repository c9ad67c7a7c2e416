"""The evaluation runs without model.eval().

Symptom: the answer to a sample depends on the batch in which it comes
Cause: batch norm is in train mode, and normalises by the batch that it is given
Kind: modes
Rule: 101
Healed: by the printed `model.eval()`, which the tests run
Thread: https://github.com/wolny/pytorch-3dunet/issues/53
"""

from slabnorm.doctor import watch
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.6, 0.85


def run(repaired: bool) -> Case:
    """Evaluate on samples that come class by class, as files in folders do."""
    data = digits()
    order = data.y_test.argsort()
    model = network()
    with watch(model) as seen:
        train(model, data.x, data.y)
        if repaired:
            model.eval()
        right = accuracy(model, data.x_test[order], data.y_test[order], size=16)
    return Case(right, seen.findings)
