"""The claims of the field, each measured by a function in a file of its own name."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slabnorm.errors import DataError, OptionError
from slabnorm.extras import extra
from slabnorm.report.claims import FAILS, HOLDS, UNDECIDED, ClaimRecord, ClaimsRecord, Test
from slabnorm.study import networks, scaling, watch
from slabnorm.study import train as train_module
from slabnorm.study import trials as trials_module
from slabnorm.study.claims.claim import Claim, Material
from slabnorm.study.claims.sweep import sweep as sweep_all
from slabnorm.study.comparison import describe_data
from slabnorm.study.data import Split, photos
from slabnorm.study.ledger import RunLedger
from slabnorm.study.method import machine, versions
from slabnorm.study.options import check_count
from slabnorm.study.read import read_data
from slabnorm.study.text import Text, english
from slabnorm.study.trials import Trial, TrialRecord, Trials, Windows
from slabnorm.study.workers import Team, team
from slabnorm.text import did_you_mean, listing, printable

# In the order in which one tells the story: inputs, the slab, modes, training, small batches, relatives.
CLAIMS = (
    "scale",
    "saturate",
    "explode",
    "schemes",
    "leakage",
    "shift",
    "unit",
    "undo",
    "learn",
    "modes",
    "running",
    "channels",
    "faster",
    "init",
    "regularise",
    "small",
    "layer",
    "style",
    "family",
    "flow",
)
# Of larger data sets so many samples are taken: the claims are inequalities, which show with fewer than all.
SAMPLES, QUICK_SAMPLES, HELD_OUT = 10_000, 1_000, 2_000
LETTERS, QUICK_LETTERS, WINDOW = 200_000, 20_000, 48


def find(name: str) -> Claim:
    """Return a claim by its name.

    Raises:
        OptionError: there is no such claim.
    """
    if name not in CLAIMS:
        question = did_you_mean(name, CLAIMS)
        known = f"the claims are {listing(list(CLAIMS))}"
        raise OptionError(f"There is no claim {printable(name)}", "", f"{question} {known}".strip())
    claim: Claim = import_module(f"slabnorm.study.claims.{name}").CLAIM
    return claim


def claims(
    names: str | Iterable[str] = CLAIMS,
    data: Any = "digits",
    *,
    quick: bool = False,
    sweep: bool = False,
    seeds: int = 3,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    ledger: str | Path | None = None,
    resume: bool = False,
) -> ClaimsRecord:
    """Measure claims of the field with slabnorm's own layers on real data, and return what was found.

    Args:
        names: which claims; all by default.
        data: as for `compare`: "digits", "fashion-mnist", a pair (x, y), a path, ...
        quick: whether a rough answer is enough: fewer and shorter trainings.
        sweep: whether to add the many short trainings that the page of `slabnorm lab` has on its sliders.
        seeds: how many times to train each network, 3 or more for an interval worth having.
        seed: the first of the seeds.
        workers: the number of processes.
        progress: a function to call with the number of steps since its last call, and of all steps that are
            known so far.
        ledger: a file that keeps what is trained, so that a study that was interrupted can go on. It is yours
            to delete when you have the result.
        resume: whether to go on with the ledger that is there.

    Raises:
        OptionError: there is no such claim, or a number is out of range.
        DataError: the data cannot be read or used.
        LedgerError: the ledger cannot be used.

    >>> import slabnorm as sn
    >>> sn.claims("unit").claims[0].verdict
    'holds'
    """
    for package in ("sklearn.model_selection", "scipy.stats"):  # before hours of training
        extra(package, "claims", "'slabnorm[study]'")
    began = time.perf_counter()
    chosen = [names] if isinstance(names, str) else list(names)
    every = {name: find(name) for name in dict.fromkeys(chosen)}
    if not every:
        raise OptionError("names must not be empty", "", "name a claim, or leave them out for all")
    for option, number in (("seeds", seeds), ("workers", workers)):
        check_count(option, number)
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise OptionError("seed must be an integer from 0 to 2**31 - 1", printable(repr(seed)))
    whole = read_data(data)
    dataset = whole.subset(QUICK_SAMPLES if quick else SAMPLES, HELD_OUT)
    with ExitStack() as stack:
        keeper = None if ledger is None else RunLedger(Path(ledger), resume)
        if keeper:
            stack.callback(keeper.close)
        work = Trials(dataset, windows(english(QUICK_LETTERS if quick else LETTERS)))
        together = stack.enter_context(
            team(work, workers, progress=progress, ledger=keeper, shared=digest(work))
        )
        material = Material(
            data=dataset,
            pixels=dataset if dataset.x.dtype == np.uint8 and dataset.x.max() > 127 else photos(),
            text=work.text,
            seeds=tuple(range(seed, seed + seeds)),
            quick=quick,
            train=partial(train, together),
        )
        found, notes = measure_all(every, material)
        swept = sweep_all(material) if sweep else ()
    return ClaimsRecord(
        data=describe_data(dataset),
        claims=found,
        sweep=swept,
        seeds=material.seeds,
        method=method(material, workers),
        notes=dataset.notes + notes,
        seconds=time.perf_counter() - began,
    )


def train(together: Team, trials: Sequence[Trial]) -> list[TrialRecord]:
    """Return the records of trials in their order. What another claim has had trained is not done again."""
    records = together.do(trials)
    return [records[trial] for trial in trials]


def windows(text: Text) -> Windows:
    """Return a text in windows that lie side by side, each a letter longer than what a network sees."""
    parts = [part.unfold(0, WINDOW + 1, WINDOW) for part in (text.train, text.validation, text.test)]
    ends = np.cumsum([0, *map(len, parts)])
    split = Split(*(np.arange(first, last) for first, last in pairwise(ends)))
    return Windows(torch.cat(parts), split, text.alphabet)


def measure_all(
    every: dict[str, Claim], material: Material
) -> tuple[tuple[ClaimRecord, ...], tuple[str, ...]]:
    """Measure claims, and return what was found, and a note for each that these data have nothing to say on.

    Raises:
        DataError: that is so of all of them.
    """
    found, notes, last = [], [], None
    for name, claim in every.items():
        try:
            found.append(measure(name, claim, material))
        except DataError as error:
            last = error
            notes.append(f"{name}: left out. {printable(error.problem)}.")
    if last is not None and not found:
        raise last
    return tuple(found), tuple(notes)


def measure(name: str, claim: Claim, material: Material) -> ClaimRecord:
    """Return what became of one claim."""
    began = time.perf_counter()
    finding = claim.measure(material)
    return ClaimRecord(
        id=name,
        claim=claim.claim,
        question=claim.question,
        measured=finding.measured,
        tests=finding.tests,
        verdict=verdict(finding.tests),
        numbers=finding.numbers,
        pictures=finding.pictures,
        explanation=claim.explanation,
        source=claim.source,
        example=claim.example,
        code=inspect.getsource(inspect.getmodule(claim.measure) or claim.measure),
        setting=finding.setting,
        seconds=time.perf_counter() - began,
    )


def verdict(tests: Sequence[Test]) -> str:
    """Return HOLDS if all tests hold, FAILS if one of them fails, and UNDECIDED otherwise."""
    found = [test.verdict for test in tests]
    if FAILS in found:
        return FAILS
    return HOLDS if all(one == HOLDS for one in found) else UNDECIDED


def digest(work: Trials) -> str:
    """Return a digest of all that decides what is learned: data, text, and the source of what trains."""
    found = hashlib.sha256()
    for module in (networks, scaling, train_module, trials_module, watch):
        found.update(inspect.getsource(module).encode())
    split = work.data.split
    arrays = (work.data.x, work.data.y, split.train, split.validation, split.test, work.text.codes.numpy())
    for array in arrays:
        found.update(repr((array.dtype, array.shape)).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def method(material: Material, workers: int) -> tuple[tuple[str, str], ...]:
    """Return how all claims were measured, as pairs of a heading and a few sentences."""
    split = material.data.split
    return (
        (
            "Data",
            f"{material.data.name}: {len(split.train):,} training, {len(split.validation):,} validation and "
            f"{len(split.test):,} test samples. Statistics of inputs come from the training samples only.",
        ),
        (
            "Training",
            "SGD with momentum 0.9, the learning rate falling to zero by a cosine. Each network has its own "
            "best rate of a grid, by its validation accuracy; the test split plays no part in any choice."
            + (
                " This was a quick study, in which some networks had a grid of a single rate."
                * material.quick
            ),
        ),
        (
            "Seeds",
            f"{len(material.seeds)}, from {material.seeds[0]}. Networks of one seed start from the same "
            "weights and see the samples in the same order.",
        ),
        (
            "Verdict",
            "A claim is an inequality, or several. It holds if the whole 95% interval over seeds (Student's "
            "t) lies on its side, it does not hold here if the interval lies on the other, and else the data "
            "do not decide.",
        ),
        ("Machine", f"{machine()}; processes at a time: {workers}"),
        ("Versions", versions()),
    )
