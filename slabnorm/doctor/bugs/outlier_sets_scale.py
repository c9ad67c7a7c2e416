"""One broken reading in the training data sets the scale of all.

Symptom: test accuracy is that of chance
Cause: the standard deviation is that of the broken reading, so that all others come out alike
Kind: inputs
Rule: 401
Healed: by the printed `sn.fit(x_train, "zscore", split="train")`, which the tests run
Thread: https://github.com/huggingface/lerobot/pull/1985
"""

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.3, 0.8


def run(repaired: bool) -> Case:
    """Normalise by one mean and one standard deviation."""
    data = digits()
    fitted = data.x.clone()
    fitted[7] = 65535.0
    if repaired:
        fitted[7] = data.x[7]
    mean, std = fitted.mean(), fitted.std()
    x, test = (data.x - mean) / std, (data.x_test - mean) / std
    model = network(nn.Identity)
    train(model, x, data.y, rate=0.03)
    return Case(accuracy(model, test, data.y_test), check(model, x[64:128]).findings)
