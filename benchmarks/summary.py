"""What the measurements of a run come to: geometric means, worst cases, shares of the floor."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.allocator import AS_INSTALLED
from benchmarks.record import PARTS

LARGE, LARGEST = 1_000_000, 4_000_000  # elements of the cases that ratios, and shares of the floor, count
SHARES = {"forward": 0.80, "backward": 0.75}  # below these a case is listed
DISTURBED = 0.10  # of the cores taken by others while a case is timed
EXACT = {"float32": 1e-3, "bfloat16": 4e-2}  # relative to float64, in the mean square


def ratio(measured: dict[str, Any], peer: str, what: str = "both") -> float | None:
    """Return how many times as long a peer takes as slabnorm."""
    peers = measured["peers"]
    if peer not in peers or "slabnorm" not in peers:
        return None
    return peers[peer][what]["median"] / peers["slabnorm"][what]["median"]


def share(measured: dict[str, Any], what: str) -> float | None:
    """Return the share of the floor that slabnorm reaches, forward or backward."""
    if "slabnorm" not in measured["peers"]:
        return None
    return measured["floor"][what] / measured["peers"]["slabnorm"][what]["median"]


def summarise(content: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of a record."""
    layers, reused = content["layers"], content["reused"]
    return {
        "as installed": _by_dtype(layers),
        "reused memory": _by_dtype(reused),
        "floor": {what: _shares(reused, what, SHARES[what]) for what in SHARES},
        "settings": _settings(content["settings"]),
        "small": {what: _slowest(content["small"], what) for what in ("forward", "both")},
        "inference": {
            peer: _ratios(content["inference"], peer, "forward")
            for peer in ("eager", "compile", "onnxruntime")
        },
        "training": {
            name: {
                "ratio": found["step"]["plain"]["median"] / found["step"]["accelerated"]["median"],
                "share_saved": found["share_saved"],
            }
            for name, found in content["training"].items()
            if "failed" not in found
        },
        "copy_gb_per_second": _bandwidth(reused or layers),
        "others": _others(content),
        "inexact": _inexact(content),
        "failed": _failed(content),
    }


def _by_dtype(cases: dict[str, Any]) -> dict[str, Any]:
    """Return what the ratios of the large cases come to, by dtype and peer."""
    large = {name: case for name, case in cases.items() if case["elements"] >= LARGE}
    return {
        dtype: {peer: _ratios(chosen, peer) for peer in ("eager", "compile")}
        for dtype in EXACT
        if (chosen := {name: case for name, case in large.items() if case["dtype"] == dtype})
    }


def _settings(measured: dict[str, Any]) -> dict[str, Any]:
    """Return how many times as long eager takes with each setting as slabnorm with it, and as installed."""
    plain = measured.get(AS_INSTALLED, {}).get("cases", {})
    found = {}
    for name, under in measured.items():
        pairs = [(case, plain[key]) for key, case in under.get("cases", {}).items() if key in plain]
        if pairs:
            same = [ratio(case, "eager") for case, _ in pairs]
            other = [_both(case, "eager") / _both(before, "slabnorm") for case, before in pairs]
            found[name] = {
                "cases": len(pairs),
                "same": statistics.geometric_mean(same),
                "as_installed": statistics.geometric_mean(other),
                "worst": min(other),
            }
    return found


def _both(measured: dict[str, Any], peer: str) -> float:
    return measured["peers"][peer]["both"]["median"]


def _ratios(cases: dict[str, Any], peer: str, what: str = "both") -> dict[str, Any] | None:
    """Return the geometric mean of a ratio, the worst case, and every case that is slower."""
    found = {name: value for name, case in cases.items() if (value := ratio(case, peer, what)) is not None}
    if not found:
        return None
    worst = min(found, key=found.__getitem__)
    return {
        "cases": len(found),
        "geometric_mean": statistics.geometric_mean(found.values()),
        "worst": {worst: found[worst]},
        "slower": {name: value for name, value in sorted(found.items(), key=_value) if value < 1},
    }


def _shares(cases: dict[str, Any], what: str, wanted: float) -> dict[str, Any] | None:
    """Return the median share of the floor over the largest cases, and every case below what is wanted."""
    found = {
        name: value
        for name, case in cases.items()
        if case["elements"] >= LARGEST and (value := share(case, what)) is not None
    }
    if not found:
        return None
    by_dtype = {
        dtype: statistics.median(values)
        for dtype in EXACT
        if (values := [value for name, value in found.items() if cases[name]["dtype"] == dtype])
    }
    return {
        "cases": len(found),
        "median": statistics.median(found.values()),
        "median_by_dtype": by_dtype,
        "wanted": wanted,
        "below": {name: value for name, value in sorted(found.items(), key=_value) if value < wanted},
    }


def _slowest(cases: dict[str, Any], what: str) -> dict[str, float] | None:
    """Return the small case that takes the most times as long as eager."""
    found = {name: 1 / value for name, case in cases.items() if (value := ratio(case, "eager", what))}
    worst = max(found, key=found.__getitem__, default=None)
    return {worst: found[worst]} if worst else None


def _bandwidth(cases: dict[str, Any]) -> dict[str, float] | None:
    """Return the bandwidth of the copies beside the largest cases, which no cache holds."""
    found = [case["copy_bytes_per_second"] / 1e9 for case in cases.values() if case["elements"] >= LARGEST]
    if not found:
        return None
    return {"lowest": min(found), "median": statistics.median(found), "highest": max(found)}


def _others(content: dict[str, Any]) -> dict[str, Any] | None:
    """Return how much of the cores other processes took while timing."""
    found = {
        f"{part}: {name}": share
        for part in ("layers", "small", "inference", "training", "reused")
        for name, measured in content[part].items()
        if (share := measured.get("others")) is not None
    }
    if not found:
        return None
    most = max(found, key=found.__getitem__)
    disturbed = sum(share > DISTURBED for share in found.values())
    return {"median": statistics.median(found.values()), "most": {most: found[most]}, "disturbed": disturbed}


def _failed(content: dict[str, Any]) -> dict[str, str]:
    """Return what could not be run, and why."""
    found = {}
    for part, measurements in content.items():
        for name, measured in measurements.items() if part in PARTS else ():
            failed = measured.get("failed") or {}
            whys = failed if isinstance(failed, dict) else {part: failed}
            found.update({f"{name}: {peer}": why for peer, why in whys.items()})
    return found


def _inexact(content: dict[str, Any]) -> dict[str, float]:
    """Return the cases in which a peer's results differ from float64's by more than rounding."""
    return {
        f"{name}: {peer}": value
        for part in ("layers", "small", "inference", "reused")
        for name, case in content[part].items()
        for peer, value in case["error"].items()
        if not value <= EXACT[case.get("dtype", "float32")]
    }


def _value(item: tuple[str, float]) -> float:
    return item[1]
