"""The scaler is fitted before the data are split.

Symptom: both splits together have mean 0 to the last digit once they are normalised
Cause: the statistics are those of the training and the test split together
Kind: inputs
Rule: 409
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/daxin007/ARMD/issues/5
"""

import torch

from slabnorm.doctor.bugs.task import Case, audited, statistics, table

BAD, GOOD = 1e-4, 1e-2


def run(repaired: bool) -> Case:
    """Normalise a table, then split it."""
    data = table("wine")
    everything = torch.cat([data.x, data.x_test])
    norm = statistics(everything)
    if repaired:
        norm = statistics(data.x)
    off = norm(everything).double().mean(0).abs().max()
    return Case(float(off), audited(norm, data.x_test, train=data.x))
