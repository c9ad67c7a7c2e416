"""What an audit found, as plain records: numbers, text and tuples, nothing of torch.

A number that does not exist (the mean of a feature without values) is None in JSON.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

FEW = 100  # samples, from which on that nothing was found says something


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or deserves a look.

    Attributes:
        kind: "overlap", "duplicates", "leak", "source", "scale", "order", "names", "dtype", "shift",
            "spread", "range", "constant" or "missing".
        severity: "error" (results cannot be trusted) or "warning".
        text: what was found, a sentence.
        advice: what to do about it.
        features: the names of those it is about, the worst first; () for the whole data set.
        numbers: behind the sentence, by name.
    """

    kind: str
    severity: str
    text: str
    advice: str
    features: tuple[str, ...] = ()
    numbers: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Overlap:
    """How many distinct samples of the new data were in the training data.

    Attributes:
        told: distinct samples of the new data that the training sketch can tell: its sample of them.
        found: how many of these were in the training data.
        share: found / told; low and high: its 95% interval, by Clopper and Pearson.
        distinct: distinct samples of the new data, estimated where `exact` is false.
        exact: whether every sample could be told.
    """

    told: int
    found: int
    share: float
    low: float
    high: float
    distinct: int
    exact: bool


@dataclass(frozen=True)
class LeakedSample:
    """Where a sample stands.

    Attributes:
        file: the file, or what the data are called; of an image, its path, and in a tar the member's.
        row: its number in there, from 0 on; None for an image, which is a file.
    """

    file: str
    row: int | None

    def __str__(self) -> str:
        return self.file if self.row is None else f"{self.file}, row {self.row}"


@dataclass(frozen=True)
class Leaked:
    """The samples of the new data that are identical to training samples, one by one; repeats, too.

    Attributes:
        samples: the first 10,000 of those that can be named, in the order of the data.
        known: how many can be named: of a large training set the fit keeps the hashes of some samples only.
        about: how many there are in all; estimated where `exact` is false.
        exact: whether all can be named.
    """

    samples: tuple[LeakedSample, ...]
    known: int
    about: int
    exact: bool

    @property
    def text(self) -> str:
        """How many can be named, as the head of a list."""
        if self.exact:
            return f"{self.known:,} samples are identical to training samples"
        return (
            f"about {self.about:,} samples are identical to training samples; {self.known:,} can be named, "
            "as the fit keeps the hashes of a part of its samples"
        )


@dataclass(frozen=True)
class Part:
    """A feature's statistics in one data set, in the units of the data."""

    count: int
    missing: int
    mean: float
    std: float
    min: float
    max: float


@dataclass(frozen=True)
class FeatureAudit:
    """A feature in the training data and in the new data.

    Attributes:
        name: its name, or its place on the pattern's right side.
        train, new: its statistics.
        shift: of the mean, in training standard deviations; NaN for a constant.
        error: the standard error of `shift`.
        spread: new standard deviation over that of training.
        outside: the share of the new values that lie out of the training range.
    """

    name: str
    train: Part
    new: Part
    shift: float
    error: float
    spread: float
    outside: float


@dataclass(frozen=True)
class AuditRecord:
    """Fitted training statistics beside another data set.

    Attributes:
        data: what the new data are called.
        scheme, pattern, split: of the fit.
        train_samples, samples: of the training data and of the new data.
        train_dtype, dtype: likewise.
        overlap: None where the statistics keep no sketch.
        findings: errors first.
        notes: what is no finding, but good to know.
        features: all of them, in order.
        leaked: the samples that were in the training data; None if none was found.
    """

    data: str
    scheme: str
    pattern: str
    split: str
    train_samples: int
    samples: int
    train_dtype: str
    dtype: str
    overlap: Overlap | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    features: tuple[FeatureAudit, ...]
    leaked: Leaked | None = None

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        if self.clean:
            few = (
                f", whose {self.samples:,} samples show great differences only" if self.samples < FEW else ""
            )
            return f"Nothing found in {self.data}{few}."
        errors = sum(finding.severity == "error" for finding in self.findings)
        warnings = len(self.findings) - errors
        counts = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in
                  ((errors, "error"), (warnings, "warning")) if n]  # fmt: skip
        first = self.findings[0].text
        return f"{' and '.join(counts)} in {self.data}. {first[:1].upper()}{first[1:]}."

    def as_dict(self, most: int | None = None) -> dict[str, Any]:
        """Return the record as JSON's own types; of the features and leaked samples the first `most`."""
        leaked = self.leaked and replace(self.leaked, samples=self.leaked.samples[:most])
        some = replace(self, features=self.features[:most], leaked=leaked)
        plain = {**asdict(some), "clean": self.clean, "verdict": self.verdict}
        for finding in plain["findings"]:
            finding["numbers"] = dict(finding["numbers"])
        finite: dict[str, Any] = _finite(plain)
        return finite


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
