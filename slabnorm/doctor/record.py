"""What the doctor knows of a model: plain data, to and from JSON. Rules read it; probes fill it in."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Spread:
    """The distribution of some values, one number per channel; `samples` of the batch stand behind each.

    `mean` and `var` are over the batch and all axes but the channel's; `count` is how many values that is.
    """

    mean: list[float]
    var: list[float]
    min: float
    max: float
    count: int
    samples: int
    nonfinite: int = 0


@dataclass
class Drift:
    """Something in which inputs differ from those of the training, as an audit says it.

    Attributes:
        kind, severity, text, advice, numbers: of the audit's finding; but a change of scale by the fitted
            statistics themselves is of the kind "normalised".
        ratio: the spread of the inputs over that of the training, the median of all features.
    """

    kind: str
    severity: str
    text: str
    advice: str
    ratio: float
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass
class Norm:
    """What a norm layer is, and what it has kept.

    Attributes:
        family: "batch", "instance", "group", "layer", "rms", or "pattern" for any other.
        pools_samples: whether its batch statistics depend on the other samples of the batch.
        tracks: whether it has running statistics.
        centers: whether it subtracts the mean.
        per_channel: whether its slabs never mix channels, so that a bias before it is redundant.
        elements: how many values stand behind each of its statistics, on this batch; 0 if it did not run.
        updates: how often its running statistics were updated by one forward and backward; None: unknown.
        channels, groups: of group norm; 0 elsewhere.
        statistics_dtype, dtype: of the running statistics, and of its weight or input.
        running_mean, running_var, tracked: the running statistics, and how many batches they have seen.
        weight: of every channel; empty if there is none.
        learns: whether its weight or bias asks for a gradient; None if it has neither.
        gap: the relative difference of its outputs in train and eval mode, on the same input.
    """

    family: str
    pools_samples: bool
    tracks: bool
    centers: bool
    per_channel: bool
    eps: float
    momentum: float | None
    elements: int = 0
    updates: int | None = None
    channels: int = 0
    groups: int = 0
    dtype: str = "float32"
    statistics_dtype: str = ""
    running_mean: list[float] = field(default_factory=list)
    running_var: list[float] = field(default_factory=list)
    tracked: int | None = None
    weight: list[float] = field(default_factory=list)
    learns: bool | None = None
    gap: float | None = None


@dataclass
class Layer:
    """A module that the doctor looks at.

    Attributes:
        name: its first name in the model; "" is the model itself.
        kind: its class.
        role: "norm", "linear" (or a convolution), "activation", "dropout" or "input" (an InputNorm).
        order: the place of its first call in the forward; None if it did not run.
        calls: how often one forward calls it.
        training: its mode, as the user's model has it.
        frozen: whether it is in eval mode whatever `train()` says.
        before: the layer whose output it takes, with nothing in between; None if there is something.
        alone: whether nothing but this layer takes the output of the layer before.
        input, output: their distributions in train mode.
        bias: whether a linear layer has one.
        rate: the rate of a dropout.
        flat: the share of an activation's values at which its derivative is below a hundredth of its largest.
        dead: the share of an activation's channels that are 0 for the whole batch.
        gradient: the norm of the gradient of its weight, for random gradients of the outputs.
        drift: of an InputNorm, how its input differs from what it was fitted on.
    """

    name: str
    kind: str
    role: str
    training: bool = True
    frozen: bool = False
    order: int | None = None
    calls: int = 0
    before: str | None = None
    alone: bool = False
    input: Spread | None = None
    output: Spread | None = None
    bias: bool = False
    rate: float = 0.0
    flat: float | None = None
    dead: float | None = None
    gradient: float | None = None
    norm: Norm | None = None
    drift: list[Drift] = field(default_factory=list)


@dataclass
class ModelRecord:
    """A model, looked at once.

    Attributes:
        name: the class of the model.
        training: its mode.
        layers: in the order of their first call; those that did not run come last.
        inputs: the distribution of each floating-point input.
        drift: how the first input differs from the reference, if there is one.
        samples: the size of the batch.
        decayed: the layers whose weight or bias the optimiser's weight decay shrinks, if they are norms.
        mates: by module, how much its outputs for the first half of the batch change in eval mode without the
            other half, as a share; in the order in which forwards end, with "" for the model.
        ranks: the number of processes that train together.
        notes: what could not be looked at, and why.
    """

    name: str
    training: bool
    layers: list[Layer] = field(default_factory=list)
    inputs: list[Spread] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    samples: int = 0
    decayed: list[str] = field(default_factory=list)
    mates: dict[str, float] = field(default_factory=dict)
    ranks: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def norms(self) -> list[Layer]:
        """The norm layers."""
        return [layer for layer in self.layers if layer.norm is not None]

    def layer(self, name: str | None) -> Layer | None:
        """Return the layer of a name."""
        return next((layer for layer in self.layers if layer.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """Return the record in JSON's own types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> ModelRecord:
        """Return the record that `as_dict` has written."""

        def spread(value: dict[str, Any] | None) -> Spread | None:
            return None if value is None else Spread(**value)

        layers = [
            Layer(**{**layer, "input": spread(layer["input"]), "output": spread(layer["output"]),
                     "norm": None if layer["norm"] is None else Norm(**layer["norm"]),
                     "drift": [Drift(**drift) for drift in layer["drift"]]})
            for layer in plain["layers"]
        ]  # fmt: skip
        inputs = [Spread(**value) for value in plain["inputs"]]
        drift = [Drift(**value) for value in plain["drift"]]
        return cls(**{**plain, "layers": layers, "inputs": inputs, "drift": drift})
