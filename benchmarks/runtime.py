"""onnxruntime as a peer for eval mode, where it is installed; it has one layout, NCHW."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.peers import Tensors

NAME = "onnxruntime"


def available() -> bool:
    """Whether onnxruntime, and onnx to write its model, are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnx"))


def batch_norm_call(case: Case, tensors: Tensors) -> Callable[[], Any]:
    """Return a call that runs batch norm, residual and activation on contiguous tensors, bound once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would otherwise spin on the cores while the next peer runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = _model(case, tensors).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(names, tensors.arguments, strict=True)}
    bound = session.io_binding()
    for name, array in feed.items():
        bound.bind_cpu_input(name, array)
    bound.bind_output("y", "cpu")  # a new output each call, as with the other peers

    def run() -> Any:
        session.run_with_iobinding(bound)
        return bound.get_outputs()[0]

    return run


def _model(case: Case, tensors: Tensors) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    channels = case.shape[1]
    constants = {
        "weight": tensors.weight,
        "bias": tensors.bias,
        "mean": torch.zeros(channels),
        "var": torch.ones(channels),
    }
    nodes = [helper.make_node("BatchNormalization", ["x", *constants], ["n"], epsilon=1e-5)]
    if case.residual:
        nodes.append(helper.make_node("Add", [nodes[-1].output[0], "residual"], ["s"]))
    if case.function == "relu":
        nodes.append(helper.make_node("Relu", [nodes[-1].output[0]], ["a"]))
    nodes[-1].output[0] = "y"
    inputs = ["x", "residual"][: len(tensors.arguments)]
    graph = helper.make_graph(
        nodes,
        "norm",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, case.shape) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, case.shape)],
        [numpy_helper.from_array(value.numpy(), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model
