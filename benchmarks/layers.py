"""Norm layers in training and in eval mode: every peer on one case, in turns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import runtime
from benchmarks.cases import DTYPES, Case
from benchmarks.exact import error, reference, step
from benchmarks.floor import Floor, floor, inference_floor
from benchmarks.memory import saved_bytes
from benchmarks.peers import Peer, Tensors, make, prepare
from benchmarks.timing import copy_of, forward_only, interleave, spread, steps, training_step

COPY = "copy"
STEPS_IN_A_ROW = 8  # of a small case, whose step is shorter than what the turn before it left in the cache


def measure_training(
    case: Case, names: tuple[str, ...], budget: float, l2: int, twice: bool
) -> dict[str, Any]:
    """Return forward and backward of every peer, with the floor.

    Args:
        case: what to run.
        names: of the peers.
        budget: seconds to spend on timing.
        l2: bytes of a core's second cache.
        twice: as in `interleave`.
    """
    tensors = Tensors.draw(case)
    peers, failed = _prepared({name: partial(prepare, case, name, tensors) for name in names})
    calls = {COPY: copy_of(tensors.x), **{name: training_step(peer) for name, peer in peers.items()}}
    rounds = interleave(calls, budget, twice)
    copy = spread([seconds for (seconds,) in rounds.of.pop(COPY)])
    limit = floor(case, l2)
    measured = {
        **_described(case, copy, limit),
        "rounds": len(next(iter(rounds.of.values()), [])),
        "others": rounds.others,
        "peers": {name: steps(times) for name, times in rounds.of.items()},
        "failed": failed,
        "error": _errors(case, peers, tensors),
        "saved_tensors": _saved(peers),
    }
    torch._dynamo.reset()
    return measured


def measure_small(case: Case, names: tuple[str, ...], budget: float) -> dict[str, Any]:
    """Return forward and backward of a case so small that the call costs more than the memory."""
    tensors = Tensors.draw(case)
    peers, failed = _prepared({name: partial(prepare, case, name, tensors) for name in names})
    rounds = interleave({name: training_step(peer, STEPS_IN_A_ROW) for name, peer in peers.items()}, budget)
    return {
        "norm": case.norm,
        "shape": case.shape,
        "elements": case.elements,
        "others": rounds.others,
        "peers": {name: steps(times) for name, times in rounds.of.items()},
        "failed": failed,
        "error": _errors(case, peers, tensors),
    }


def measure_inference(case: Case, names: tuple[str, ...], budget: float) -> dict[str, Any]:
    """Return the forward of eval mode, without gradients."""
    tensors = Tensors.draw(case)
    for tensor in tensors.arguments:
        tensor.requires_grad_(False)
    calls, failed = _prepared({name: partial(_eval_call, case, name, tensors) for name in names})
    timed = {name: forward_only(call) for name, call in calls.items()}
    rounds = interleave({COPY: copy_of(tensors.x), **timed}, budget, twice=True)
    copy = spread([seconds for (seconds,) in rounds.of.pop(COPY)])
    with torch.no_grad():
        outputs = {name: _tensor(call()) for name, call in calls.items()}
    exact = reference(case, tensors)
    torch._dynamo.reset()
    return {
        **_described(case, copy, inference_floor(case)),
        "peers": {name: {"forward": spread([s for (s,) in times])} for name, times in rounds.of.items()},
        "others": rounds.others,
        "failed": failed,
        "error": {name: error((y,), exact) for name, y in outputs.items()},
    }


def _tensor(y: Any) -> torch.Tensor:
    return y if isinstance(y, torch.Tensor) else torch.from_numpy(y.numpy())  # onnxruntime's


def _eval_call(case: Case, name: str, tensors: Tensors) -> Callable[[], Any]:
    if name == runtime.NAME:
        return runtime.batch_norm_call(case, tensors)
    layer = make(case, name, tensors).eval()
    call = torch.compile(layer, dynamic=False) if name == "compile" else layer
    ready = partial(call, *tensors.arguments)
    with torch.no_grad():
        ready()
    return ready


def _prepared(makers: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what could be made, and for the rest why not: one broken peer does not end a long run."""
    made, failed = {}, {}
    for name, maker in makers.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch.compile, about its own imports
                made[name] = maker()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"[:500]
    return made, failed


def _errors(case: Case, peers: dict[str, Peer], tensors: Tensors) -> dict[str, float]:
    exact = reference(case, tensors)
    return {name: error(step(peer), exact) for name, peer in peers.items()}


def _saved(peers: dict[str, Peer]) -> dict[str, float]:
    """Return what each peer keeps for its backward, in tensors of the input's size."""
    found = {}
    for name, peer in peers.items():
        if name != "compile":  # its graph would be compiled anew for the hooks
            parameters = peer.inputs[len(peer.arguments) :]
            kept = saved_bytes(partial(peer.layer, *peer.arguments), parameters)
            found[name] = kept / peer.arguments[0].nbytes
    return found


def _described(case: Case, copy: dict[str, float], limit: Floor) -> dict[str, Any]:
    size = case.elements * DTYPES[case.dtype].itemsize
    return {
        "norm": case.norm,
        "shape": case.shape,
        "layout": case.layout,
        "activation": case.activation,
        "dtype": case.dtype,
        "elements": case.elements,
        "slab_elements": case.slab_elements,
        "copy": copy,
        "copy_bytes_per_second": 2 * size / copy["median"],
        "floor": {
            "reads": limit.reads,
            "forward_tensors": limit.forward,
            "backward_tensors": limit.backward,
            "forward": limit.seconds(limit.forward, copy["median"]),
            "backward": limit.seconds(limit.backward, copy["median"]),
        },
    }
