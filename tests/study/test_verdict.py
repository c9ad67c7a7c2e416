"""The verdict follows from the numbers, whatever they are."""

import re
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import t

from slabnorm.report.study import RunRecord
from slabnorm.study.verdict import inputs_verdict, verdict

SAMPLES = 1000


def cell(norm, size, accuracies, scheme="zscore"):
    return [
        RunRecord(scheme, norm, size, seed, "failed", "why")
        if accuracy is None
        else RunRecord(scheme, norm, size, seed, "done", test_accuracy=accuracy)
        for seed, accuracy in enumerate(accuracies)
    ]


def say(size=16, **by_norm):
    """The verdict on norms at one batch size, each with its accuracies."""
    return verdict([cell(norm, size, values) for norm, values in by_norm.items()], SAMPLES)[0]


def test_a_clear_winner_is_named_with_its_interval():
    words, (difference,) = verdict(
        [cell("batch", 16, [0.95, 0.96, 0.95]), cell("none", 16, [0.93, 0.94, 0.931])], SAMPLES
    )
    assert words == (
        "Batch norm does best at batch size 16: 95.3%, 1.8 to 2.1 points above the network without a norm."
    )
    values = [0.02, 0.02, 0.019]
    half = t.ppf(0.975, 2) * max(np.std(values, ddof=1), 2**0.5 * 0.001 / 12**0.5) / 3**0.5
    assert difference.difference.low == pytest.approx(np.mean(values) - half)
    assert difference.clear


def test_where_intervals_hold_zero_the_data_do_not_decide():
    words = say(batch=[0.9, 0.7, 0.8], group=[0.7, 0.9, 0.78])
    assert words == ("At batch size 16 the data do not decide between batch and group norm (79.3% to 80.0%).")


def test_who_is_clearly_behind_is_said_beside_those_that_are_not_decided():
    near = {"batch": [0.95, 0.96, 0.95], "group": [0.958, 0.949, 0.95]}
    assert say(**near, none=[0.5, 0.51, 0.5]) == (
        "At batch size 16 the data do not decide between batch and group norm (95.2% to 95.3%); "
        "the network without a norm is 44.8 to 45.2 points below batch norm."
    )
    assert "layer norm and the network without a norm are clearly behind" in say(
        **near, none=[0.5, 0.51, 0.5], layer=[0.6, 0.61, 0.6]
    )


def test_there_is_a_sentence_for_the_smallest_and_the_largest_batch_size():
    cells = [
        cell(
            norm,
            size,
            [0.9 + 0.05 * (norm == best), 0.91 + 0.05 * (norm == best), 0.9 + 0.05 * (norm == best)],
        )
        for size, best in ((64, "batch"), (2, "group"), (16, "none"))
        for norm in ("none", "batch", "group")
    ]
    words, differences = verdict(cells, SAMPLES)
    assert re.findall(r"(\w+ norm) does best at batch size (\d+)", words, re.IGNORECASE) == [
        ("Group norm", "2"),
        ("Batch norm", "64"),
    ]
    assert words.count(". ") == 1
    assert len(differences) == 3 * 3


def test_equal_numbers_give_no_winner_and_keep_the_order_given():
    values = [0.7, 0.8, 0.9]
    for first, second in permutations(("batch", "group")):
        words = say(**{first: values, second: values})
        assert f"between {first} and {second} norm (80.0%)" in words


def test_one_seed_decides_nothing():
    assert say(batch=[0.9], none=[0.1]) == (
        "Batch norm is highest at batch size 16, 90.0%, but with one seed the data do not decide."
    )


def test_one_choice_is_measured_and_not_compared():
    assert say(batch=[0.9, 0.92]) == (
        "Batch norm reaches 91.0% at batch size 16, and there is nothing to compare it with."
    )


def test_what_failed_or_diverged_is_named_and_not_ranked():
    words = say(batch=[None, None, None], layer=[0.9, 0.91, 0.9], group=[0.8, 0.81, 0.8])
    assert words.startswith("Layer norm does best at batch size 16: 90.3%")
    assert words.endswith("; batch norm failed or diverged.")
    assert say(batch=[None, 0.9], none=[None, None]) == "At batch size 16 every run failed or diverged."


def test_inputs_are_compared_like_norms():
    cells = [cell("none", 64, [0.9, 0.91, 0.9], "raw"), cell("none", 64, [0.95, 0.961, 0.951], "zscore")]
    words, differences = inputs_verdict(cells, SAMPLES)
    assert words == (
        "Z-score input does best with no norm at batch size 64: 95.4%, 4.9 to 5.2 points above raw input."
    )
    assert differences[0].better == "z-score input, no norm, batch size 64"
    assert inputs_verdict([], SAMPLES) == ("", ())


def test_where_nothing_differs_few_studies_find_a_winner_or_a_loser():
    """Five norms and five seeds; each interval is one of ten."""
    random, norms = np.random.default_rng(0), ("none", "batch", "layer", "instance", "group")
    decided = 0
    for _ in range(200):
        values = np.round(random.normal(0.95, 0.01, (5, 5)), 3)
        words = say(**dict(zip(norms, values.tolist(), strict=True)))
        decided += "best" in words or "behind" in words or "below" in words
    assert decided / 200 < 0.05
