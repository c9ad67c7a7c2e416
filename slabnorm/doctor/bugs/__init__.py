"""The public bug set: short training scripts, each with one normalisation bug and its repaired twin.

A script is a module with `run(repaired)`, which trains on data that come with scikit-learn and returns a
`Case`: the number in which the bug shows, and what the doctor finds. The bug and its repair are one
difference, the line `if repaired:`. `BAD` and `GOOD` are what that number passes with the bug and without.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from types import ModuleType
from typing import Any

from slabnorm.doctor.bugs.task import Case

__all__ = ["Bench", "Bug", "Case", "Outcome", "bugs", "run_all", "run_one"]

_FIELDS = ("symptom", "cause", "kind", "rule", "healed", "thread")


@dataclass(frozen=True)
class Bug:
    """A script, as its header describes it.

    Attributes:
        name: its module.
        title: what is wrong, in a sentence.
        symptom, cause: what one sees, and why.
        kind: "inputs", "modes" or "structure".
        rule: the code that the doctor should name first; None if it cannot know.
        healed: how the first printed fix is known to heal the run, or why that is not tested. Of two codes in
            backticks the first is the script's, the second is printed.
        thread: the public thread that it is distilled from, or that none is known.
    """

    name: str
    title: str
    symptom: str
    cause: str
    kind: str
    rule: int | None
    healed: str
    thread: str

    @property
    def module(self) -> ModuleType:
        """The script."""
        return importlib.import_module(f"{__name__}.{self.name}")

    def shows(self, metric: float) -> bool:
        """Whether a number is as bad as with the bug; NaN is."""
        bad, good = self.module.BAD, self.module.GOOD
        return math.isnan(metric) or (metric <= bad if bad < good else metric >= bad)

    def healthy(self, metric: float) -> bool:
        """Whether a number is as good as in the repaired twin."""
        bad, good = self.module.BAD, self.module.GOOD
        return metric >= good if bad < good else metric <= good

    def run(self, repaired: bool) -> Case:
        """Run the script."""
        case: Case = self.module.run(repaired)
        return case


@dataclass(frozen=True)
class Outcome:
    """What came of one bug and its twin.

    Attributes:
        bug: the script.
        metric, repaired: the number with the bug, and in the twin.
        codes: what the doctor found, first things first.
        warned: whether any of it is more than a note.
        alarms: the codes of severity warning or above that it found in the twin.
        seconds: of both runs together.
        fix: what the first finding says to do.
    """

    bug: Bug
    metric: float
    repaired: float
    codes: tuple[int, ...]
    warned: bool
    alarms: tuple[int, ...]
    seconds: float
    fix: str = ""

    @property
    def found(self) -> bool:
        """Whether the code is among the findings. A bug that the doctor cannot know is not found."""
        return self.bug.rule in self.codes

    @property
    def first(self) -> bool:
        """Whether the code is the first finding."""
        return bool(self.codes) and self.codes[0] == self.bug.rule


@dataclass(frozen=True)
class Bench:
    """All outcomes, and what they sum up to."""

    outcomes: tuple[Outcome, ...]

    @property
    def recall(self) -> float:
        """The share of bugs that are found."""
        return sum(o.found for o in self.outcomes) / max(1, len(self.outcomes))

    @property
    def first_rate(self) -> float:
        """The share of bugs that are named first."""
        return sum(o.first for o in self.outcomes) / max(1, len(self.outcomes))

    @property
    def false_alarms(self) -> int:
        """How many repaired twins have a finding of severity warning or above."""
        return sum(bool(o.alarms) for o in self.outcomes)

    @property
    def precision(self) -> float:
        """Of the runs, repaired ones too, in which the doctor says something, the share that is right.

        It says something with a warning or an error, or by naming a bug that is only worth a note.
        """
        said = sum(o.first or o.warned for o in self.outcomes) + self.false_alarms
        return sum(o.first for o in self.outcomes) / max(1, said)

    @property
    def seconds(self) -> float:
        """How long all took."""
        return sum(o.seconds for o in self.outcomes)

    def as_dict(self) -> dict[str, Any]:
        """Return the outcomes in JSON's own types."""
        rows = [{**asdict(o), "found": o.found, "first": o.first} for o in self.outcomes]
        numbers = ("recall", "first_rate", "false_alarms", "precision", "seconds")
        return {**{name: getattr(self, name) for name in numbers}, "outcomes": rows}


@cache
def bugs() -> tuple[Bug, ...]:
    """Return all scripts, by name."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "task"]
    return tuple(_read(name) for name in sorted(names))


def _read(name: str) -> Bug:
    text = importlib.import_module(f"{__name__}.{name}").__doc__ or ""
    title, _, rest = text.partition("\n")
    found = dict(re.findall(r"^(\w+): (.*)$", rest, re.MULTILINE))
    symptom, cause, kind, rule, healed, thread = (found[field.capitalize()] for field in _FIELDS)
    code = None if rule == "none" else int(rule)
    return Bug(name, title, symptom, cause, kind, code, healed, thread)


def run_all(progress: Callable[[int, int, str], None] | None = None) -> Bench:
    """Run all scripts with their bug and repaired, and return what the doctor makes of them.

    Args:
        progress: called before each script with how many are done, how many there are, and its name.

    Raises:
        ExtraError: the extra `slabnorm[study]` is not installed.
    """
    outcomes = []
    for done, bug in enumerate(bugs()):
        if progress is not None:
            progress(done, len(bugs()), bug.name)
        outcomes.append(run_one(bug))
    return Bench(tuple(outcomes))


def run_one(bug: Bug) -> Outcome:
    """Run one script with its bug and repaired."""
    start = time.perf_counter()
    broken, twin = bug.run(repaired=False), bug.run(repaired=True)
    alarms = tuple(finding.code for finding in twin.findings if finding.severity != "note")
    codes = tuple(finding.code for finding in broken.findings)
    warned = any(finding.severity != "note" for finding in broken.findings)
    fix = broken.findings[0].fix if broken.findings else ""
    seconds = time.perf_counter() - start
    return Outcome(bug, broken.metric, twin.metric, codes, warned, alarms, seconds, fix)
