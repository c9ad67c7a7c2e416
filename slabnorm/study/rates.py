"""The learning rate of every setting: tried on a grid, chosen on the validation split."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean

from slabnorm.report.study import GOOD, RunRecord, SearchRecord
from slabnorm.report.wording import norm_label, scheme_label
from slabnorm.study.train import Rules, Run

# Multiples of the base rate. Norms and input schemes change the size of the gradient, so that one rate for
# all would rank them by the size of their steps.
STEP = 4.0
RATES = (1 / 4, 1.0, 4.0, 16.0)


@dataclass(frozen=True)
class Setting:
    """What has a learning rate of its own: an input scheme, a norm and a batch size."""

    scheme: str
    norm: str
    batch_size: int

    def runs(self, seeds: Sequence[int], rates: Sequence[float]) -> list[Run]:
        """Return a run for each seed and multiple of the base rate."""
        return [Run(self.scheme, self.norm, self.batch_size, seed, rate) for rate in rates for seed in seeds]


def setting_of(run: Run | RunRecord) -> Setting:
    """Return the setting of a run."""
    return Setting(run.scheme, run.norm, run.batch_size)


def search(
    settings: Sequence[Setting], seeds: Sequence[int], do: Callable[[list[Run]], dict[Run, RunRecord]]
) -> list[RunRecord]:
    """Train every setting at every rate of the grid, and once more beyond where its best is at an edge.

    Args:
        settings: what to train.
        seeds: of these runs; no result that is reported has them.
        do: trains runs.
    """
    grid = [run for setting in settings for run in setting.runs(seeds, RATES)]
    records = list(do(grid).values())
    beyond = {
        setting: best * STEP if best == max(RATES) else best / STEP
        for setting, best in best_rates(records).items()
        if best in (min(RATES), max(RATES)) and mean_at(records, setting, best) > 0
    }
    further = [run for setting, rate in beyond.items() for run in setting.runs(seeds, (rate,))]
    return records + list(do(further).values())


def best_rates(records: Sequence[RunRecord]) -> dict[Setting, float]:
    """Return for every setting the multiple with the highest mean validation accuracy at the end.

    A run that diverged or failed counts as 0. Of equal multiples the nearest to 1 is taken. The test split
    plays no part.
    """
    found = {}
    for setting in dict.fromkeys(map(setting_of, records)):
        means = {rate: mean_at(records, setting, rate) for rate in rates_of(records, setting)}
        found[setting] = max(means, key=lambda rate: (means[rate], -abs(math.log(rate)), rate))
    return found


def rates_of(records: Sequence[RunRecord], setting: Setting) -> list[float]:
    """Return the multiples at which a setting was trained, in ascending order."""
    return sorted({record.rate for record in records if setting_of(record) == setting})


def ends_at(records: Sequence[RunRecord], setting: Setting, rate: float) -> list[float]:
    """Return the validation accuracy at the end of each run of a setting at a multiple; 0 if it failed."""
    runs = [record for record in records if setting_of(record) == setting and record.rate == rate]
    return [run.curve[-1].accuracy if run.status == "done" and run.curve else 0.0 for run in runs]


def mean_at(records: Sequence[RunRecord], setting: Setting, rate: float) -> float:
    """Return the mean validation accuracy of a setting at a multiple."""
    return fmean(ends_at(records, setting, rate))


def describe(records: Sequence[RunRecord], rules: Rules, chance: float) -> tuple[SearchRecord, ...]:
    """Return what was found for each setting, with learning rates as they are instead of multiples.

    Args:
        records: the runs that choose.
        rules: say what the base rate is.
        chance: the validation accuracy of always saying the most frequent class.
    """
    return tuple(
        _describe(records, setting, best, rules.rate(0, 1, setting.batch_size), chance)
        for setting, best in best_rates(records).items()
    )


def _describe(
    records: Sequence[RunRecord], setting: Setting, best: float, base: float, chance: float
) -> SearchRecord:
    rates = rates_of(records, setting)
    ends = [ends_at(records, setting, rate) for rate in rates]
    means = [fmean(values) for values in ends]
    at = rates.index(best)
    good = [mean >= means[at] - GOOD for mean in means]
    first = at - len(list(takewhile(bool, reversed(good[:at]))))
    last = at + len(list(takewhile(bool, good[at + 1 :])))
    return SearchRecord(
        setting.scheme,
        setting.norm,
        setting.batch_size,
        rates=tuple(rate * base for rate in rates),
        validation=tuple(means),
        low=tuple(map(min, ends)),
        high=tuple(map(max, ends)),
        chosen=best * base,
        good=(rates[first] * base, rates[last] * base),
        open_below=first == 0,
        open_above=last == len(rates) - 1,
        at_edge=at in (0, len(rates) - 1) and means[at] > 0,
        chance=chance,
    )


def edge_notes(searches: Sequence[SearchRecord], scheme: str) -> list[str]:
    """Return notes on settings whose best rate is the lowest or highest that was tried.

    Args:
        searches: what was found.
        scheme: the input scheme that needs no mention.
    """
    notes = []
    for found in (found for found in searches if found.at_edge):
        other = "" if found.scheme == scheme else f" on {scheme_label(found.scheme)} inputs"
        what = f"{norm_label(found.norm)}{other}, batch size {found.batch_size}"
        end = "highest" if found.chosen == max(found.rates) else "lowest"
        notes.append(
            f"{what[:1].upper()}{what[1:]}: best at the {end} learning rate tried, {found.chosen:.2g}; "
            f"a {end.removesuffix('est')}er one may be better still."
        )
    return notes
