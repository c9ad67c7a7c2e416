"""Only the last layer is to be trained, and requires_grad_(False) is all that freezes the rest.

Symptom: the model forgets its first task, whose weights nobody touched
Cause: the running statistics become those of the second task
Kind: modes
Rule: 103
Healed: by sn.fixes
Thread: https://github.com/ultralytics/ultralytics/pull/8753
"""

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.7, 0.85


def run(repaired: bool) -> Case:
    """Train a new head on other images, and put the old one back."""
    data = digits()
    model, other = network(), 1 - data.x
    train(model, data.x, data.y)
    body, head = model[:6], model[6]
    body.requires_grad_(False)
    model[6] = network()[6]
    if repaired:
        body.eval()
        body.train = lambda mode=True: body  # type: ignore[method-assign]
    train(model, other, data.y, epochs=2)
    findings = check(model, other[:64]).findings
    model[6] = head
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test), findings)
