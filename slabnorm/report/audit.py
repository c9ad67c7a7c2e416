"""The report of an audit, from records to a terminal table and an HTML page.

`slabnorm.inputs.audit` writes the records. A number that does not exist (the mean of a feature without
values) is None in JSON.
"""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from slabnorm.report.page import DASHED, HUES, check_packages, faint, finished, render
from slabnorm.report.wording import NONE, column, dtype_label, minus
from slabnorm.text import listing, printable

if TYPE_CHECKING:
    from rich.console import Console

FEW = 100  # with fewer samples, finding nothing says little


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or deserves attention.

    Attributes:
        kind: "overlap", "duplicates", "leak", "source", "scale", "order", "names", "dtype", "shift",
            "spread", "range", "constant" or "missing".
        severity: "error" (results cannot be trusted) or "warning".
        text: what was found, in a sentence without a full stop.
        advice: what to do about it.
        features: the names of the features it is about, the worst first; () for the whole data set.
        numbers: the numbers behind the sentence, with their names.
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
        told: the number of distinct new samples of which the training sketch tells whether training had them.
        found: how many of these were in the training data.
        share: found / told.
        low, high: the 95% interval of the share, by Clopper and Pearson.
        distinct: the number of distinct new samples; estimated unless `exact`.
        exact: whether the sketch tells of every sample.
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
    """Where a sample is.

    Attributes:
        file: the file, or the name of the data; for an image its path, or that of the member of a tar.
        row: the number of the sample in there, counted from 0; None for an image.
    """

    file: str
    row: int | None

    def __str__(self) -> str:
        return self.file if self.row is None else f"{self.file}, row {self.row}"


@dataclass(frozen=True)
class Leaked:
    """The new samples that are identical to training samples, each repeat included.

    Attributes:
        samples: the first 10,000 of those that can be named, in the order of the data.
        known: how many can be named. Of a large training set, the fit keeps the hashes of only some samples.
        about: how many there are in all; estimated unless `exact`.
        exact: whether all can be named.
    """

    samples: tuple[LeakedSample, ...]
    known: int
    about: int
    exact: bool

    @property
    def text(self) -> str:
        """A sentence to stand above the list of samples, without a full stop."""
        if self.exact:
            return f"These {self.known:,} samples are identical to training samples"
        return (
            f"About {self.about:,} samples are identical to training samples; {self.known:,} of them can be "
            "named, because the fit keeps the hashes of only some of its samples"
        )


@dataclass(frozen=True)
class Part:
    """The statistics of a feature in one data set, in the units of the data."""

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
        name: its name, or its place on the right side of the pattern.
        train, new: its statistics in both.
        shift: the shift of the mean, in training standard deviations; NaN for a constant feature.
        error: the standard error of `shift`.
        spread: the new standard deviation divided by that of training.
        outside: the share of new values outside the training range.
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
    """The comparison of a data set with fitted training statistics.

    Attributes:
        data: the name of the new data.
        scheme, pattern, split: what the fit was given.
        train_samples, samples: the number of training samples and of new samples.
        train_dtype, dtype: the dtype of the training data and of the new data.
        overlap: how many new samples were in the training data; None if the statistics keep no sketch.
        findings: what is wrong, errors first.
        notes: sentences that are not findings, but good to know.
        features: all features, in order.
        leaked: the samples that were in the training data; None if none were found.
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
    def heading(self) -> str:
        """Which data are compared with which."""
        new = f"{self.data}, {self.samples:,} samples of {dtype_label(self.dtype)}"
        fitted = f'split "{self.split}", {self.train_samples:,} samples of {dtype_label(self.train_dtype)}'
        return f"{new}, compared with the statistics of {fitted}, {self.pattern}"

    @property
    def counts(self) -> str:
        """The number of errors and warnings, such as "1 error and 2 warnings", or "Nothing"."""
        errors = sum(finding.severity == "error" for finding in self.findings)
        numbers = {"error": errors, "warning": len(self.findings) - errors}
        counts = [f"{number} {word}{'s' if number > 1 else ''}" for word, number in numbers.items() if number]
        return listing(counts) or "Nothing"

    @property
    def verdict(self) -> str:
        """The outcome in one or two sentences."""
        if self.clean and self.samples < FEW:
            few = f"{self.samples:,} samples show only great differences"
            return f"Nothing found in {self.data}, but {few}."
        first = f" {self.findings[0].text[:1].upper()}{self.findings[0].text[1:]}." if self.findings else ""
        return f"{self.counts} {'' if self.findings else 'found '}in {self.data}.{first}"

    def as_dict(self, most: int | None = None) -> dict[str, Any]:
        """Return the record in JSON's own types, with at most `most` features and leaked samples."""
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


