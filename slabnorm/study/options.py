"""The options of a study, checked before anything is read or trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real

from slabnorm.errors import OptionError
from slabnorm.study.data import Dataset
from slabnorm.study.layers import NORMS, check_norm
from slabnorm.study.rates import RATES
from slabnorm.study.scaling import SCHEMES, check_scheme
from slabnorm.study.train import Rules, Run
from slabnorm.text import printable

BATCH_SIZES = (2, 16, 128)
SEEDS = 3


@dataclass(frozen=True)
class Options:
    """What to compare.

    Args:
        norms: names of norms, or patterns.
        batch_sizes: samples per optimiser step.
        seeds: how many paired seeds; they are 0, 1, ...
        scheme: how the inputs are scaled while norms are compared.
        schemes: the schemes to put side by side; none for no such comparison.
        rules: how every run trains.
        workers: processes to spread the runs over; 1: this one.

    Raises:
        OptionError: anything unknown, empty, out of range or given twice.
        PatternError: a norm that is a pattern, and malformed.
    """

    norms: tuple[str, ...] = NORMS
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    seeds: int = SEEDS
    scheme: str = "zscore"
    schemes: tuple[str, ...] = SCHEMES
    rules: Rules = field(default_factory=Rules)
    workers: int = 1

    def __post_init__(self) -> None:
        for what, given in (("norm", self.norms), ("batch size", self.batch_sizes)):
            if not given:
                raise OptionError(f"a study needs a {what}", "none", f"give one {what} at least")
        for what, choices in (
            ("norm", self.norms),
            ("batch size", self.batch_sizes),
            ("scheme", self.schemes),
        ):
            check_unique(what, choices)
        for norm in self.norms:
            check_norm(norm)
        for scheme in (self.scheme, *self.schemes):
            check_scheme(scheme)
        for what, number in (
            *(("a batch size", size) for size in self.batch_sizes),
            ("the number of seeds", self.seeds),
            ("the number of epochs", self.rules.epochs),
            ("the number of workers", self.workers),
        ):
            check_count(what, number)
        if not 0 < self.rules.target <= 1:
            raise OptionError(
                "the accuracy to count steps to lies above 0, and is 1 at most",
                str(self.rules.target),
                "0.9 is 90%",
            )
        rate = self.rules.learning_rate
        if not isinstance(rate, Real) or not 0 < rate < float("inf"):
            raise OptionError("the learning rate is positive", str(self.rules.learning_rate), "try 0.1")

    def check_against(self, data: Dataset) -> None:
        """Raise OptionError for a batch size that is larger than the training split."""
        largest = max(self.batch_sizes)
        if largest > len(data.split.train):
            raise OptionError(
                "a batch is no larger than the training split",
                f"batch size {largest}, {len(data.split.train)} training samples ({data.name})",
                f"--batch-size {len(data.split.train)} or less",
            )

    @property
    def inputs_norm(self) -> str:
        """The norm under which input schemes are compared: none, where the scaling matters most."""
        return "none" if "none" in self.norms else self.norms[0]

    @property
    def inputs_batch_size(self) -> int:
        """The batch size under which input schemes are compared: the middle one."""
        return sorted(self.batch_sizes)[len(self.batch_sizes) // 2]

    def plan(self) -> tuple[list[Run], list[Run]]:
        """Return the runs that compare norms, and those that compare input schemes; they may overlap."""
        seeds = range(self.seeds)
        norms = [Run(self.scheme, n, b, s) for n in self.norms for b in self.batch_sizes for s in seeds]
        norm, size = self.inputs_norm, self.inputs_batch_size
        inputs = [Run(c, norm, size, s, rate) for c in self.schemes for rate in RATES for s in seeds]
        return norms, inputs


def check_unique(what: str, choices: Sequence[object]) -> None:
    """Raise OptionError for a choice given twice."""
    for choice in choices:
        if choices.count(choice) > 1:
            raise OptionError(f"each {what} is given once", f"{printable(choice)} twice", "leave one out")


def check_count(what: str, number: object) -> None:
    """Raise OptionError unless `number` is an integer of 1 or more."""
    if not isinstance(number, Integral) or isinstance(number, bool) or number < 1:
        raise OptionError(f"{what} is an integer, 1 or more", printable(repr(number)), "give 1 or more")


def as_tuple(values: str | Iterable[str]) -> tuple[str, ...]:
    """Return one name or several as a tuple."""
    return (values,) if isinstance(values, str) else tuple(values)
