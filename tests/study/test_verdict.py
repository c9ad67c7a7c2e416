"""The verdict follows from the numbers, whatever they are."""

from dataclasses import replace

import pytest

from slabnorm.report.records import RunRecord
from slabnorm.study.verdict import inputs_verdict, verdict

SAMPLES = 1000


def runs(norm, size, accuracies, scheme="zscore"):
    return [
        RunRecord(scheme, norm, size, seed, "failed", "why")
        if accuracy is None
        else RunRecord(scheme, norm, size, seed, "done", test_accuracy=accuracy)
        for seed, accuracy in enumerate(accuracies)
    ]


def say(**by_norm):
    """The verdict on norms, each with its accuracies at batch size 2 and at 128."""
    every = []
    for norm, (small, large) in by_norm.items():
        every += runs(norm, 2, small) + runs(norm, 128, large)
    return verdict(every, SAMPLES)


def test_a_clear_winner_and_a_clear_loss_of_batch_norm():
    words, differences = say(
        batch=([0.70, 0.71, 0.72], [0.95, 0.96, 0.95]), group=([0.93, 0.94, 0.93], [0.90, 0.91, 0.90])
    )
    assert words == (
        "At batch size 2, group norm (93.3%) is clearly ahead of batch norm; at batch size 128, batch norm "
        "(95.3%) is clearly ahead of group norm; batch norm "
        "loses 24.3 points going from batch size 128 down to 2, at equal epochs."
    )
    assert [d.clear for d in differences] == [True, True, True]


def test_numbers_the_other_way_round_give_the_other_verdict():
    words, _ = say(
        batch=([0.93, 0.94, 0.93], [0.90, 0.91, 0.90]), group=([0.70, 0.71, 0.72], [0.95, 0.96, 0.95])
    )
    assert "At batch size 2, batch norm (93.3%) is clearly ahead of group norm" in words
    assert "batch norm gains 3.0 points" in words


def test_intervals_that_hold_zero_are_no_clear_difference():
    same = ([0.9, 0.7, 0.8], [0.8, 0.9, 0.7])
    words, differences = say(batch=same, group=([0.7, 0.9, 0.8], [0.9, 0.8, 0.6]))
    assert "there is no clear difference between batch norm and group norm" in words
    assert "batch norm shows no clear difference between batch sizes 2 and 128" in words
    assert not any(d.clear for d in differences)


def test_the_best_may_be_level_with_some_and_ahead_of_others():
    flat = [0.9, 0.9, 0.9]
    words, _ = say(none=([0.5] * 3, flat), batch=([0.905, 0.89, 0.91], flat), group=(flat, flat))
    assert "batch norm (90.2%) is clearly ahead of no norm, with no clear difference from group norm" in words


def test_equal_counts_tie_by_name():
    flat = [0.9, 0.9, 0.9]
    words, _ = say(none=([0.5] * 3, flat), batch=([0.9, 0.8, 0.7], flat), group=([0.7, 0.8, 0.9], flat))
    assert "batch norm and group norm (80.0%) are clearly ahead of no norm" in words
    assert "(highest: no norm, batch norm and group norm, 90.0%)" in words


def test_one_seed_is_never_clear():
    words, _ = say(none=([0.2], [0.2]), batch=([0.9], [0.9]))
    assert "batch norm (90.0%) is highest, but one seed gives no interval" in words
    assert "one seed does not tell batch norm at batch size 2 from 128" in words


def test_failed_choices_are_named_and_not_ranked():
    words, _ = say(batch=([None] * 3, [0.9] * 3), group=([0.8] * 3, [0.7] * 3))
    assert (
        "At batch size 2, only group norm (80.0%) was measured; batch norm failed or diverged there" in words
    )
    assert "batch norm does not train at batch size 2" in words
    words, _ = say(batch=([None], [None]))
    assert words.startswith("At batch size 2, every run failed")


def test_a_diverged_choice_is_not_ranked():
    """A network full of NaN answers one class, and may well have the highest share."""
    bad = [replace(run, status="diverged") for run in runs("none", 8, [0.9] * 3)]
    words, _ = verdict(bad + runs("batch", 8, [0.5] * 3), SAMPLES)
    assert words == "At batch size 8, only batch norm (50.0%) was measured; no norm failed or diverged there."


def test_a_single_batch_size_is_said_once():
    words, _ = verdict(runs("batch", 8, [0.9] * 3) + runs("none", 8, [0.5] * 3), SAMPLES)
    assert words == "At batch size 8, batch norm (90.0%) is clearly ahead of no norm."


@pytest.mark.parametrize("none", [True, False])
def test_inputs_have_a_verdict_of_their_own(none):
    every = [] if none else runs("none", 16, [0.5] * 3, "raw") + runs("none", 16, [0.9] * 3)
    words, _ = inputs_verdict(every, SAMPLES)
    where = "no norm, batch size 16, each at its own learning rate"
    expected = f"For the inputs ({where}), z-score (90.0%) is clearly ahead of raw."
    assert words == ("" if none else expected)