# The audit in a terminal.

STYLES = {"error": "red", "warning": "yellow"}
FEATURES_NAMED = 6  # in a row of the table
LEAKED_PRINTED = 10


def print_audit(record: AuditRecord, console: Console) -> None:
    """Print what was found: a row for each finding, then the overlap and the leaked samples.

    No text of the record is read as markup.
    """
    from slabnorm.report.terminal import print_text

    print_text(console, printable(record.heading, 600), "dim")
    console.print()
    print_text(console, f"{record.counts} found", "bold" if record.clean else "bold red")
    console.print()
    if record.findings:
        print_findings(record.findings, console)
    print_text(console, overlap_text(record.overlap))
    if record.leaked is not None:
        _print_leaked(record.leaked, console)
    for note in record.notes:
        print_text(console, f"• {printable(note, 400)}", "dim")


def print_findings(findings: tuple[Finding, ...], console: Console) -> None:
    """Print a row for each finding: its kind, what was found, and what to do."""
    from rich.text import Text

    from slabnorm.report.terminal import Column, Row, print_rows

    rows = []
    for finding in findings:
        text = Text(printable(finding.text, 500))
        if len(finding.features) > 1:
            names = ", ".join(printable(name, 40) for name in finding.features[:FEATURES_NAMED])
            text.append(f"\n{names}{', …' if len(finding.features) > FEATURES_NAMED else ''}", style="dim")
        kind = Text(finding.kind, style=STYLES[finding.severity])
        rows += [Row([kind, text, printable(finding.advice, 500)]), Row()]
    columns = [Column("kind", "name"), Column("what was found", "sentence"), Column("what to do", "sentence")]
    print_rows(console, columns, rows)


def overlap_text(overlap: Overlap | None) -> str:
    """Return in one sentence how many of the new samples are in the training data."""
    if overlap is None:
        return "The overlap with the training data was not estimated."
    if overlap.exact:
        return f"{overlap.found:,} of {overlap.told:,} distinct samples are in the training data, exactly."
    ends = f"95% interval for all samples: {100 * overlap.low:.2g} to {100 * overlap.high:.2g}%"
    return f"{overlap.found:,} of {overlap.told:,} samples that can be told are in the training data; {ends}."


def _print_leaked(leaked: Leaked, console: Console) -> None:
    """Print where the first of the samples are that were in the training data."""
    from slabnorm.report.terminal import print_text

    print_text(console, f"{leaked.text}:")
    for sample in leaked.samples[:LEAKED_PRINTED]:
        console.print(f"  {printable(sample, 400)}", markup=False, soft_wrap=True)
    if leaked.known > LEAKED_PRINTED:
        more = f"and {leaked.known - LEAKED_PRINTED:,} more; --json lists the first {len(leaked.samples):,}"
        print_text(console, f"  {more}", "dim")


# The audit as a page.

FEATURES_LISTED, LEAKED_LISTED = 200, 200  # in the tables and lists of the page
KEPT = 1000  # features, and leaked samples, in the JSON of the page; `--json` has more
TRAIN, NEW = HUES[1], HUES[2]
NAMED = 40  # with more features, the overview has no names, and features are points along an axis
MOST_POINTS = 2000
MOST_DRAWN = 12  # features with a picture of their own
ERRORS = 2.0  # the length of error bars, in standard errors
LEAST_SHIFT, LEAST_SPREAD = 0.5, 2.0  # the least range of the axes, so that noise looks like noise


