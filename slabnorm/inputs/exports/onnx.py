"""An InputNorm as an ONNX graph, which takes the steps of `forward` with the same numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slabnorm._version import __version__
from slabnorm.errors import OptionError
from slabnorm.extras import extra
from slabnorm.inputs.exports.checks import batch_axes, check_numbers, plain_json
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.notation import ELLIPSIS
from slabnorm.text import did_you_mean, printable

_OPSET, _IR = 13, 7  # versions of 2020: nothing newer is needed, and old runtimes read them
_INTEGERS = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
_FLOATS = ["float16", "bfloat16", "float32", "float64"]
_DTYPES = {name: getattr(torch, name) for name in (*_INTEGERS, *_FLOATS)}  # those of both ONNX and PyTorch
_Call = tuple[str, list[str], dict[str, int]]  # an operator, its inputs after the first, its attributes
_IDENTITY = {"Sub": 0.0, "Add": 0.0, "Mul": 1.0, "Div": 1.0, "Max": -torch.inf, "Min": torch.inf}


def to_onnx(norm: InputNorm, dtype: str | None = None) -> Any:
    """Return an ONNX model that takes raw data `x` and returns normalised data `y`.

        y = ((x - shift) - shift_low) / scale * span + low, between the ends of `clip`

    The graph has the dtypes and the two-part shift of `InputNorm.forward`, so that in float32 it is within
    1e-6 * max(1, abs(y)) of the exact result, however far the data are from 0. It casts integers itself. The
    sample axis is dynamic, and so is every axis along which statistics are pooled; dynamic axes have the
    names of the pattern. There are as many axes as in the fitted data.

    Args:
        norm: the statistics, from `slabnorm.fit`.
        dtype: the dtype of `x`, such as "float32"; by default that of the fitted data.

    Returns:
        An `onnx.ModelProto` of opset 13. Its metadata `slabnorm.inputs` say how the statistics were fitted.

    Raises:
        ExtraError: the package onnx is not installed.
        OptionError: `dtype` is not a dtype of both ONNX and PyTorch.
        StatisticsError: the statistics have no values, because they are on the meta device.

    >>> import slabnorm as sn
    >>> norm = sn.fit(torch.tensor([[1, 10], [3, 30]], dtype=torch.uint8), "zscore", split="train")
    >>> model = to_onnx(norm)
    >>> [node.op_type for node in model.graph.node]
    ['Cast', 'Sub', 'Div']
    >>> [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    ['n', 2]
    """
    onnx = extra("onnx", "this export", "'slabnorm[onnx]'")
    check_numbers(norm)
    given = _DTYPES.get(name := str(norm.dtype if dtype is None else dtype).removeprefix("torch."))
    if given is None:
        fix = did_you_mean(name, _DTYPES) or 'as in dtype="float32"'
        raise OptionError(f"dtype must be one of {', '.join(_DTYPES)}", printable(name), fix)
    rank = 1 + len(norm.record.sample)
    work, out = norm._dtypes(
        torch.empty((0, *(size or 1 for size in norm.record.sample)), dtype=given, device="cpu")
    )
    kinds = {kind: getattr(onnx.TensorProto, _onnx_name(kind)) for kind in (given, work, out)}
    formula, axes = _formula(norm, work, rank), _axes(norm, rank)
    calls = [_cast(kinds[work])] if given != work else []
    calls += [(op, [name], {}) for op, name, _ in formula]
    calls += [_cast(kinds[out])] if out != work else []
    graph = onnx.helper.make_graph(
        _nodes(onnx, calls),
        "slabnorm_inputs",
        [onnx.helper.make_tensor_value_info("x", kinds[given], axes)],
        [onnx.helper.make_tensor_value_info("y", kinds[out], axes)],
        [onnx.numpy_helper.from_array(value.contiguous().numpy(), name) for _, name, value in formula],
        doc_string=printable(f"{norm.scheme}, {norm.pattern}"),
    )
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR,
        producer_name="slabnorm",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(model, {"slabnorm.inputs": plain_json(norm.record.to_plain())})
    return model


def onnx_bytes(norm: InputNorm, dtype: str | None = None) -> bytes:
    """Return the content of an .onnx file. The same statistics give the same bytes."""
    content: bytes = to_onnx(norm, dtype).SerializeToString(deterministic=True)
    return content


def _formula(norm: InputNorm, work: torch.dtype, rank: int) -> list[tuple[str, str, Tensor]]:
    """Return the operator, name and value of every step that changes something."""
    # These are the numbers that `forward` uses, in its order.
    values = zip(("shift", "shift_low", "scale"), norm._values(work, rank), strict=True)
    span, low = (torch.tensor(number, dtype=work, device="cpu") for number in norm.scheme.target)
    steps = zip(("Sub", "Sub", "Div"), values, strict=True)
    found = [(op, name, value.cpu()) for op, (name, value) in steps]
    found += [("Mul", "span", span), ("Add", "low", low)]
    ends = norm.scheme.clip or (-torch.inf, torch.inf)
    clip = (torch.tensor(end, dtype=work, device="cpu") for end in ends)
    found += zip(("Max", "Min"), ("least", "most"), clip, strict=True)
    return [step for step in found if bool((step[2] != _IDENTITY[step[0]]).any())]


def _cast(kind: int) -> _Call:
    return "Cast", [], {"to": kind}


def _nodes(onnx: Any, calls: list[_Call]) -> list[Any]:
    """Return the nodes of calls that follow one another, from x to y."""
    nodes, last = [], "x"
    calls = calls or [("Identity", [], {})]
    for number, (op, names, attributes) in enumerate(calls, 1):
        result = "y" if number == len(calls) else f"step_{number}"
        nodes.append(onnx.helper.make_node(op, [last, *names], [result], **attributes))
        last = result
    return nodes


def _axes(norm: InputNorm, rank: int) -> list[int | str]:
    """Return the size of every axis of a batch, or its name if it is dynamic."""
    features = norm.record.features()
    free = rank - len(features.before) - len(features.after)
    sizes = [*features.before, *[None] * free, *features.after]
    axes: list[int | str] = []
    for position, (size, item) in enumerate(zip(sizes, batch_axes(norm), strict=True)):
        name = f"axis{position}" if item == (ELLIPSIS,) else "_".join(item)
        while name in axes:  # the axes "(a b)" and "a_b" would have the same name
            name += "_"
        axes.append(name if size is None else size)
    return axes


def _onnx_name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return {"float32": "FLOAT", "float64": "DOUBLE"}.get(name, name.upper())
