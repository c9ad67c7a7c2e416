"""The verdict: two short sentences that follow by rules from all paired comparisons.

1. At each batch size every norm is compared with every other. Of two, the one with the higher mean test
   accuracy is clearly ahead where the 95% interval of their paired difference over seeds leaves out zero;
   otherwise there is no clear difference between them.
2. The first sentence names every clear difference, or counts those it does not name. One that is clearly
   behind all others at every batch size is named first, and once. Batch sizes between the smallest and the
   largest are counted together where there are more than three sizes.
3. The second says how many pairs differ clearly, of how many, and what batch norm gains or loses from the
   largest batch size to the smallest.

Each comparison stands alone; nothing is corrected for their number. Holm's correction over the ten pairs of
five norms would ask three seeds for a mean difference of 8.1 of its standard deviations instead of 2.5. On
the digits it keeps 6 of 16 clear differences, and hides that the network without a norm is 45 points
behind. So the second sentence gives the number of pairs, and the report says that one in twenty looks clear
by luck where nothing differs.

One seed gives no interval, hence no clear difference. A choice with a run that failed or diverged is named,
not ranked.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from slabnorm.report.study import DifferenceRecord, RunRecord
from slabnorm.report.wording import norm_label, percent, scheme_label
from slabnorm.study.statistics import accuracies, is_clear, paired
from slabnorm.text import listing

MOST_GROUPS = 3  # of choices with the same ones behind them, that a clause names
MOST_SIZES = 3  # batch sizes that have a clause of their own


@dataclass(frozen=True)
class Ranking:
    """Choices in the order of their mean accuracy, and which are clearly ahead of which.

    Attributes:
        order: the choices of which every run was done, the best first.
        tied: the choices with the highest mean accuracy, which is `accuracy`.
        ahead: for each choice in `order`, those that it is clearly ahead of.
        failed: choices with a run that failed or diverged.
        seeds: the number of seeds of every choice.
        differences: the differences of all pairs in `order`, the better one first.
    """

    order: list[str]
    tied: list[str]
    accuracy: float
    ahead: dict[str, list[str]]
    failed: list[str]
    seeds: int
    differences: tuple[DifferenceRecord, ...]

    @property
    def clear(self) -> int:
        """How many pairs differ clearly."""
        return sum(difference.clear for difference in self.differences)

    @property
    def last(self) -> str:
        """The choice that all others, three or more, are clearly ahead of; empty where there is none."""
        if len(self.order) < 4:
            return ""
        *others, last = self.order
        return last if all(last in self.ahead[name] for name in others) else ""

    def groups(self) -> list[tuple[list[str], list[str]]]:
        """Return groups of choices that are clearly ahead of the same others; `last` does not count."""
        found: dict[tuple[str, ...], list[str]] = {}
        for name in self.order:
            behind = tuple(other for other in self.ahead[name] if other != self.last)
            if behind:
                found.setdefault(behind, []).append(name)
        return [(winners, list(behind)) for behind, winners in found.items()]


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
    counts = {name: round(sum(v) * samples) for name, v in known.items()}
    order = sorted(known, key=lambda name: -counts[name])
    ahead: dict[str, list[str]] = {name: [] for name in order}
    differences = []
    for better, other in combinations(order, 2):
        difference = paired(known[better], known[other], 1 / samples)
        clear = is_clear(difference)
        differences.append(DifferenceRecord(f"{better}, {where}", f"{other}, {where}", difference, clear))
        if clear:
            ahead[better].append(other)
    best = known[order[0]] if order else [0.0]
    return Ranking(
        order=order,
        tied=[name for name in order if counts[name] == counts[order[0]]],
        accuracy=sum(best) / len(best),
        ahead=ahead,
        failed=[name for name in choices if name not in known],
        seeds=len(best),
        differences=tuple(differences),
    )


def clause(ranking: Ranking, known: str = "") -> str:
    """Return a ranking in words, without a full stop.

    Args:
        ranking: the choices, and which are ahead of which.
        known: the choice, if any, that another clause has called clearly behind all others.
    """
    failed = f"; {listing(ranking.failed)} failed or diverged there" if ranking.failed else ""
    if not ranking.order:
        return "every run failed or diverged"
    best = f"{listing(ranking.tied)} ({percent(ranking.accuracy)})"
    top = f"highest: {listing(ranking.tied)}, {percent(ranking.accuracy)}"
    if len(ranking.order) == 1:
        return f"only {best} was measured{failed}"
    if ranking.seeds == 1:
        return f"{best} {'is' if len(ranking.tied) == 1 else 'are'} highest{failed}"
    if not ranking.clear:
        those = listing(ranking.order) if len(ranking.order) == 2 else f"any of the {len(ranking.order)}"
        return f"there is no clear difference between {those} ({top}){failed}"
    groups, last = ranking.groups(), ranking.last
    named = groups if len(groups) <= MOST_GROUPS else groups[:1]
    parts = []
    for number, (winners, behind) in enumerate(named):
        who = best if winners == ranking.tied else listing(winners)
        verb = "" if number else f" {'is' if len(winners) == 1 else 'are'} clearly ahead"
        parts.append(f"{who}{verb} of {listing(behind)}")
    if last and last != known:
        parts.append(f"{last} is clearly behind all others{'' if parts else f' ({top})'}")
    said = sum(len(winners) * len(behind) for winners, behind in named)
    more = ranking.clear - said - (len(ranking.order) - 1 if last else 0)
    if more:
        parts.append(f"{more} more {'pairs differ' if more > 1 else 'pair differs'} clearly")
    return f"{', and '.join(parts)}{failed}".removeprefix("; ")


def count_clause(rankings: list[Ranking]) -> str:
    """Return how many of the pairs differ clearly, or why none can; empty for a single pair."""
    pairs = sum(len(ranking.differences) for ranking in rankings)
    clear = sum(ranking.clear for ranking in rankings)
    if not pairs:
        return ""
    if all(ranking.seeds == 1 for ranking in rankings if ranking.differences):
        return "one seed gives no interval and so no clear difference"
    if pairs == 1:
        return ""
    return f"{counted(clear, pairs)} clearly, each taken by itself"


def counted(clear: int, pairs: int) -> str:
    """Return `3 of 10 pairs differ`."""
    if clear == pairs:
        return "the only pair differs" if pairs == 1 else f"all {pairs} pairs differ"
    return f"{clear or 'none'} of {pairs} pairs {'differs' if clear < 2 else 'differ'}"


def batch_clause(
    small: list[RunRecord], large: list[RunRecord], samples: int
) -> tuple[str, DifferenceRecord | None]:
    """Return what batch norm gains or loses from the largest batch size to the smallest.

    It is empty with one seed, and if a run failed or diverged, which the first sentence says.
    """
    least, most = small[0].batch_size, large[0].batch_size
    at_least, at_most = accuracies(small), accuracies(large)
    done = all(run.status == "done" for run in (*small, *large))
    if not done or at_least is None or at_most is None or len(at_least) == 1:
        return "", None
    change = paired(at_least, at_most, 1 / samples)
    clear = is_clear(change)
    record = DifferenceRecord(
        f"batch norm, batch size {least}", f"batch norm, batch size {most}", change, clear
    )
    if not clear:
        return f"batch norm shows no clear difference between batch sizes {least} and {most}", record
    verb = "gains" if change.mean > 0 else "loses"
    points = f"{100 * abs(change.mean):.1f} points"
    # Smaller batches also mean more steps, so that the batch size alone is not the cause.
    return f"batch norm {verb} {points} going from batch size {most} down to {least}, at equal epochs", record


def verdict(runs: list[RunRecord], samples: int) -> tuple[str, tuple[DifferenceRecord, ...]]:
    """Return the verdict on the norms, and all differences that it follows from.

    Args:
        runs: the runs of every norm, batch size and seed under one input scheme.
        samples: the number of test samples.
    """
    norms = list(dict.fromkeys(run.norm for run in runs))
    rankings = {}
    for size in sorted({run.batch_size for run in runs}):
        of_size = [run for run in runs if run.batch_size == size]
        choices = {_named(norm): [run for run in of_size if run.norm == norm] for norm in norms}
        rankings[size] = rank(choices, samples, f"batch size {size}")
    differences = [d for ranking in rankings.values() for d in ranking.differences]
    sizes = list(rankings)
    own = sizes if len(sizes) <= MOST_SIZES else [sizes[0], sizes[-1]]
    lasts = {ranking.last for ranking in rankings.values()}
    last = lasts.pop() if len(sizes) > 1 and len(lasts) == 1 else ""
    here = {size: clause(rankings[size], last) for size in own}
    clauses = [f"at batch size {size}, {words}" if words else "" for size, words in here.items()]
    if len(own) < len(sizes):
        clauses.insert(1, between_clause([rankings[size] for size in sizes[1:-1]]))
    if last:
        clauses.insert(0, f"{last} is clearly behind all others at every batch size")
    changes = ""
    if "batch" in norms and len(sizes) > 1:
        small, large = (
            [r for r in runs if r.norm == "batch" and r.batch_size == size] for size in (sizes[0], sizes[-1])
        )
        changes, record = batch_clause(small, large, samples)
        differences.extend([record] if record else [])
    counts = count_clause(list(rankings.values()))
    return sentences([clauses, [counts, changes]]), tuple(differences)


def _named(norm: str) -> str:
    # "No norm is clearly behind all others" would say the opposite of what is meant.
    return "the network without a norm" if norm == "none" else norm_label(norm)


def between_clause(rankings: list[Ranking]) -> str:
    """Return how many pairs differ clearly at the batch sizes between the smallest and the largest."""
    pairs = sum(len(ranking.differences) for ranking in rankings)
    clear = sum(ranking.clear for ranking in rankings)
    failed = listing(list(dict.fromkeys(name for ranking in rankings for name in ranking.failed)))
    words = (
        [f"at the {len(rankings)} batch sizes between them, {counted(clear, pairs)} clearly"] if pairs else []
    )
    return "; ".join(
        words + ([f"{failed} failed or diverged at a batch size between them"] if failed else [])
    )


def inputs_verdict(runs: list[RunRecord], samples: int) -> tuple[str, tuple[DifferenceRecord, ...]]:
    """Return the verdict on the input schemes, under one norm and batch size, and its differences."""
    if not runs:
        return "", ()
    where = f"{norm_label(runs[0].norm)}, batch size {runs[0].batch_size}, each at its own learning rate"
    schemes = list(dict.fromkeys(run.scheme for run in runs))
    ranking = rank({scheme_label(s): [r for r in runs if r.scheme == s] for s in schemes}, samples, where)
    words = [[f"for the inputs ({where}), {clause(ranking)}"], [count_clause([ranking])]]
    return sentences(words), ranking.differences


def sentences(parts: list[list[str]]) -> str:
    """Return each list of clauses as a sentence; an empty list gives none."""
    texts = ["; ".join(filter(None, clauses)) for clauses in parts]
    return " ".join(f"{text[:1].upper()}{text[1:]}." for text in texts if text)