def render_audit(record: AuditRecord) -> str:
    """Return the report of an audit as HTML.

    Raises:
        ExtraError: the extra `slabnorm[study]` is not installed.
    """
    check_packages()
    found = drifting(record)
    drawn = [feature for feature in found if feature.new.count and feature.train.count][:MOST_DRAWN]
    names = {feature.name for feature in found}
    listed = (found + [feature for feature in record.features if feature.name not in names])[:FEATURES_LISTED]
    leaked = record.leaked.samples[:LEAKED_LISTED] if record.leaked else ()
    return render(
        "audit.html.jinja",
        _figures(record, drawn),
        record.as_dict(KEPT),
        audit=record,
        drawn=drawn,
        found=found,
        rows=_rows(listed),
        gaps=any(feature.train.missing or feature.new.missing for feature in listed),
        leaked=[printable(sample, 1000) for sample in leaked],
        dtype_label=dtype_label,
    )


def _rows(features: list[FeatureAudit]) -> list[tuple[str, dict[str, str]]]:
    """Return the table of features: of each its name, and its numbers by the heads of their columns."""
    numbers = {
        "mean, training": column([f.train.mean for f in features]),
        "mean, new": column([f.new.mean for f in features]),
        "sd, training": column([f.train.std for f in features]),
        "sd, new": column([f.new.std for f in features]),
        "shift, sd": [_shift_text(f) for f in features],
        "spread, ratio": column([f.spread for f in features], 3),
        "out of range, % of values": [f"{100 * f.outside:.2f}" for f in features],
    }
    if any(f.train.missing or f.new.missing for f in features):
        numbers["missing"] = [_missing_text(f) for f in features]
    rows = zip(*numbers.values(), strict=True)
    texts = [dict(zip(numbers, map(minus, row), strict=True)) for row in rows]
    return [(f.name, text) for f, text in zip(features, texts, strict=True)]


def _shift_text(feature: FeatureAudit) -> str:
    """Return the shift of the mean with two standard errors."""
    if math.isnan(feature.shift):
        return NONE
    digits = 2 if ERRORS * feature.error < 1 else 1
    return f"{feature.shift:+.{digits}f} ± {ERRORS * feature.error:.{digits}f}"


def _missing_text(feature: FeatureAudit) -> str:
    """Return the share of missing values in training and now; empty if none are missing."""
    parts = (feature.train, feature.new)
    if not any(part.missing for part in parts):
        return ""
    shares = [100 * part.missing / max(1, part.count + part.missing) for part in parts]
    return f"{shares[0]:.3g}% → {shares[1]:.3g}%"


def _figures(record: AuditRecord, drawn: list[FeatureAudit]) -> dict[str, Any]:
    """Return the figures by the id of their place; none if nothing was found.

    Plotly takes 4.8 MB of a page. A page with nothing to explore does without: its table has all the numbers.
    """
    if record.clean:
        return {}
    figures = {"overview": overview_figure(record)}
    if record.overlap is not None:
        figures["overlap"] = overlap_figure(record)
    if drawn:
        figures["features"] = features_figure(drawn)
    return figures


def drifting(record: AuditRecord) -> list[FeatureAudit]:
    """Return the features that findings are about, or all if one cause explains all; the worst first."""
    about = {name for finding in record.findings for name in finding.features}
    whole = any(finding.kind in ("scale", "dtype") for finding in record.findings)
    chosen = [feature for feature in record.features if whole or feature.name in about]
    return sorted(chosen, key=lambda feature: -_size(feature.shift))


