"""How many samples of a data set were in the training data, from the training sketch alone.

The sketch says of every hash below its bound whether it was seen. Hashes are uniform, so that the distinct
samples of the new data below the bound are a fair sample of all, and

    share = seen / told        interval: Clopper and Pearson, 95%

("The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika, 1934).
Sampling is without replacement: where most samples are told, the interval is wider than it need be.
"""

from __future__ import annotations

import numpy as np

from slabnorm.inputs.beside import Beside
from slabnorm.inputs.sketch import Sketch
from slabnorm.report.audit import Finding, Leaked, LeakedSample, Overlap

LEVEL = 0.95
ALL = 1 << 64


def overlap_of(sketch: Sketch, beside: Beside, samples: int) -> Overlap | None:
    """Return the estimate; None where the statistics keep no sketch.

    Args:
        sketch: of the training data.
        beside: what was counted of the new data.
        samples: of the new data.
    """
    if not len(sketch.hashes):
        return None
    bound = min(sketch.bound, beside.sketch.bound)
    hashes = beside.sketch.hashes
    hashes = hashes if bound == ALL else hashes[hashes < np.uint64(bound)]
    told, found = len(hashes), int(np.isin(hashes, sketch.hashes, assume_unique=True).sum())
    if bound == ALL:
        share = found / told
        return Overlap(told, found, share, share, share, told, True)
    low, high = interval(found, told)
    repeated = told / beside.told if bound == sketch.bound and beside.told else 1.0
    distinct = round(samples * repeated) if bound == sketch.bound else round(told * (ALL / bound))
    return Overlap(told, found, found / told if told else 0.0, low, high, min(distinct, samples), False)


def leaked_of(sketch: Sketch, beside: Beside) -> Leaked | None:
    """Return which samples were in the training data, as far as the sketch can tell; None if none was."""
    if not beside.leaked:
        return None
    # Every hash below the bound can be told, and hashes are uniform.
    about = beside.leaked if sketch.bound == ALL else round(beside.leaked * (ALL / sketch.bound))
    samples = tuple(LeakedSample(name, row) for name, row in beside.places)
    return Leaked(samples, beside.leaked, about, sketch.bound == ALL)


def interval(found: int, told: int) -> tuple[float, float]:
    """Return the exact binomial interval of `found / told`.

    >>> interval(0, 100)[1]  # doctest: +ELLIPSIS
    0.0362...
    """
    from scipy.stats import beta

    if not told:
        return 0.0, 1.0
    tail = (1 - LEVEL) / 2
    low = float(beta.ppf(tail, found, told - found + 1)) if found else 0.0
    high = float(beta.ppf(1 - tail, found + 1, told - found)) if found < told else 1.0
    return low, high


def find_overlap(
    overlap: Overlap | None, sketch: Sketch, beside: Beside, train_samples: int, samples: int
) -> list[Finding]:
    """Return what to say of it: leaked samples, or rows that are alike by nature."""
    if overlap is None or not overlap.found:
        return []
    repeats = 1 - overlap.told / max(beside.told, overlap.told)
    natural = natural_share(sketch, repeats, train_samples, samples)
    numbers = (
        ("share", overlap.share), ("low", overlap.low), ("high", overlap.high), ("told", overlap.told),
        ("found", overlap.found), ("distinct", overlap.distinct), ("natural", natural),
    )  # fmt: skip
    if overlap.low <= natural:
        text = (
            f"identical to training samples: {amount(overlap)}; these data repeat themselves, so that "
            "about as many would be alike in any two parts of them"
        )
        advice = "deduplicate before splitting, or evaluate on samples that training has not seen"
        return [Finding("duplicates", "warning", text, advice, numbers=numbers)]
    text = f"identical to training samples: {amount(overlap)}"
    advice = (
        "take these samples, which are listed, out of one of the two, as what is measured on them says "
        "nothing of new ones; "
        "where samples are alike by nature, deduplicate before splitting"
    )
    return [Finding("overlap", "error", text, advice, numbers=numbers)]


def natural_share(sketch: Sketch, repeats: float, train_samples: int, samples: int) -> float:
    """Return what share of new samples has a twin among `train_samples` because data repeat themselves.

    A new sample has a twin in training as often as a training sample has another one there: up to twice the
    share of samples that are repeats. Repeats within the new data say the same of fewer samples, and become
    more with their number.
    """
    kept = len(sketch.hashes)
    whole = sketch.bound == ALL
    distinct = kept if whole else kept * (ALL / sketch.bound) * (1 + 3 / kept**0.5)
    in_train = max(0.0, 1 - distinct / max(1, train_samples))
    return min(1.0, max(2 * in_train, 2 * repeats * max(1.0, train_samples / max(1, samples))))


def amount(overlap: Overlap) -> str:
    """Return how many samples, as text."""
    total = f"{overlap.distinct:,} distinct samples"
    if overlap.exact:
        return f"{overlap.found:,} of {total} ({100 * overlap.share:.3g}%)"
    about = round(overlap.share * overlap.distinct)
    ends = f"95% interval {100 * overlap.low:.2g} to {100 * overlap.high:.2g}%"
    return f"about {about:,} of {total} ({100 * overlap.share:.2g}%, {ends})"
