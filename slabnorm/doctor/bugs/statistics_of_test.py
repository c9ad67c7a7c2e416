"""The scaler is fitted on the test split, too: fit_transform() where transform() is meant.

Symptom: the normalised test split has mean 0 to the last digit, which no held-out data have
Cause: its statistics are its own
Kind: inputs
Rule: 409
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/d2l-ai/d2l-en/issues/843
"""

from slabnorm.doctor.bugs.task import Case, audited, statistics, table

BAD, GOOD = 1e-4, 1e-2


def run(repaired: bool) -> Case:
    """Normalise the test split of a table."""
    data = table("wine")
    norm = statistics(data.x_test)
    if repaired:
        norm = statistics(data.x)
    off = norm(data.x_test).double().mean(0).abs().max()
    return Case(float(off), audited(norm, data.x_test, train=data.x))
