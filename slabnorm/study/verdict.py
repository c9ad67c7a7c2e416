"""The verdict: at most two short sentences, which follow by rules from the paired differences.

At each batch size every norm is compared with every other, seed by seed. An interval that leaves out zero is
a clear difference. All intervals of a ranking hold together with 95%: they are widened for the number of
pairs (Bonferroni), because the best is chosen after the fact.

1. If the best is clearly ahead of all others, the sentence says so, and by how much of the second.
2. If it is not, the data do not decide between it and those it is not clearly ahead of; the sentence names
   these, and those that are clearly behind.

There is one sentence for the smallest and one for the largest batch size. One seed gives no interval, and the
data decide nothing. A choice with a run that failed or diverged is named, not ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from slabnorm.report.study import DifferenceRecord, Interval, RunRecord, SearchRecord
from slabnorm.report.wording import norm_label, percent, scheme_label
from slabnorm.study.statistics import accuracies, is_clear, paired
from slabnorm.text import listing


@dataclass(frozen=True)
class Ranking:
    """Choices in the order of their mean accuracy, and how far the best is ahead.

    Attributes:
        means: the mean accuracy of every choice of which all runs were done, the best first.
        ahead: of each other choice, by how much the best is ahead of it.
        failed: choices with a run that failed or diverged.
        differences: the differences of all pairs, the better one first.
    """

    means: dict[str, float]
    ahead: dict[str, Interval]
    failed: list[str]
    differences: tuple[DifferenceRecord, ...]

    @property
    def leaders(self) -> list[str]:
        """The best, and those that it is not clearly ahead of."""
        return [name for name in self.means if name not in self.ahead or not is_clear(self.ahead[name])]

    @property
    def behind(self) -> list[str]:
        """Those that the best is clearly ahead of."""
        return [name for name, difference in self.ahead.items() if is_clear(difference)]


def rank(choices: dict[str, list[RunRecord]], samples: int, where: str) -> Ranking:
    """Compare every choice with every other.

    Args:
        choices: the runs of each choice, by its name in words.
        samples: the number of test samples on which the accuracies were counted.
        where: what the choices have in common, for the records, such as "batch size 2".
    """
    # A network full of NaN still predicts a class, but its accuracy means nothing.
    trained = {name: all(run.status == "done" for run in runs) for name, runs in choices.items()}
    values = {name: accuracies(runs) if trained[name] else None for name, runs in choices.items()}
    known = {name: v for name, v in values.items() if v is not None}
    # Sums of k/n over the seeds are compared as counts, so that equal counts are tied exactly.
    order = sorted(known, key=lambda name: -round(sum(known[name]) * samples))
    pairs = list(combinations(order, 2))
    found = {pair: paired(known[pair[0]], known[pair[1]], 1 / samples, len(pairs)) for pair in pairs}
    return Ranking(
        means={name: sum(known[name]) / len(known[name]) for name in order},
        ahead={other: difference for (best, other), difference in found.items() if best == order[0]},
        failed=[name for name in choices if name not in known],
        differences=tuple(
            DifferenceRecord(f"{better}, {where}", f"{other}, {where}", difference, is_clear(difference))
            for (better, other), difference in found.items()
        ),
    )


def sentence(ranking: Ranking, where: str) -> str:
    """Return a ranking as one sentence.

    Args:
        ranking: the choices.
        where: what they have in common, such as "at batch size 2".
    """
    names, leaders, behind = list(ranking.means), ranking.leaders, ranking.behind
    percents = [percent(ranking.means[name]) for name in leaders]
    if not names:
        words = f"{where} every run failed or diverged"
    elif len(names) == 1:
        words = f"{names[0]} reaches {percents[0]} {where}, and there is nothing to compare it with"
    elif ranking.ahead[names[1]].low is None:
        words = f"{names[0]} is highest {where}, {percents[0]}, but with one seed the data do not decide"
    elif len(leaders) == 1:
        words = f"{names[0]} does best {where}: {percents[0]}, {by(ranking.ahead[names[1]])} above {names[1]}"
    else:
        reach = percents[0] if len(set(percents)) == 1 else f"{percents[-1]} to {percents[0]}"
        words = f"{where} the data do not decide between {together(leaders)} ({reach})"
        if len(behind) == 1:
            words += f"; {behind[0]} is {by(ranking.ahead[behind[0]])} below {names[0]}"
        elif behind:
            words += f"; {together(behind)} are clearly behind"
    if names and ranking.failed:
        words += f"; {together(ranking.failed)} failed or diverged"
    return f"{words[:1].upper()}{words[1:]}."


def together(names: list[str]) -> str:
    """Return names as a list; if all are of one kind, it is said once, as in `batch and group norm`."""
    kinds = {name.split(" ")[-1] if name.count(" ") == 1 else name for name in names}
    if len(names) > 1 and len(kinds) == 1:
        return listing([name.split(" ")[0] for name in names]) + f" {kinds.pop()}"
    return listing(names)


def by(difference: Interval) -> str:
    """Return the interval of a clear difference as `1.2 to 2.6 points`."""
    assert difference.low is not None and difference.high is not None
    return f"{100 * difference.low:.1f} to {100 * difference.high:.1f} points"


def verdict(cells: list[list[RunRecord]], samples: int) -> tuple[str, tuple[DifferenceRecord, ...]]:
    """Return the verdict on the norms, and all differences that it follows from.

    Args:
        cells: the runs of every norm and batch size, over all seeds, under one input scheme.
        samples: the number of test samples.
    """
    rankings = {}
    for size in sorted({runs[0].batch_size for runs in cells}):
        choices = {_named(runs[0].norm): runs for runs in cells if runs[0].batch_size == size}
        rankings[size] = rank(choices, samples, f"batch size {size}")
    ends = dict.fromkeys([min(rankings), max(rankings)])
    words = " ".join(sentence(rankings[size], f"at batch size {size}") for size in ends)
    return words, tuple(d for ranking in rankings.values() for d in ranking.differences)


def _named(norm: str) -> str:
    # "No norm does best" would say the opposite of what is meant.
    return "the network without a norm" if norm == "none" else norm_label(norm)


def inputs_verdict(cells: list[list[RunRecord]], samples: int) -> tuple[str, tuple[DifferenceRecord, ...]]:
    """Return the verdict on the input schemes, under one norm and batch size, and its differences."""
    if not cells:
        return "", ()
    first = cells[0][0]
    choices = {f"{scheme_label(runs[0].scheme)} input": runs for runs in cells}
    norm, size = norm_label(first.norm), first.batch_size
    ranking = rank(choices, samples, f"{norm}, batch size {size}")
    return sentence(ranking, f"with {norm} at batch size {size}"), ranking.differences


def rates_verdict(searches: Sequence[SearchRecord]) -> str:
    """Return which norms learn well over the widest range of learning rates, and which over the narrowest.

    Args:
        searches: what was found for every norm and batch size, under one input scheme.
    """
    learning = [found for found in searches if found.learns]
    sizes = sorted({found.batch_size for found in learning})
    sentences = []
    for size in dict.fromkeys(sizes[:1] + sizes[-1:]):
        widths: dict[str, list[str]] = {}
        for found in sorted(learning, key=lambda found: -found.width):
            if found.batch_size == size:
                widths.setdefault(width_text(found), []).append(_named(found.norm))
        (widest, best), *others = widths.items()
        words = (
            f"At batch size {size}, {together(best)} {'learns' if len(best) == 1 else 'learn'} well {widest}"
        )
        if others:
            narrowest, worst = others[-1]
            words += f", {together(worst)} {narrowest}"
        still = [_named(found.norm) for found in searches if found.batch_size == size and not found.learns]
        if still:
            words += f"; {together(still)} {'does' if len(still) == 1 else 'do'} not learn at any of them"
        sentences.append(f"{words}.")
    return " ".join(sentences)


def width_text(found: SearchRecord) -> str:
    """Return how wide the range of good learning rates is, in words."""
    more = " or more" if found.open_below or found.open_above else ""
    if found.width < 1.5:
        return f"at one of the {len(found.rates)} learning rates tried"
    return f"over a factor of {found.width:.0f}{more} of learning rates"
