"""nnU-Net: `dataset_fingerprint.json`, and the plans that take its intensities over.

Documented by MIC-DKFZ/nnUNet, `fingerprint_extractor.py` and `explanation_plans_files.md`. By channel, "0",
"1" and so on, `foreground_intensity_properties_per_channel` has mean, median, std, min, max, percentile_00_5
and percentile_99_5 of intensities in the foreground of all training cases. As many are drawn from each case,
with repetition; how many is not said. `dataset.json` beside it has the names of the channels.

Which channels are normalised by these numbers stands in the plans (`normalization_schemes`). CTNormalization
clips at the two percentiles and then takes z = (x - mean) / std, with mean and deviation of values that were
not clipped; a contract does the second alone. ZScoreNormalization takes mean and deviation of each image by
itself, not these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slabnorm.contracts.formats.found import Found, usual_scheme
from slabnorm.contracts.formats.json_file import AGAIN, begins, object_of, read_object, statistics_of
from slabnorm.contracts.key import Key, name_of
from slabnorm.contracts.statistics import Provenance
from slabnorm.errors import DataError
from slabnorm.text import printable

TITLE = "nnU-Net's dataset_fingerprint.json"
NAMES = ("foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality")
PARTS: tuple[str, ...] = ("mean", "std", "min", "max")
QUANTILES = {0.005: "percentile_00_5", 0.5: "median", 0.995: "percentile_99_5"}


def recognises(source: Any) -> bool:
    """Whether a source is a fingerprint or plans."""
    if not isinstance(source, Path) or not source.name.lower().endswith(".json"):
        return False
    if source.name == "dataset_fingerprint.json" or source.name.lower().endswith("plans.json"):
        return source.is_file()
    start = begins(source)
    return any(f'"{name}"'.encode() in start for name in NAMES)


def read(source: Any) -> dict[str, Found]:
    """Return one key, "data", whose features are the channels.

    Raises:
        DataError: the file is damaged, or holds numbers that no data have.
    """
    path = Path(source)
    where = printable(path)
    plain = read_object(path)
    name = next((name for name in NAMES if name in plain), None)
    if name is None:
        raise DataError(f"No {NAMES[0]}: {where}", printable(", ".join(plain)), AGAIN)
    given = object_of(plain[name], name, where)
    channels = [str(number) for number in range(len(given))]
    if not channels or given.keys() != set(channels):
        raise DataError(f"Channels are not numbered from 0: {where}", printable(", ".join(given)), AGAIN)
    rows = [object_of(given[number], f"Channel {name_of(number)}", where) for number in channels]
    parts = {part: [row.get(part) for row in rows] for part in PARTS if part in rows[0]}
    ranks = {rank: [row.get(part) for row in rows] for rank, part in QUANTILES.items() if part in rows[0]}
    statistics = statistics_of(parts, ranks, "data", where)
    cases = plain.get("spacings")
    said = Provenance("nnU-Net, foreground", "imagesTr", len(cases) if isinstance(cases, list) else None)
    names = _names(path.with_name("dataset.json"), channels)
    key = Key("n c ... -> c", usual_scheme(statistics), names=names)
    return {"data": Found(key, statistics, (len(channels),), said)}


def _names(path: Path, channels: list[str]) -> tuple[str, ...]:
    """Return the names of the channels; () if there are none, or two are alike."""
    if not path.is_file():
        return ()
    plain = read_object(path)
    given = plain.get("channel_names", plain.get("modality"))
    if not isinstance(given, dict) or given.keys() != set(channels):
        return ()
    names = tuple(given[number] for number in channels)
    return names if all(isinstance(name, str) for name in names) and len(set(names)) == len(names) else ()
