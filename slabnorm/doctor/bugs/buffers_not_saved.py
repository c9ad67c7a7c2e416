"""A checkpoint holds the parameters, and not the buffers.

Symptom: the loaded model is no better than chance
Cause: running statistics are buffers: they are the initial ones after loading
Kind: modes
Rule: 202
Healed: by sn.fixes
Thread: https://github.com/torch/nn/issues/1165
"""

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.6, 0.85


def run(repaired: bool) -> Case:
    """Save, load and evaluate."""
    data = digits()
    model, loaded = network(), network()
    train(model, 0.05 * data.x, data.y)
    checkpoint = dict(model.named_parameters())
    if repaired:
        checkpoint = model.state_dict()
    loaded.load_state_dict(checkpoint, strict=False)
    loaded.eval()
    right = accuracy(loaded, 0.05 * data.x_test, data.y_test)
    return Case(right, check(loaded, 0.05 * data.x_test[:64]).findings)
