"""The univariate sets of NIST's Statistical Reference Datasets.

https://www.itl.nist.gov/div898/strd/univ/homepage.html certifies mean and standard deviation (ddof=1) to 15
digits. `python -m tests.inputs.nist` prints how many of these slabnorm and scikit-learn find, and how many
of the exact statistics of the values as float64 holds them.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import mpmath
import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

import slabnorm as sn
from tests.inputs.nist_tables import LEW, LOTTERY, MAVRO, MICHELSO
from tests.inputs.oracle import mean_var

CHUNK = 64  # rows, in what is read in chunks


class Certified(NamedTuple):
    """A data set, and what NIST certifies of it."""

    name: str
    values: list[float]
    mean: float
    sd: float

    @property
    def column(self) -> np.ndarray:
        """The values as a table of one column."""
        return np.array(self.values, dtype=np.float64)[:, None]

    def target(self) -> tuple[float, float]:
        """Return what is certified."""
        return self.mean, self.sd


def alternating(first: float, low: float, high: float) -> list[float]:
    """Return 1001 values: `first`, and then `low` and `high` in turn."""
    return [first, *([low, high] * 500)]


def pi_digits() -> list[float]:
    """Return the 5000 digits that NIST certifies: those of pi, 3 among them, but for one.

    Where pi has ...577805..., as number 957, NIST's file has ...577305...; its mean is that of the file. With
    pi's own digits it would be 4.5358, not 4.5348.
    """
    with mpmath.workdps(5010):
        digits = [float(digit) for digit in mpmath.nstr(+mpmath.pi, 5005).replace(".", "")[:5000]]
    if digits[954:959] != [7, 7, 8, 0, 5]:
        raise AssertionError("not the digits of pi")
    digits[956] = 3.0
    return digits


SETS = [
    Certified("Lew", LEW, -177.435000000000, 277.332168044316),
    Certified("Lottery", LOTTERY, 518.958715596330, 291.699727470969),
    Certified("Mavro", MAVRO, 2.00185600000000, 0.000429123454003053),
    Certified("Michelso", MICHELSO, 299.852400000000, 0.0790105478190518),
    Certified("PiDigits", pi_digits(), 4.53480000000000, 2.86733906028871),
    Certified("NumAcc1", [10000001.0, 10000003.0, 10000002.0], 10000002.0, 1.0),
    Certified("NumAcc2", alternating(1.2, 1.1, 1.3), 1.2, 0.1),
    Certified("NumAcc3", alternating(1000000.2, 1000000.1, 1000000.3), 1000000.2, 0.1),
    Certified("NumAcc4", alternating(10000000.2, 10000000.1, 10000000.3), 10000000.2, 0.1),
]


def lre(found: float, certified: float) -> float:
    """Return the log relative error: how many digits are right, 15 at most."""
    error = abs(found - certified) / abs(certified)
    return min(15.0, -math.log10(error)) if error else 15.0


def attainable(data: Certified) -> tuple[float, float]:
    """Return the LRE of mean and sd that float64 leaves within reach of exact arithmetic.

    A value like 10000000.1 is no float64; its nearest is off by u, at most half a unit in the last place.
    This moves the mean by at most u, and the sd, which is a norm of the deviations, by at most that norm of
    the errors: u * sqrt(n / (n - 1)). NumAcc4: u = 9.3e-10 beside a sd of 0.1, so 8 digits are certain.
    """
    n = len(data.values)
    whole = all(value == int(value) for value in data.values)
    u = 0.0 if whole else math.ulp(max(map(abs, data.values))) / 2
    moved = u / abs(data.mean), u * math.sqrt(n / (n - 1)) / data.sd
    mean, sd = (min(15.0, -math.log10(part)) if part else 15.0 for part in moved)
    return mean, sd


def chunks(data: Certified) -> list[np.ndarray]:
    """Return the column in pieces."""
    return [data.column[start : start + CHUNK] for start in range(0, len(data.values), CHUNK)]


def of_fit(data: Certified) -> tuple[float, float]:
    """Return mean and sd as `slabnorm.fit` has them."""
    found = sn.fit(iter(chunks(data)), sn.ZScore(ddof=1), split="train")
    return found.shift.item(), found.scale.item()


def of_moments(data: Certified) -> tuple[float, float]:
    """Return mean and sd as `slabnorm.mergeable_moments` has them."""
    found = sn.moments(torch.from_numpy(data.column), "n c -> c")
    return found.mean.item(), found.std(ddof=1).item()


def of_scaler(data: Certified) -> tuple[float, float]:
    """Return mean and sd as `slabnorm.SlabScaler` has them."""
    scaler = sn.SlabScaler(sn.ZScore(ddof=1))
    for chunk in chunks(data):
        scaler.partial_fit(chunk)
    return scaler.mean_.item(), scaler.scale_.item()


def of_sklearn(data: Certified) -> tuple[float, float]:
    """Return mean and sd as scikit-learn's StandardScaler has them, its ddof of 0 turned into 1."""
    scaler = StandardScaler()
    for chunk in chunks(data):
        scaler.partial_fit(chunk)
    n = len(data.values)
    return scaler.mean_.item(), math.sqrt(scaler.var_.item() * n / (n - 1))


WAYS = {"fit": of_fit, "moments": of_moments, "SlabScaler": of_scaler, "scikit-learn": of_sklearn}


def decimal(data: Certified) -> tuple[float, float]:
    """Return mean and sd of the values as decimals, which is what NIST certifies."""
    values = [Fraction(repr(value)) for value in data.values]
    mean = sum(values) / len(values)
    var = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return float(mean), _root(var)


def exact(data: Certified) -> tuple[float, float]:
    """Return mean and sd of the values as float64 holds them, rounded once."""
    mean, var = mean_var(data.column, ddof=1)
    return float(mean), _root(var)


def _root(square: Fraction) -> float:
    with mpmath.workdps(50):
        return float(mpmath.sqrt(mpmath.mpf(square.numerator) / square.denominator))


def main() -> None:
    """Print a table: digits of mean and sd, as certified and as exact."""
    print(f"{'':9s}{'within reach':>14s}" + "".join(f"{name:>14s}" for name in WAYS))
    for title, target in (("certified", Certified.target), ("exact", exact)):
        print(title)
        for data in SETS:
            mean, sd = target(data)
            reach = attainable(data) if title == "certified" else (15.0, 15.0)
            pairs = [reach, *((lre(way(data)[0], mean), lre(way(data)[1], sd)) for way in WAYS.values())]
            print(f"{data.name:9s}" + "".join(f"{mean:8.1f} {sd:5.1f}" for mean, sd in pairs))


if __name__ == "__main__":
    main()
