"""Records written by hand: healthy ones, to be changed in one place."""

from __future__ import annotations

from typing import Any

from slabnorm.doctor.record import Layer, ModelRecord, Norm, Spread


def spread(mean: float = 0.0, var: float = 1.0, channels: int = 4, **other: Any) -> Spread:
    """Return a distribution that is alike in all channels."""
    numbers = {"min": mean - 3 * var**0.5, "max": mean + 3 * var**0.5, "count": 640, "samples": 64}
    return Spread([mean] * channels, [var] * channels, **numbers | other)


def batch_norm(name: str = "norm", channels: int = 4, **changes: Any) -> Layer:
    """Return a batch norm in train mode whose running statistics are those of its input."""
    norm = {
        "family": "batch", "pools_samples": True, "tracks": True, "centers": True, "per_channel": True,
        "eps": 1e-5, "momentum": 0.1, "elements": 640, "updates": 1, "statistics_dtype": "float32",
        "running_mean": [0.0] * channels, "running_var": [1.0] * channels, "tracked": 100,
        "weight": [1.0] * channels, "learns": True,
    }  # fmt: skip
    norm |= {key: changes.pop(key) for key in list(changes) if key in Norm.__dataclass_fields__}
    layer = {"order": 1, "calls": 1, "input": spread(channels=channels), "output": spread(channels=channels)}
    return Layer(name, "BatchNorm1d", "norm", norm=Norm(**norm), **layer | changes)


def linear(name: str = "linear", **changes: Any) -> Layer:
    """Return a linear layer without a bias."""
    return Layer(name, "Linear", "linear", **{"order": 0, "calls": 1, "output": spread()} | changes)


def model(*layers: Layer, **changes: Any) -> ModelRecord:
    """Return a model in train mode with sane inputs."""
    record = {"training": True, "inputs": [spread()], "samples": 64} | changes
    return ModelRecord("Net", layers=list(layers), **record)