def overview_figure(record: AuditRecord) -> Any:
    """Return the shift of the mean, with two standard errors, and the ratio of spreads of every feature."""
    from plotly.subplots import make_subplots

    features = sorted(range(len(record.features)), key=lambda i: -_size(record.features[i].shift))
    features = sorted(features[:MOST_POINTS])
    named = len(record.features) <= NAMED
    rows, columns = (1, 2) if named else (2, 1)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes=named,
        shared_xaxes=not named,
        horizontal_spacing=0.06,
        vertical_spacing=0.1,
        subplot_titles=["shift of the mean, training sd", "spread, times that of training"],
    )
    found = {feature.name for feature in drifting(record)}
    for panel, values in enumerate((_shifts, _spreads)):
        for wanted, colour, label in ((False, TRAIN, "not in a finding"), (True, NEW, "named in a finding")):
            chosen = [i for i in features if (record.features[i].name in found) == wanted]
            trace = _points(record, chosen, values, colour, label, named)
            trace.update(showlegend=panel == 0)
            place = {"row": 1, "col": panel + 1} if named else {"row": panel + 1, "col": 1}
            figure.add_trace(trace, **place)
    _axes(figure, record, named)
    return finished(figure, 130 + (24 * max(5, len(record.features)) if named else 480))


def overlap_figure(record: AuditRecord) -> Any:
    """Return the share of samples that were in the training data, with its interval, on an axis from 0."""
    import plotly.graph_objects as go

    overlap = record.overlap
    assert overlap is not None  # otherwise the page has no such figure
    ends = [100 * (overlap.high - overlap.share)], [100 * (overlap.share - overlap.low)]
    dot = go.Scatter(
        x=[100 * overlap.share],
        y=["seen in training"],
        mode="markers",
        marker={"color": NEW if overlap.found else TRAIN, "size": 13},
        error_x={"type": "data", "array": ends[0], "arrayminus": ends[1], "thickness": 2, "width": 7},
        hovertemplate="%{x:.3g}%<extra></extra>",
    )
    figure = go.Figure(dot)
    figure.update_xaxes(
        title="% of the distinct samples", range=[-0.5, max(5.0, min(102.0, 115 * overlap.high))]
    )
    figure = finished(figure, 150)
    return figure.update_layout(margin={"t": 15, "l": 130}, showlegend=False)


def features_figure(features: list[FeatureAudit]) -> Any:
    """Return a picture of each feature on an axis of its own: range, standard deviation and mean."""
    from plotly.subplots import make_subplots

    spacing = 0.45 / len(features) if len(features) > 1 else 0
    titles = [_title(feature) for feature in features]
    figure = make_subplots(rows=len(features), cols=1, vertical_spacing=spacing, subplot_titles=titles)
    for row, feature in enumerate(features, 1):
        for part, label, colour in ((feature.new, "new data", NEW), (feature.train, "training", TRAIN)):
            for trace in _part(part, label, colour):
                figure.add_trace(trace.update(showlegend=trace.showlegend and row == 1), row=row, col=1)
        ends = [end for part in (feature.train, feature.new) for end in (part.min, part.max)]
        room = 0.03 * (max(ends) - min(ends)) or 0.5
        figure.update_xaxes(range=[min(ends) - room, max(ends) + room], row=row, col=1)
        figure.update_yaxes(range=[-0.6, 1.6], row=row, col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 14})
    figure.update_yaxes(showgrid=False)
    figure.update_layout(legend={"traceorder": "reversed"})
    return finished(figure, 105 + 128 * len(features))


def _part(part: Part, label: str, colour: str) -> list[Any]:
    """Return a thin line for the range of one data set, a thick one for its sd, and a mark for its mean."""
    import plotly.graph_objects as go

    low, high = max(part.min, part.mean - part.std), min(part.max, part.mean + part.std)
    says = f"{label}: mean {part.mean:.6g}, sd {part.std:.6g}, from {part.min:.6g} to {part.max:.6g}"
    line = {"y": [label] * 2, "mode": "lines", "legendgroup": label, "showlegend": False, "hoverinfo": "skip"}
    mark = go.Scatter(
        x=[part.mean],
        y=[label],
        mode="markers",
        name=label,
        legendgroup=label,
        showlegend=True,
        marker={"size": 17, "symbol": "line-ns", "line": {"width": 3.5, "color": colour}},
        hovertemplate=f"{minus(says)}<extra></extra>",
    )
    return [
        go.Scatter(x=[part.min, part.max], line={"color": colour, "width": 2}, **line),
        go.Scatter(x=[low, high], line={"color": faint(colour, 0.4), "width": 15}, **line),
        mark,
    ]


