"""The verdict follows from the numbers, whatever they are."""

import re
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import t

from slabnorm.report.study import RunRecord
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
        "(95.3%) is clearly ahead of group norm. All 2 pairs differ clearly, each taken by itself; "
        "batch norm loses 24.3 points going from batch size 128 down to 2, at equal epochs."
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
    assert words.startswith(
        "At batch size 2, batch norm and group norm are clearly ahead of the network without a norm; "
    )
    assert "2 of 6 pairs differ clearly" in words


def test_a_clear_difference_without_the_best_is_named():
    """The best varies so much that it is clearly ahead of nobody; the second is, of the third."""
    words, differences = verdict(
        runs("none", 16, [0.99, 0.80, 0.99]) + runs("batch", 16, [0.92] * 3) + runs("layer", 16, [0.88] * 3),
        SAMPLES,
    )
    assert words == (
        "At batch size 16, batch norm is clearly ahead of layer norm. "
        "1 of 3 pairs differs clearly, each taken by itself."
    )
    assert len(differences) == 3


def test_one_that_is_behind_all_others_is_named_once():
    names = {"batch": [0.96] * 3, "layer": [0.96, 0.97, 0.93], "group": [0.93, 0.94, 0.93], "none": [0.5] * 3}
    words, _ = verdict([run for name, v in names.items() for run in runs(name, 16, v)], SAMPLES)
    assert words == (
        "At batch size 16, batch norm (96.0%) is clearly ahead of group norm, and the network without a norm "
        "is clearly behind all others. 4 of 6 pairs differ clearly, each taken by itself."
    )


def test_the_middle_batch_size_is_not_left_out():
    level, low = [0.9, 0.91, 0.9], [0.8, 0.82, 0.81]
    every = [run for size, second in ((2, level), (16, low), (128, level))
             for run in runs("batch", size, level) + runs("layer", size, second)]  # fmt: skip
    assert (
        "at batch size 16, batch norm (90.3%) is clearly ahead of layer norm;" in verdict(every, SAMPLES)[0]
    )


def test_equal_counts_tie_by_name():
    flat = [0.9, 0.9, 0.9]
    words, _ = say(none=([0.5] * 3, flat), batch=([0.9, 0.8, 0.7], flat), group=([0.7, 0.8, 0.9], flat))
    assert "batch norm and group norm (80.0%) are clearly ahead of the network without a norm" in words
    assert "(highest: the network without a norm, batch norm and group norm, 90.0%)" in words


def test_one_seed_is_never_clear():
    words, _ = say(none=([0.2], [0.2]), batch=([0.9], [0.9]))
    assert words == (
        "At batch size 2, batch norm (90.0%) is highest; at batch size 128, batch norm (90.0%) is highest. "
        "One seed gives no interval and so no clear difference."
    )


def test_failed_choices_are_named_and_not_ranked():
    words, _ = say(batch=([None] * 3, [0.9] * 3), group=([0.8] * 3, [0.7] * 3))
    assert (
        "At batch size 2, only group norm (80.0%) was measured; batch norm failed or diverged there" in words
    )
    assert "going from" not in words
    words, _ = say(batch=([None], [None]))
    assert words.startswith("At batch size 2, every run failed")


def test_a_diverged_choice_is_not_ranked():
    """A network full of NaN answers one class, and may well have the highest share."""
    bad = [replace(run, status="diverged") for run in runs("none", 8, [0.9] * 3)]
    words, _ = verdict(bad + runs("batch", 8, [0.5] * 3), SAMPLES)
    assert words == (
        "At batch size 8, only batch norm (50.0%) was measured; "
        "the network without a norm failed or diverged there."
    )


def test_a_single_batch_size_is_said_once():
    words, _ = verdict(runs("batch", 8, [0.9] * 3) + runs("none", 8, [0.5] * 3), SAMPLES)
    assert words == "At batch size 8, batch norm (90.0%) is clearly ahead of the network without a norm."


@pytest.mark.parametrize("none", [True, False])
def test_inputs_have_a_verdict_of_their_own(none):
    every = [] if none else runs("none", 16, [0.5] * 3, "raw") + runs("none", 16, [0.9] * 3)
    words, _ = inputs_verdict(every, SAMPLES)
    where = "no norm, batch size 16, each at its own learning rate"
    expected = f"For the inputs ({where}), z-score (90.0%) is clearly ahead of raw."
    assert words == ("" if none else expected)


NAMES = ("the network without a norm", "batch norm", "layer norm", "group norm", "“n c ... -> c”")
PATTERNS = ("none", "batch", "layer", "group", "n c ... -> c")


