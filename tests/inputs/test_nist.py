"""NIST's certified means and standard deviations, by every way that slabnorm finds them."""

from __future__ import annotations

import pytest

from tests.inputs import nist

OURS = [name for name in nist.WAYS if name != "scikit-learn"]
GATE = 1e-13  # relative, of shared statistics; 13 digits


@pytest.mark.parametrize("data", nist.SETS, ids=[data.name for data in nist.SETS])
@pytest.mark.parametrize("way", OURS)
def test_certified_values(way, data):
    """As many digits as the rounding of the values to float64 leaves within reach, 13 at most."""
    found = nist.WAYS[way](data)
    for value, certified, reach in zip(found, data.target(), nist.attainable(data), strict=True):
        assert abs(value - certified) / abs(certified) <= 10**-reach + GATE


@pytest.mark.parametrize("data", nist.SETS, ids=[data.name for data in nist.SETS])
@pytest.mark.parametrize("way", OURS)
def test_exact_values_of_what_float64_holds(way, data):
    """13 digits where the values are taken as float64 has them."""
    for value, exact in zip(nist.WAYS[way](data), nist.exact(data), strict=True):
        assert nist.lre(value, exact) >= 13


def test_scikit_learn_beside():
    """NumAcc4 in chunks of 64: what partial_fit loses, and SlabScaler does not."""
    data = nist.SETS[-1]
    _, sd = nist.exact(data)
    assert nist.lre(nist.of_sklearn(data)[1], sd) < 13 <= nist.lre(nist.of_scaler(data)[1], sd)


def test_the_sets_are_those_of_nist():
    sizes = {data.name: len(data.values) for data in nist.SETS}
    measured = {"Lew": 200, "Lottery": 218, "Mavro": 50, "Michelso": 100}
    assert sizes == measured | {
        "PiDigits": 5000,
        "NumAcc1": 3,
        "NumAcc2": 1001,
        "NumAcc3": 1001,
        "NumAcc4": 1001,
    }
    # Exact statistics of the values as decimals are the certified ones, so no value is missing or wrong.
    for data in nist.SETS:
        assert nist.decimal(data) == pytest.approx(data.target(), rel=2e-15)
