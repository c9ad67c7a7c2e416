"""The verdict: one sentence that follows from the numbers by rules.

1. At the smallest and at the largest batch size, the best is the highest mean test accuracy.
2. The best is clearly ahead of another where the 95% interval of their paired difference leaves out
   zero; otherwise there is no clear difference between the two.
3. Of batch norm it is said what it gains or loses between the two batch sizes, by the same rule.

One seed gives no interval, hence no clear difference. A choice with a run that failed or diverged is named,
not ranked.
"""

from __future__ import annotations

from dataclasses import dataclass

from slabnorm.report.names import listing, norm_label, scheme_label
from slabnorm.report.numbers import percent
from slabnorm.report.records import DifferenceRecord, RunRecord
from slabnorm.study.statistics import accuracies, is_clear, paired


@dataclass(frozen=True)
class Ranking:
    """Choices by mean accuracy: the best, who it is clearly ahead of, who not, and who failed."""

    best: str
    accuracy: float
    tied: list[str]
    ahead: list[str]
    level: list[str]
    failed: list[str]
    seeds: int
    differences: tuple[DifferenceRecord, ...]


def rank(choices: dict[str, list[RunRecord]], samples: int, where: str) -> Ranking | None:
    """Return how the best choice stands to each of the others, or None where every choice failed.

    Args:
        choices: the runs of each choice, by its name in words.
        samples: the number of test samples the accuracies were counted on.
        where: what the choices share, for the records: "batch size 2".
    """
    # A network full of NaN still answers one class; that is no accuracy to rank.
    trained = {name: all(run.status == "done" for run in runs) for name, runs in choices.items()}
    values = {name: accuracies(runs) if trained[name] else None for name, runs in choices.items()}
    known = {name: v for name, v in values.items() if v is not None}
    failed = [name for name in choices if name not in known]
    if not known:
        return None
    # A sum of k/n over the seeds is compared as a count, so that equal counts tie exactly.
    counts = {name: round(sum(v) * samples) for name, v in known.items()}
    most = max(counts.values())
    tied = [name for name in known if counts[name] == most]
    best = tied[0]
    differences = []
    for name, v in known.items():
        if name != best:
            difference = paired(known[best], v, 1 / samples)
            clear = is_clear(difference)
            differences.append(DifferenceRecord(f"{best}, {where}", f"{name}, {where}", difference, clear))
    others = [name for name in known if name != best]
    return Ranking(
        best=best,
        accuracy=sum(known[best]) / len(known[best]),
        tied=tied,
        ahead=[n for n, d in zip(others, differences, strict=True) if d.clear],
        level=[n for n, d in zip(others, differences, strict=True) if not d.clear],
        failed=failed,
        seeds=len(known[best]),
        differences=tuple(differences),
    )


def clause(ranking: Ranking | None, where: str) -> str:
    """Return one ranking in words, without a full stop."""
    if ranking is None:
        return f"{where} every run failed or diverged"
    best = f"{listing(ranking.tied)} ({percent(ranking.accuracy)})"
    top = f"highest: {listing(ranking.tied)}, {percent(ranking.accuracy)}"
    verb = "is" if len(ranking.tied) == 1 else "are"
    behind = [name for name in ranking.level if name not in ranking.tied]
    failed = f"; {listing(ranking.failed)} failed or diverged there" if ranking.failed else ""
    if not ranking.ahead and not ranking.level:
        return f"{where} only {best} was measured{failed}"
    if ranking.seeds == 1:
        no_interval = "one seed gives no interval and so no clear difference"
        return f"{where} {best} {verb} highest, but {no_interval}{failed}"
    if not ranking.ahead:
        names = [ranking.best, *ranking.level]
        those = listing(names) if len(names) == 2 else f"any of the {len(names)}"
        return f"{where} there is no clear difference between {those} ({top}){failed}"
    level = f", with no clear difference from {listing(behind)}" if behind else ""
    return f"{where} {best} {verb} clearly ahead of {listing(ranking.ahead)}{level}{failed}"


def batch_clause(
    small: list[RunRecord], large: list[RunRecord], samples: int
) -> tuple[str, DifferenceRecord | None]:
    """Return what happens to batch norm from the largest batch size to the smallest, and the difference."""
    least, most = small[0].batch_size, large[0].batch_size
    at_least, at_most = accuracies(small), accuracies(large)
    for runs, size in ((small, least), (large, most)):
        if any(run.status != "done" for run in runs):
            return f"batch norm does not train at batch size {size}", None
    assert at_least is not None and at_most is not None
    if len(at_least) == 1:
        return f"one seed does not tell batch norm at batch size {least} from {most}", None
    change = paired(at_least, at_most, 1 / samples)
    clear = is_clear(change)
    record = DifferenceRecord(
        f"batch norm, batch size {least}", f"batch norm, batch size {most}", change, clear
    )
    if not clear:
        return f"batch norm shows no clear difference between batch sizes {least} and {most}", record
    verb = "gains" if change.mean > 0 else "loses"
    points = f"{100 * abs(change.mean):.1f} points"
    # The smaller batches are also more steps: the cause is not the batch size alone.
    return f"batch norm {verb} {points} going from batch size {most} down to {least}, at equal epochs", record


def verdict(runs: list[RunRecord], samples: int) -> tuple[str, tuple[DifferenceRecord, ...]]:
    """Return the verdict on the norms, and every difference it rests on.

    Args:
        runs: of one input scheme; every norm, batch size and seed.
        samples: the number of test samples.
    """
    norms = list(dict.fromkeys(run.norm for run in runs))
    sizes = sorted({run.batch_size for run in runs})
    clauses: list[str] = []
    differences: list[DifferenceRecord] = []
    for size in dict.fromkeys((sizes[0], sizes[-1])):
        here = {
            norm_label(norm): [r for r in runs if r.norm == norm and r.batch_size == size] for norm in norms
        }
        ranking = rank(here, samples, f"batch size {size}")
        clauses.append(clause(ranking, f"at batch size {size},"))
        differences.extend(ranking.differences if ranking else ())
    if "batch" in norms and len(sizes) > 1:
        small, large = (
            [r for r in runs if r.norm == "batch" and r.batch_size == size] for size in (sizes[0], sizes[-1])
        )
        words, record = batch_clause(small, large, samples)
        clauses.append(words)
        differences.extend([record] if record else [])
    return sentence(clauses), tuple(differences)


def inputs_verdict(runs: list[RunRecord], samples: int) -> tuple[str, tuple[DifferenceRecord, ...]]:
    """Return the verdict on the input schemes, at one norm and batch size, and its differences."""
    if not runs:
        return "", ()
    where = f"{norm_label(runs[0].norm)}, batch size {runs[0].batch_size}, each at its own learning rate"
    schemes = list(dict.fromkeys(run.scheme for run in runs))
    ranking = rank({scheme_label(s): [r for r in runs if r.scheme == s] for s in schemes}, samples, where)
    words = clause(ranking, f"for the inputs ({where}),")
    return sentence([words]), ranking.differences if ranking else ()


def sentence(clauses: list[str]) -> str:
    """Return clauses as one sentence."""
    text = "; ".join(clauses)
    return f"{text[:1].upper()}{text[1:]}."
