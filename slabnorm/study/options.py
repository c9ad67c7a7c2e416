"""The options of a study, checked before anything is read or trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral, Real

from slabnorm.errors import OptionError
from slabnorm.study.data import Dataset
from slabnorm.study.models import NORMS, check_norm
from slabnorm.study.rates import Setting
from slabnorm.study.scaling import SCHEMES, check_scheme
from slabnorm.study.train import Rules
from slabnorm.text import printable

BATCH_SIZES = (16, 64)
SEEDS = 5
SEARCH_SEEDS = range(1000, 1001)  # of the runs that choose learning rates; a study has fewer seeds


@dataclass(frozen=True)
class Options:
    """What to compare.

    Args:
        norms: the names of norms, or patterns.
        batch_sizes: numbers of samples per optimiser step.
        seeds: the number of seeds, which are 0, 1, ...
        scheme: how inputs are scaled while norms are compared.
        schemes: the input schemes to compare; none for no such comparison.
        rules: how every run is trained.
        workers: the number of processes, or of runs at a time; None for what suits the engine.
        engine: "local" or "ray".
        address: of a Ray cluster.

    Raises:
        OptionError: something is unknown, empty, out of range or given twice.
        PatternError: a norm is a malformed pattern.
    """

    norms: tuple[str, ...] = NORMS
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    seeds: int = SEEDS
    scheme: str = "zscore"
    schemes: tuple[str, ...] = SCHEMES
    rules: Rules = field(default_factory=Rules)
    workers: int | None = None
    engine: str = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        for name in ("norms", "batch_sizes", "schemes"):
            choices = getattr(self, name)
            if not choices and name != "schemes":
                raise OptionError(f"{name} must not be empty", "", "give at least one")
            for choice in choices:
                if choices.count(choice) > 1:
                    raise OptionError(f"{name} must not have {printable(choice)} twice", "", "leave one out")
        for norm in self.norms:
            check_norm(norm)
        for scheme in (self.scheme, *self.schemes):
            check_scheme(scheme)
        for size in self.batch_sizes:
            check_count("batch_sizes", size)
        counts = {"seeds": self.seeds, "epochs": self.rules.epochs}
        for name, number in {**counts, **({} if self.workers is None else {"workers": self.workers})}.items():
            check_count(name, number)
        if self.seeds > SEARCH_SEEDS[0]:
            raise OptionError(f"seeds must be at most {SEARCH_SEEDS[0]}", str(self.seeds))
        if self.engine not in ("local", "ray"):
            raise OptionError('engine must be "local" or "ray"', printable(repr(self.engine)))
        if self.address is not None and self.engine != "ray":
            raise OptionError(
                "address must be left out without a Ray cluster", repr(self.address), 'add engine="ray"'
            )
        target, rate = self.rules.target, self.rules.learning_rate
        if not 0 < target <= 1:
            raise OptionError("target must be above 0 and at most 1", str(target), "0.9 stands for 90%")
        if not isinstance(rate, Real) or not 0 < rate < float("inf"):
            raise OptionError("learning_rate must be a finite number above 0", str(rate), "0.1 is usual")
        if not 1e-12 <= rate <= 1e6:  # times 64 and the batch size it is still a number, and divided by 16
            raise OptionError("learning_rate must be from 1e-12 to 1e6", str(rate), "0.1 is usual")

    def check_against(self, data: Dataset) -> None:
        """Raise OptionError if a batch size is larger than the training split."""
        train, largest = len(data.split.train), max(self.batch_sizes)
        fits = [size for size in self.batch_sizes if size <= train]
        if largest > train:
            raise OptionError(
                f"The batch size {largest} is larger than the training split",
                f"{train:,} training samples of the {len(data.y):,} of {data.name}",
                f"give smaller ones, such as batch_sizes={fits or [max(1, train // 4)]}",
            )

    @property
    def inputs_norm(self) -> str:
        """The norm under which input schemes are compared: none if possible, where scaling matters most."""
        return "none" if "none" in self.norms else self.norms[0]

    @property
    def inputs_batch_size(self) -> int:
        """The batch size under which input schemes are compared: the middle one."""
        return sorted(self.batch_sizes)[len(self.batch_sizes) // 2]

    @property
    def search_seeds(self) -> range:
        """The seeds of the runs that choose learning rates: none of those that are reported.

        The run that is best on validation owes it to its rate and to its luck, and the same run would take
        that luck with it into the results.
        """
        return SEARCH_SEEDS

    def settings(self, schemes: Iterable[str]) -> tuple[list[Setting], list[Setting]]:
        """Return the settings that compare norms, and those that compare input schemes; one may be in both.

        Args:
            schemes: those of the input schemes that fit the data.
        """
        norms = [Setting(self.scheme, norm, size) for norm in self.norms for size in self.batch_sizes]
        inputs = [Setting(scheme, self.inputs_norm, self.inputs_batch_size) for scheme in schemes]
        return norms, inputs


def check_count(name: str, number: object) -> None:
    """Raise OptionError unless a number is an integer of 1 or more."""
    if not isinstance(number, Integral) or isinstance(number, bool) or number < 1:
        what = "integers" if name == "batch_sizes" else "an integer"
        raise OptionError(f"{name} must be {what}, 1 or more", printable(repr(number)))


def as_tuple(values: str | Iterable[str]) -> tuple[str, ...]:
    """Return one name or several as a tuple."""
    return (values,) if isinstance(values, str) else tuple(values)