def _points(record: AuditRecord, chosen: list[int], values: Any, colour: str, label: str, named: bool) -> Any:
    import plotly.graph_objects as go

    features = [record.features[i] for i in chosen]
    at, error = values(features)
    along: list[Any] = chosen
    bars = {"type": "data", "array": error, "thickness": 1.2, "width": 3} if error else None
    x, y = (at, along) if named else (along, at)
    return go.Scatter(
        x=x,
        y=y,
        mode="markers",
        name=label,
        legendgroup=label,
        marker={"color": colour, "size": 9 if named else 6},
        customdata=[_label(feature, 80) for feature in features],
        hovertemplate="%{customdata}: " + ("%{x:.4g}" if named else "%{y:.4g}") + "<extra></extra>",
        **({"error_x" if named else "error_y": bars} if bars else {}),
    )


def _axes(figure: Any, record: AuditRecord, named: bool) -> None:
    """Draw a line where nothing has changed, and name the features if there is room."""
    shift, spread = _shift_axis(record), _spread_axis(record)
    if named:
        ticks = list(range(len(record.features)))
        labels = [_label(feature, 24) for feature in record.features]
        figure.update_yaxes(tickvals=ticks, ticktext=labels, range=[len(ticks) - 0.5, -0.5])
        figure.update_yaxes(automargin=True)
        figure.add_vline(x=0, line=DASHED, layer="below", row=1, col=1)
        figure.add_vline(x=1, line=DASHED, layer="below", row=1, col=2)
        figure.update_xaxes(shift, row=1, col=1)
        figure.update_xaxes(spread, row=1, col=2)
    else:
        figure.add_hline(y=0, line=DASHED, layer="below", row=1, col=1)
        figure.add_hline(y=1, line=DASHED, layer="below", row=2, col=1)
        figure.update_yaxes(shift, row=1, col=1)
        figure.update_yaxes(spread, row=2, col=1)
        figure.update_xaxes(title="feature, by its number", row=2, col=1)


def _shift_axis(record: AuditRecord) -> dict[str, Any]:
    ends = [f.shift + sign * ERRORS * f.error for f in record.features for sign in (-1, 1)]
    known = [end for end in ends if math.isfinite(end)]
    low, high = min([-LEAST_SHIFT, *known]), max([LEAST_SHIFT, *known])
    room = 0.04 * (high - low)
    return {"range": [low - room, high + room]}


def _spread_axis(record: AuditRecord) -> dict[str, Any]:
    logs = [math.log10(f.spread) for f in record.features if f.spread > 0 and math.isfinite(f.spread)]
    least = math.log10(LEAST_SPREAD)
    low, high = min([-least, *logs]), max([least, *logs])
    room = 0.06 * (high - low)
    steps = (1, 2, 5) if high - low < 3 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    if high - low < 1:
        ticks += [0.7, 1.5, 3.0, 0.3]
    texts = [f"{tick:g}" for tick in ticks]
    return {"type": "log", "range": [low - room, high + room], "tickvals": ticks, "ticktext": texts}


def _shifts(features: list[FeatureAudit]) -> tuple[list[float | None], list[float | None]]:
    return [_known(f.shift) for f in features], [_known(ERRORS * f.error) for f in features]


def _spreads(features: list[FeatureAudit]) -> tuple[list[float | None], None]:
    return [_known(f.spread) if f.spread > 0 else None for f in features], None


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _size(value: float) -> float:
    # A feature without a shift, because it was constant in training, comes first.
    return math.inf if math.isnan(value) else abs(value)


def _label(feature: FeatureAudit, most: int) -> str:
    return html.escape(printable(feature.name, most))


def _title(feature: FeatureAudit) -> str:
    label = _label(feature, 80)
    return label if label[:1].isalpha() else f"feature {label}"
