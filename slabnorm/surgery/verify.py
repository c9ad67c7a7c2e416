"""Whether a changed model computes what it did: outputs, gradients and buffers, judged by float64.

Two correct float32 computations of a deep network differ, and nobody can say by how much. So both are
compared with a float64 copy: the changed model may be off by a few times what the model itself is off by,
or by a floor. Everything runs on copies, with the random state put back: the model is not touched.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from slabnorm.errors import ModelError, VerificationError

_TIMES = 8.0  # the changed model's error, in errors of the model itself
_FLOORS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_SMALL = 1e-3  # what is this small beside the largest of its kind is compared with that


def check(model: nn.Module, change: Callable[[nn.Module], None], batch: Any) -> None:
    """Raise VerificationError unless a changed copy computes what the model computes, in train and eval mode.

    Compared are outputs, the gradients of parameters and inputs, and floating-point buffers after the step.
    Each passes if its largest error, as a share of the largest value, is at most 8 times that of the
    unchanged model, or 1e-4 (float32; 1e-9, 5e-2 and 1e-2 for float64, bfloat16 and float16).
    """
    args, options = _arguments(batch)
    devices = {t.device.index or 0 for t in model.parameters() if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for training in (True, False):
            before = _results(model, None, args, options, training, None)
            try:
                after = _results(model, change, args, options, training, None)
            except ModelError as error:
                raise _differs("the accelerated model", f"does not run: {error.got}") from error
            try:
                truth = _results(model, None, args, options, training, torch.float64)
            except ModelError:  # a model that insists on its dtype
                truth = before
            _compare(before, after, truth, "train" if training else "eval")


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, dict):
        return (), batch
    return (batch if isinstance(batch, tuple) else (batch,)), {}


def _results(
    model: nn.Module, change: Callable[[nn.Module], None] | None, args: Any, options: Any, training: bool,
    dtype: torch.dtype | None,
) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """Run one step of a copy; return its tensors by kind and name."""
    try:
        twin = copy.deepcopy(model)
        for there, here in zip(twin.modules(), model.modules(), strict=True):
            there.training = here.training if training and model.training else training
        if change is not None:
            change(twin)
        twin = twin.to(dtype) if dtype else twin
        leaves, spec = pytree.tree_flatten((args, options))
        leaves = [_leaf(x, dtype) for x in leaves]
        torch.manual_seed(0)
        given_args, given_options = pytree.tree_unflatten(leaves, spec)
        outputs = [y for y in pytree.tree_leaves(twin(*given_args, **given_options)) if _floating(y)]
        _backward(outputs)
    except Exception as error:
        raise ModelError(
            "the model can be copied and runs on the batch given as verify=",
            f"{type(error).__name__}: {error}",
            "give a tensor, a tuple of positional or a dict of keyword arguments",
        ) from error
    inputs = {str(i): x.grad for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.grad is not None}
    gradients = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    buffers = {name: b for name, b in twin.named_buffers() if _floating(b)}
    return {
        "output": {str(i): y.detach() for i, y in enumerate(outputs)},
        "gradient of input": inputs,
        "gradient of": gradients,
        "buffer": buffers,
    }


def _leaf(x: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(x, Tensor):
        return copy.deepcopy(x)
    x = x.detach().clone()
    if not _floating(x):
        return x
    return (x.to(dtype) if dtype else x).requires_grad_()


def _floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _backward(outputs: list[Tensor]) -> None:
    taken = [y for y in outputs if y.requires_grad]
    generator = torch.Generator().manual_seed(1)  # the same directions for every dtype and device
    directions = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in taken]
    if taken:
        torch.autograd.backward(taken, directions)


def _compare(before: Any, after: Any, truth: Any, mode: str) -> None:
    for kind, wanted in truth.items():
        largest = max((_size(t) for t in wanted.values()), default=0.0)
        for name, value in wanted.items():
            old, new = before[kind].get(name), after[kind].get(name)
            if old is None:
                continue
            what = f"{kind} {name} in {mode} mode"
            if new is None or new.shape != old.shape or new.dtype != old.dtype:
                raise _differs(what, "is missing or has another shape or dtype")
            scale = max(_size(value), _SMALL * largest, torch.finfo(torch.float32).tiny)
            was, now = (_error(t, value) / scale for t in (old, new))
            allowed = max(_TIMES * was, _FLOORS.get(old.dtype, 1e-4))
            if not now <= allowed and not (was != was and now != now):  # NaN before and after is the same
                raise _differs(
                    what, f"is off by {now:.1e} of its scale, {was:.1e} before, {allowed:.1e} allowed"
                )


def _size(x: Tensor) -> float:
    return float(x.double().abs().max()) if x.numel() else 0.0


def _error(x: Tensor, truth: Tensor) -> float:
    if not x.numel():
        return 0.0
    x, truth = x.double(), truth.double()
    return float(torch.where(x == truth, 0.0, x - truth).abs().max())  # infinities that agree


def _differs(what: str, got: str) -> VerificationError:
    return VerificationError(
        "an accelerated model computes what the model computes",
        f"{what} {got}",
        "the model is unchanged; please report it, with the model's forward",
    )