def brute_force(values):
    """Who is clearly ahead of whom: Student's interval of the paired difference, from its definition."""
    found = set()
    for a, b in permutations(values, 2):
        d = np.subtract(values[a], values[b])
        spread = max(d.std(ddof=1), np.sqrt(2) / SAMPLES / np.sqrt(12))
        if d.mean() > t.ppf(0.975, len(d) - 1) * spread / np.sqrt(len(d)):
            found.add((a, b))
    return found


def read(text, measured):
    """The pairs a clause names, and how many more it counts."""
    text = re.sub(r" \(\d+\.\d%\)", "", text)
    names = "|".join(map(re.escape, NAMES))
    group = rf"(?:{names})(?:(?:, | and )(?:{names}))*"
    pairs = [
        (winner, loser)
        for winners, losers in re.findall(rf"({group})(?: (?:is|are) clearly ahead)? of ({group})", text)
        for winner in re.findall(names, winners)
        for loser in re.findall(names, losers)
    ]
    for last in re.findall(rf"({names}) is clearly behind all others", text):
        pairs += [(name, last) for name in measured if name != last]
    return pairs, sum(map(int, re.findall(r"(\d+) more pairs?", text)))


def drawn(random, seeds):
    """Accuracies of some seeds, counted on the samples, that vary little or much."""
    counts = random.uniform(0.7, 0.95) * SAMPLES + random.normal(0, random.choice([1, 9, 60]), seeds)
    return (np.round(counts).clip(0, SAMPLES) / SAMPLES).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_every_clear_difference_is_said_and_all_that_is_said_is_true(seed):
    random = np.random.default_rng(seed)
    for _ in range(12):
        sizes = (2, 16, 128)[: random.integers(1, 4)]
        count, seeds = random.integers(2, 6), int(random.choice([2, 3, 5]))
        values = {size: {name: drawn(random, seeds) for name in PATTERNS[:count]} for size in sizes}
        every = [
            run for size in sizes for name in values[size] for run in runs(name, size, values[size][name])
        ]
        words, differences = verdict(every, SAMPLES)
        first, second = [*re.split(r"\. (?=[A-Z0-9])", words, maxsplit=1), ""][:2]
        total = 0
        parts = re.split(r"; ", first)
        everywhere = parts.pop(0) if parts[0].endswith("behind all others at every batch size") else ""
        by_size = {int(part.split()[3].rstrip(",")): part for part in parts}
        assert set(by_size) <= set(sizes)
        for size in sizes:
            part = by_size.get(size, "")
            assert part or everywhere
            named = dict(zip(PATTERNS, NAMES, strict=True))
            true = {(named[a], named[b]) for a, b in brute_force(values[size])}
            text = f"{everywhere[:1].lower()}{everywhere[1:]}; {part.partition(', ')[2]}"
            pairs, more = read(text, NAMES[:count])
            assert len(pairs) == len(set(pairs)), part
            assert set(pairs) <= true, part
            assert len(pairs) + more == len(true), part
            assert ("no clear difference" in part) == (not true), part
            total += len(true)
            best = max(np.mean(v) for v in values[size].values())
            for said in re.findall(r"(\d+\.\d)%", part):
                assert float(said) == pytest.approx(100 * best, abs=0.0501)
        number = len(sizes) * count * (count - 1) // 2
        assert len([d for d in differences if "going" not in d.better]) >= number
        if number > 1:
            said = {number: f"All {number} pairs", 0: f"None of {number} pairs"}
            assert second.startswith(said.get(total, f"{total} of {number} pairs")), words


def test_one_that_is_behind_at_every_batch_size_is_named_first_and_once():
    values = {
        "batch": [0.96] * 3,
        "layer": [0.93, 0.94, 0.93],
        "group": [0.96, 0.97, 0.93],
        "none": [0.5] * 3,
    }
    every = [run for size in (2, 16) for name, v in values.items() for run in runs(name, size, v)]
    level = [run for name in ("batch", "layer", "group") for run in runs(name, 128, [0.9] * 3)]
    words, _ = verdict(every + level + runs("none", 128, [0.4] * 3), SAMPLES)
    ahead = "batch norm (96.0%) is clearly ahead of layer norm"
    assert words == (
        "The network without a norm is clearly behind all others at every batch size; "
        f"at batch size 2, {ahead}; at batch size 16, {ahead}. 11 of 18 pairs differ clearly, each taken by "
        "itself; batch norm gains 6.0 points going from batch size 128 down to 2, at equal epochs."
    )


def test_many_batch_sizes_are_counted_together():
    every = [
        run
        for i, size in enumerate((2, 4, 8, 16, 32))
        for run in runs("batch", size, [0.9, 0.91, 0.9]) + runs("none", size, [0.5 + 0.01 * i] * 3)
    ]
    words, _ = verdict(every, SAMPLES)
    assert "; at the 3 batch sizes between them, all 3 pairs differ clearly; at batch size 32," in words
    assert "All 5 pairs differ clearly" in words
