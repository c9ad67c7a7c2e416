"""Norm layers to and from Keras, Flax and ONNX: the same formula under other names and other habits.

| | torch.nn, slabnorm | Keras 3 | Flax (linen) | ONNX |
|---|---|---|---|---|
| momentum weighs | the new batch, 0.1 | the old value, 0.99 | the old value, 0.99 | the old value, 0.9 |
| running variance of a batch of n | m2 / (n - 1) | m2 / n | m2 / n | m2 / n |
| eps of batch norm | 1e-5 | 1e-3 | 1e-5 | 1e-5 |
| eps of layer norm | 1e-5 | 1e-3 | 1e-6 | 1e-5 |
| eps of group norm | 1e-5 | 1e-3 | 1e-6 | 1e-5 |
| eps of RMS norm | the dtype's | 1e-6 | 1e-6 | 1e-5 |
| channels | axis 1 | last axis | last axis | axis 1 |

Weights and statistics have one number per channel, and so nothing is permuted in them: only data are, between
`n c h w` and `n h w c`. What a layer computes in eval mode is the same on both sides. Its running variance is
not the same estimate: for batches of n values a channel, torch.nn keeps n / (n - 1) times what the others
keep. Converted, it would change what the layer computes, and so it is left as it is, unless `count=n` asks
for the estimate that the other library would have kept: for training that goes on there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from slabnorm.errors import OptionError, StatisticsError
from slabnorm.nn import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from slabnorm.surgery.derived import plain_class
from slabnorm.surgery.norms import Accelerated, applied


class Foreign(NamedTuple):
    """A layer in the terms of another library.

    Attributes:
        kind: the name of its class or operator.
        options: the arguments or attributes with which it is made.
        values: its weights and statistics, as NumPy arrays.
    """

    kind: str
    options: dict[str, Any]
    values: Any


# Keras


def to_keras(layer: nn.Module, *, count: int | None = None) -> Foreign:
    """Return a batch, layer, group or RMS norm as Keras 3 has it.

        momentum = 1 - momentum        moving_variance = running_var * (count - 1) / count, if count is given

    `getattr(keras.layers, kind)(**options)` makes the layer, and `set_weights(values)`, once it is built,
    gives it its numbers. It takes data with channels last; with `options["axis"] = 1`, as the layer does.

    Args:
        layer: a norm of torch.nn or slabnorm.
        count: values per channel of the batches that the running variance was estimated on; by default the
            variance is left, and the layer computes the same in eval mode.

    Raises:
        OptionError: Keras has no such layer.
        StatisticsError: `count` is less than 2.

    >>> import slabnorm as sn
    >>> from slabnorm.surgery import to_keras
    >>> kind, options, values = to_keras(sn.BatchNorm(3))
    >>> kind, options
    ('BatchNormalization', {'axis': -1, 'momentum': 0.9, 'epsilon': 1e-05, 'center': True, 'scale': True})
    >>> [value.tolist() for value in values]
    [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """
    kind, norm = _kind(layer, "Keras"), _Numbers(layer, count)
    affine = [value for value in (norm.weight, norm.bias) if value is not None]
    options: dict[str, Any] = {"axis": -1, "epsilon": norm.eps}
    if kind == "RMS":
        if norm.weight is None:
            raise OptionError(
                "RMSNormalization of Keras always has a weight", repr(layer), "give it one of 1"
            )
        return Foreign("RMSNormalization", options, affine)
    has = {"center": norm.bias is not None, "scale": norm.weight is not None}
    if kind == "Batch":
        options = {"axis": -1, "momentum": norm.momentum(), "epsilon": norm.eps}
        return Foreign("BatchNormalization", {**options, **has}, [*affine, *norm.running()])
    if kind == "Group":
        options = {"groups": norm.groups, **options}
    return Foreign(f"{kind}Normalization", {**options, **has}, affine)


def from_keras(
    kind: str, options: Mapping[str, Any], weights: Sequence[Any], *, count: int | None = None
) -> nn.Module:
    """Return the slabnorm layer of a Keras 3 norm; BatchNorm and GroupNorm take data with channels on axis 1.

        momentum = 1 - momentum        running_var = moving_variance * count / (count - 1), if count is given

    Args:
        kind: the name of its class: `type(layer).__name__`.
        options: what `layer.get_config()` returns; what is missing has Keras's default.
        weights: what `layer.get_weights()` returns.
        count: values per channel of the batches that the moving variance was estimated on; by default it is
            left, and the layer computes the same in eval mode.

    Raises:
        OptionError: there is no such layer, or it normalises along other axes than its last, or of batch and
            group norm its second; or it is a layer norm with `rms_scaling`.

    >>> from slabnorm.surgery import from_keras, to_keras
    >>> import slabnorm as sn
    >>> from_keras(*to_keras(sn.GroupNorm(2, 6)))
    GroupNorm(2, 6, eps=1e-05, affine=True, bias=True)
    """
    of_channels = kind in ("BatchNormalization", "GroupNormalization")
    axis = options.get("axis", -1)
    axis = axis[0] if isinstance(axis, list | tuple) and len(axis) == 1 else axis
    if axis != -1 and not (of_channels and type(axis) is int and axis > 0):
        raise OptionError(f"{kind} along axis {axis!r} has no counterpart", fix="use axis=-1, the last")
    if options.get("rms_scaling"):
        raise OptionError(
            f"{kind} with rms_scaling=True has no counterpart: it divides x, which is not centred, by the "
            "standard deviation",
            fix="make the Keras layer an RMSNormalization, which divides by the root mean square",
        )
    given = [_tensor(value) for value in weights]
    if kind == "RMSNormalization":
        return _made(RMSNorm, len(given[0]), options.get("epsilon", 1e-6), given[0], None)
    eps, left = options.get("epsilon", 1e-3), iter(given)
    weight = next(left) if options.get("scale", True) else None
    bias = next(left) if options.get("center", True) else None
    if kind == "BatchNormalization":
        momentum = 1 - options.get("momentum", 0.99)
        return _batch_norm(next(left), next(left), momentum, eps, weight, bias, count)
    if weight is None and bias is None:
        raise OptionError(
            f"{kind} without weight and bias does not say its size", fix="make the layer yourself"
        )
    size = len(given[0])
    if kind == "GroupNormalization":
        groups = options.get("groups", 32)
        return _group_norm(size if groups == -1 else groups, size, eps, weight, bias)
    if kind == "LayerNormalization":
        return _made(LayerNorm, size, eps, weight, bias)
    raise _unknown(kind, "Keras")


# Flax


def to_flax(layer: nn.Module, *, count: int | None = None) -> Foreign:
    """Return a batch, layer, group or RMS norm as Flax's linen has it.

        momentum = 1 - momentum        var = running_var * (count - 1) / count, if count is given

    `getattr(flax.linen, kind)(**options).apply(values, x)` computes what the layer computes in eval mode, of
    data with channels last.

    Args:
        layer: a norm of torch.nn or slabnorm.
        count: as in `to_keras`.

    Raises:
        OptionError: Flax has no such layer.
        StatisticsError: `count` is less than 2.

    >>> import slabnorm as sn
    >>> from slabnorm.surgery import to_flax
    >>> kind, options, values = to_flax(sn.BatchNorm(3))
    >>> kind, options["momentum"], sorted(values)
    ('BatchNorm', 0.9, ['batch_stats', 'params'])
    """
    kind, norm = _kind(layer, "Flax"), _Numbers(layer, count)
    options: dict[str, Any] = {"epsilon": norm.eps, "use_scale": norm.weight is not None}
    if kind != "RMS":
        options["use_bias"] = norm.bias is not None
    if kind == "Group":
        options["num_groups"] = norm.groups
    both = {"scale": norm.weight, "bias": norm.bias}
    values = {"params": {name: value for name, value in both.items() if value is not None}}
    if kind == "Batch":
        options |= {"momentum": norm.momentum(), "use_running_average": True}
        values["batch_stats"] = dict(zip(("mean", "var"), norm.running(), strict=True))
    return Foreign(f"{kind}Norm", options, values)


def from_flax(
    kind: str, options: Mapping[str, Any], variables: Mapping[str, Any], *, count: int | None = None
) -> nn.Module:
    """Return the slabnorm layer of a norm of Flax's linen; BatchNorm and GroupNorm have channels on axis 1.

        momentum = 1 - momentum        running_var = var * count / (count - 1), if count is given

    Args:
        kind: the name of its class, such as "BatchNorm".
        options: the arguments that it was made with; what is missing has Flax's default.
        variables: its variables: {"params": {"scale": ..., "bias": ...}}, and of a batch norm
            "batch_stats": {"mean": ..., "var": ...} as well.
        count: as in `from_keras`.

    Raises:
        OptionError: there is no such layer.

    >>> from slabnorm.surgery import from_flax
    >>> from_flax("LayerNorm", {}, {"params": {"scale": [1.0, 1.0], "bias": [0.0, 0.0]}})
    LayerNorm((2,), eps=1e-06, elementwise_affine=True, bias=True)
    """
    params = {name: _tensor(value) for name, value in variables.get("params", {}).items()}
    weight, bias = params.get("scale"), params.get("bias")
    if kind == "BatchNorm":
        mean, var = (_tensor(variables["batch_stats"][name]) for name in ("mean", "var"))
        momentum = 1 - options.get("momentum", 0.99)
        return _batch_norm(mean, var, momentum, options.get("epsilon", 1e-5), weight, bias, count)
    eps, known = options.get("epsilon", 1e-6), weight if weight is not None else bias
    if known is None:
        raise OptionError(
            f"{kind} without scale and bias does not say its size", fix="make the layer yourself"
        )
    if kind == "GroupNorm":
        groups = options.get("num_groups", 32)
        if groups is None:
            groups = len(known) // options["group_size"]
        return _group_norm(groups, len(known), eps, weight, bias)
    if kind == "LayerNorm":
        return _made(LayerNorm, len(known), eps, weight, bias)
    if kind == "RMSNorm":
        return _made(RMSNorm, len(known), eps, weight, None)
    raise _unknown(kind, "Flax")


# ONNX


def to_onnx(layer: nn.Module, *, count: int | None = None) -> Foreign:
    """Return a batch, instance, layer, group or RMS norm as an operator of ONNX.

        momentum = 1 - momentum        input_var = running_var * (count - 1) / count, if count is given

    `onnx.helper.make_node(kind, ["X", *values], ["Y"], **options)` is the node, and `values` are its further
    inputs by name, in their order. The operator takes data with channels on axis 1, as the layer does.
    GroupNormalization is that of opset 21, RMSNormalization of opset 23. What a layer has no weight or bias
    for gets ones or zeros, which the operators ask for.

    Args:
        layer: a norm of torch.nn or slabnorm.
        count: as in `to_keras`.

    Raises:
        OptionError: ONNX has no such operator.
        StatisticsError: `count` is less than 2.

    >>> import slabnorm as sn
    >>> from slabnorm.surgery import to_onnx
    >>> kind, options, values = to_onnx(sn.BatchNorm(3))
    >>> kind, options
    ('BatchNormalization', {'epsilon': 1e-05, 'momentum': 0.9, 'training_mode': 0})
    >>> list(values)
    ['scale', 'B', 'input_mean', 'input_var']
    """
    kind, norm = _kind(layer, "ONNX"), _Numbers(layer, count)
    shape = norm.shape()
    scale = np.ones(shape, "float32") if norm.weight is None else norm.weight
    zeros = np.zeros(shape, scale.dtype) if norm.bias is None else norm.bias
    options: dict[str, Any] = {"epsilon": norm.eps}
    if kind in ("Layer", "RMS"):
        options["axis"] = -len(shape)
    if kind == "RMS":
        return Foreign("RMSNormalization", options, {"scale": scale})
    if kind == "Batch":
        options |= {"momentum": norm.momentum(), "training_mode": 0}
        mean, var = norm.running()
        return Foreign(
            "BatchNormalization", options, {"scale": scale, "B": zeros, "input_mean": mean, "input_var": var}
        )
    if kind == "Group":
        return Foreign(
            "GroupNormalization", {**options, "num_groups": norm.groups}, {"scale": scale, "bias": zeros}
        )
    names = ("Scale", "B") if kind == "Layer" else ("scale", "B")
    return Foreign(f"{kind}Normalization", options, dict(zip(names, (scale, zeros), strict=True)))


def from_onnx(
    kind: str,
    options: Mapping[str, Any],
    inputs: Mapping[str, Any] | Sequence[Any],
    *,
    count: int | None = None,
) -> nn.Module:
    """Return the slabnorm layer of an operator of ONNX.

        momentum = 1 - momentum        running_var = input_var * count / (count - 1), if count is given

    Args:
        kind: the operator, such as "BatchNormalization".
        options: its attributes; what is missing has ONNX's default.
        inputs: its inputs after the first, in their order, as arrays; a dict may name them.
        count: as in `from_keras`.

    Raises:
        OptionError: there is no such layer.

    >>> from slabnorm.surgery import from_onnx
    >>> from_onnx("InstanceNormalization", {"epsilon": 1e-4}, [[1.0, 1.0], [0.0, 0.0]])
    InstanceNorm(2, eps=0.0001, momentum=0.1, affine=True, bias=True, track_running_stats=False)
    """
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    weight, *rest = (_tensor(value) for value in values)
    bias, eps = rest[0] if rest else None, options.get("epsilon", 1e-5)
    if kind == "BatchNormalization":
        return _batch_norm(rest[1], rest[2], 1 - options.get("momentum", 0.9), eps, weight, bias, count)
    if kind == "InstanceNormalization":
        return _made(InstanceNorm, len(weight), eps, weight, bias, affine=True)
    if kind == "GroupNormalization":
        return _group_norm(options["num_groups"], len(weight), eps, weight, bias)
    axis = options.get("axis", -1)
    if axis != -weight.dim():
        raise OptionError(
            f"{kind} from axis {axis} on has no counterpart with weights of {weight.dim()} axes",
            fix=f"count the axis from the last, as axis={-weight.dim()}",
        )
    if kind == "LayerNormalization":
        return _made(LayerNorm, tuple(weight.shape), eps, weight, bias)
    if kind == "RMSNormalization":
        return _made(RMSNorm, tuple(weight.shape), eps, weight, None)
    raise _unknown(kind, "ONNX")


# Gemma


def to_gemma(layer: nn.Module) -> Tensor:
    """Return the weight of an RMS norm as Gemma keeps it, around 0: `y = x / rms(x) * (1 + weight)`.

    Gemma Team, "Gemma: Open Models Based on Gemini Research and Technology" (2024),
    https://arxiv.org/abs/2403.08295

    Raises:
        OptionError: the layer is no RMS norm with a weight.

    >>> import slabnorm as sn
    >>> from slabnorm.surgery import to_gemma
    >>> to_gemma(sn.RMSNorm(2))
    tensor([0., 0.])
    """
    if _kind(layer, "Gemma") != "RMS" or layer.weight is None:
        raise OptionError("Gemma has RMS norms with a weight alone", repr(layer))
    weight: Any = layer.weight
    return (weight.detach().double() - 1).to(weight.dtype)


def from_gemma(weight: Tensor, eps: float = 1e-6) -> RMSNorm:
    """Return the RMS norm of a weight that is kept around 0, as Gemma's is: `weight + 1`.

    The layer is float32 at least: in bfloat16 the sum keeps nothing of weights below 0.0039.

    >>> import torch
    >>> from slabnorm.surgery import from_gemma
    >>> from_gemma(torch.tensor([0.0, 0.001], dtype=torch.bfloat16)).weight.tolist()
    [1.0, 1.0009994506835938]
    """
    wide = (weight.detach().double() + 1).to(torch.promote_types(weight.dtype, torch.float32))
    layer: RMSNorm = _made(RMSNorm, len(weight), eps, wide, None)
    return layer


class _Numbers:
    """What a layer holds, as NumPy arrays and numbers."""

    def __init__(self, layer: nn.Module, count: int | None) -> None:
        self.layer: Any = layer
        self.count = count
        self.weight, self.bias = (_array(getattr(layer, name, None)) for name in ("weight", "bias"))
        self.groups: Any = getattr(layer, "num_groups", None)

    @property
    def eps(self) -> float:
        """eps; of an RMS norm without one that of the dtype, as torch has it."""
        if self.layer.eps is not None:
            return float(self.layer.eps)
        wide = self.weight is not None and self.weight.dtype == np.float64
        return torch.finfo(torch.float64 if wide else torch.float32).eps

    def shape(self) -> tuple[int, ...]:
        """The shape of weight and bias."""
        for name in ("normalized_shape", "num_features", "num_channels"):
            size = getattr(self.layer, name, None)
            if size is not None:
                return tuple(size) if isinstance(size, tuple) else (size,)
        raise OptionError("The layer does not say its size", repr(self.layer))

    def momentum(self) -> float:
        """The weight of the old value."""
        if self.layer.momentum is None:
            raise OptionError(
                "An average over all batches (momentum=None) has no counterpart",
                repr(self.layer),
                "give the layer the momentum with which its training is to go on",
            )
        return round(1 - self.layer.momentum, 12)  # 1 - 0.99 is 0.010000000000000009

    def running(self) -> tuple[np.ndarray, np.ndarray]:
        """Running mean and variance; with a count, the variance of a batch is m2 / n."""
        if self.layer.running_mean is None:
            raise OptionError("A batch norm without running statistics has no counterpart", repr(self.layer))
        var = self.layer.running_var
        if self.count is not None:
            var = var.double() / _bessel(self.count)
        mean: Any = _array(self.layer.running_mean)
        return mean, np.asarray(_array(var), mean.dtype)


def _bessel(count: int) -> float:
    if count < 2:
        raise StatisticsError(f"A variance of {count} values says nothing", fix="give the values per channel")
    return count / (count - 1)


_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "Batch": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNorm),
    "Group": (nn.GroupNorm, GroupNorm),
    "Layer": (nn.LayerNorm, LayerNorm),
    "RMS": (nn.RMSNorm, RMSNorm),
    "Instance": (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, InstanceNorm),
}


def _kind(given: nn.Module, library: str) -> str:
    layer: Any = given
    kind = plain_class(type(layer))
    kind = kind.plain if issubclass(kind, Accelerated) else kind  # a subclass may compute something else
    found = next((name for name, kinds in _KINDS.items() if kind in kinds), None)
    if found is None or (found == "Instance" and (library != "ONNX" or layer.running_mean is not None)):
        raise OptionError(f"{library} has no layer for {type(layer).__name__} that computes the same")
    if library in ("Keras", "Flax") and found in ("Layer", "RMS") and len(layer.normalized_shape) > 1:
        raise OptionError(
            f"{library} has weights along one axis", repr(layer), "normalise along the last axis"
        )
    if applied(layer) is not None:
        raise OptionError(
            f"No norm of {library} ends with an activation",
            f"activation={applied(layer)!r}",
            "set layer.activation = None, and put the activation behind the norm",
        )
    return found


def _unknown(kind: str, library: str) -> OptionError:
    return OptionError(
        f"There is no layer for {kind!r} of {library}", fix="name batch, layer, group or RMS norm"
    )


def _array(value: Any) -> Any:
    if value is None:
        return None
    value = value.detach().cpu()
    return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy().copy()


def _tensor(value: Any) -> Tensor:
    """Return a tensor of float64 if an array is, else of float32, which holds JAX's bfloat16 too."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().to(torch.promote_types(value.dtype, torch.float32)).numpy()
    array = np.asarray(value)
    wide = hasattr(value, "dtype") and array.dtype == np.float64
    return torch.from_numpy(array.astype("float64" if wide else "float32"))


def _made(
    kind: Callable[..., Any],
    size: Any,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    **options: Any,
) -> Any:
    """Return a layer that holds a weight and a bias; what one of them lacks is 1 or left out."""
    wanted = weight is not None or bias is not None
    if kind in (LayerNorm, RMSNorm):
        options["elementwise_affine"] = wanted
    if kind is not RMSNorm:
        options["bias"] = bias is not None
    known = weight if weight is not None else bias
    layer = kind(size, eps=eps, dtype=None if known is None else known.dtype, **options)
    for held, value in ((layer.weight, weight), (layer.bias, bias)):
        if value is not None:
            held.data = value
    return layer


def _group_norm(groups: int, channels: int, eps: float, weight: Tensor | None, bias: Tensor | None) -> Any:
    def made(size: int, **options: Any) -> GroupNorm:
        return GroupNorm(groups, size, **options)

    return _made(made, channels, eps, weight, bias)


def _batch_norm(
    mean: Tensor, var: Tensor, momentum: float, eps: float, weight: Tensor | None, bias: Tensor | None,
    count: int | None,
) -> Any:  # fmt: skip
    affine = weight is not None or bias is not None
    layer = _made(BatchNorm, len(mean), eps, weight, bias, momentum=round(momentum, 12), affine=affine)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var if count is None else var.double() * _bessel(count))
    return layer
