"""track_running_stats=False is set to be rid of a gap between training and evaluation.

Symptom: in service, the answer to a sample depends on the batch in which it comes
Cause: without running statistics, batch norm pools its batch in eval mode, too
Kind: modes
Rule: 104
Healed: by the repair, `track_running_stats=repaired`, printed as `track_running_stats=True`
Thread: https://github.com/TengdaHan/DPC/issues/21
"""

from functools import partial

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.6, 0.85


def run(repaired: bool) -> Case:
    """Serve samples that come class by class."""
    data = digits()
    model = network(partial(nn.BatchNorm1d, track_running_stats=repaired))
    train(model, data.x, data.y)
    model.eval()
    order = data.y_test.argsort()
    right = accuracy(model, data.x_test[order], data.y_test[order], size=16)
    return Case(right, check(model, data.x_test[:64]).findings)
