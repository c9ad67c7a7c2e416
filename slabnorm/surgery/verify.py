"""Whether a changed model computes what it did: outputs, gradients and buffers, judged by float64 twice.

Once in float64 alone: the changed model in float64 against the model in float64. There an error of the
change stands out from rounding by ten digits, and no ReLU flips. And once in the model's own dtype, whose
kernels are others: two correct float32 computations of a deep network differ, and nobody can say by how much,
so both are compared with float64, and the changed model may be off by a few times what the model is off by.

A kink (a ReLU, the argmax of a pool) whose input is as good as zero may go one way in one computation and
the other way in another. Outputs do not jump there; gradients do, in a few elements of large tensors, in many
of small ones. So gradients may be off in a share of their elements, and where they are off in more, other
weights decide: a flip is an accident that does not happen again, an error is there every time.

Everything runs on copies, with the random state put back: the model is not touched.
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
from slabnorm.surgery.effect import arguments

_Results = dict[str, dict[str, Tensor]]

_TIMES = 8.0  # the changed model's error, in errors of the model itself
_FLOORS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_SMALL = 1e-3  # what is this small beside the largest of its kind is compared with that
_SHARE = 0.01  # of a gradient's elements, which may be off by more
_DRAWS = 3  # of weights near the model's; with each the comparison has to fail
_NEAR = 0.01  # of a tensor's root mean square, by which they are off
_FINITE = torch.finfo(torch.float64).max
_IN_FLOAT64 = 1e-9, 1e-4  # what is allowed there at least and at most


def check(model: nn.Module, change: Callable[[nn.Module], None], batch: Any) -> None:
    """Raise VerificationError unless a changed copy computes what the model computes, in train and eval mode.

    Compared are outputs, the gradients of parameters and inputs, and floating-point buffers after the step.
    In float64 each may be off, as a share of its largest value, by what rounding to float32 moves an element
    of it by (the median), and by 1e-9 at least. In the model's dtype outputs and buffers pass if no element,
    gradients if at most 1% of the elements, all of them finite, are off by more than 8 times the unchanged
    model's largest error, or by 1e-4 (float32; 1e-9, 5e-2 and 1e-2 for float64, bfloat16 and float16). What
    fails is compared twice more, with weights 1% off, and fails if it fails each time.
    """
    args, options = arguments(batch)
    devices = {t.device.index or 0 for t in model.parameters() if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for training in (True, False):
            first: VerificationError | None = None
            for draw in range(_DRAWS):
                found = _fault(model, change, args, options, training, draw)
                first = first or found
                if found is None:
                    break
            else:
                assert first is not None
                raise first


def _fault(
    model: nn.Module, change: Callable[[nn.Module], None], args: Any, options: Any, training: bool, draw: int
) -> VerificationError | None:
    """Return what differs with one draw of weights; None if nothing does."""

    def run(change: Callable[[nn.Module], None] | None, dtype: torch.dtype | None) -> _Results:
        return _results(model, change, args, options, training, dtype, draw)

    before = run(None, None)
    try:
        after = run(change, None)
    except ModelError as error:
        return _differs("the accelerated model", f"does not run: {error.got}")
    try:
        truth = run(None, torch.float64)
    except ModelError:  # a model that insists on its dtype
        return _compare(before, after, before, after, "train" if training else "eval")
    try:
        exact = run(change, torch.float64)
    except ModelError as error:
        return _differs("the accelerated model in float64", f"does not run: {error.got}")
    return _compare(before, after, truth, exact, "train" if training else "eval")


def _results(
    model: nn.Module, change: Callable[[nn.Module], None] | None, args: Any, options: Any, training: bool,
    dtype: torch.dtype | None, draw: int,
) -> _Results:  # fmt: skip
    """Run one step of a copy, its weights moved unless `draw` is 0; return its tensors by kind and name."""

    def step(of_inputs: bool) -> _Results:
        twin = copy.deepcopy(model)
        for there, here in zip(twin.modules(), model.modules(), strict=True):
            there.training = here.training if training and model.training else training
        if draw:
            _move(twin, draw)
        if change is not None:
            change(twin)
        return _step(twin.to(dtype) if dtype else twin, args, options, dtype, of_inputs)

    try:
        try:
            return step(True)
        except RuntimeError:  # a model that sets `requires_grad` of its inputs, as wav2vec2 does
            return step(False)
    except Exception as error:
        raise ModelError(
            "The model could not be copied, or did not run on the batch given as verify=",
            f"{type(error).__name__}: {error}",
            "give a tensor, a tuple of positional or a dict of keyword arguments",
        ) from error


@torch.no_grad()
def _move(model: nn.Module, draw: int) -> None:
    """Move the weights of a model a little: far from any kink that they happen to meet."""
    generator = torch.Generator().manual_seed(draw)
    for parameter in model.parameters():
        if _floating(parameter):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            size = parameter.double().square().mean().sqrt().clamp(min=0.1)
            parameter.add_((_NEAR * size * noise.to(size.device)).to(parameter.dtype))


def _step(model: nn.Module, args: Any, options: Any, dtype: torch.dtype | None, of_inputs: bool) -> _Results:
    leaves, spec = pytree.tree_flatten((args, options))
    leaves = [_leaf(x, dtype, of_inputs) for x in leaves]
    torch.manual_seed(0)
    given_args, given_options = pytree.tree_unflatten(leaves, spec)
    outputs = [y for y in pytree.tree_leaves(model(*given_args, **given_options)) if _floating(y)]
    _backward(outputs)
    return {
        "output": {str(i): y.detach() for i, y in enumerate(outputs)},
        "buffer": {name: b for name, b in model.named_buffers() if _floating(b)},
        "gradient of input": {
            str(i): x.grad for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.grad is not None
        },
        "gradient of": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
    }


def _leaf(x: Any, dtype: torch.dtype | None, wanted: bool) -> Any:
    if not isinstance(x, Tensor):
        return copy.deepcopy(x)
    x = x.detach().clone()
    if not _floating(x):
        return x
    return (x.to(dtype) if dtype else x).requires_grad_(wanted)


def _floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _backward(outputs: list[Tensor]) -> None:
    taken = [y for y in outputs if y.requires_grad]
    generator = torch.Generator().manual_seed(1)  # the same directions for every dtype and device
    directions = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in taken]
    if taken:
        torch.autograd.backward(taken, directions)


def _compare(
    before: _Results, after: _Results, truth: _Results, exact: _Results, mode: str
) -> VerificationError | None:
    for kind, wanted in truth.items():
        largest = max((_size(t) for t in wanted.values()), default=0.0)
        for name, value in wanted.items():
            old, new, twin = (of[kind].get(name) for of in (before, after, exact))
            if old is None:
                continue
            what = f"{kind} {name} in {mode} mode"
            if new is None or twin is None or new.shape != old.shape or new.dtype != old.dtype:
                return _differs(what, "is missing or has another shape or dtype")
            scale = max(_size(value), _SMALL * largest, torch.finfo(torch.float32).tiny)
            was, now, off = (_errors(t, value) / scale for t in (old, new, twin))
            if not was.numel():
                continue
            if truth is not before:
                rounded = float(was.nanmedian()) * torch.finfo(torch.float32).eps / torch.finfo(old.dtype).eps
                allowed = min(max(rounded, _IN_FLOAT64[0]), _IN_FLOAT64[1])
                if _over(off, was, allowed):
                    return _differs(what, _words("in float64 ", off, was, allowed))
            allowed = max(_TIMES * float(was.nan_to_num(0).max()), _FLOORS.get(old.dtype, 1e-4))
            # A flip at a kink is finite.
            share = _SHARE if kind.startswith("gradient") and not _over(now, was, _FINITE) else 0
            if _over(now, was, allowed) > share:
                return _differs(what, _words("", now, was, allowed))
    return None


def _over(errors: Tensor, before: Tensor, allowed: float) -> float:
    """Return the share of elements that are off by more than is allowed; NaN before and after is the same."""
    wrong = ~(errors <= allowed) & ~(errors.isnan() & before.isnan())
    return float(wrong.double().mean())


def _words(where: str, errors: Tensor, before: Tensor, allowed: float) -> str:
    share, worst = _over(errors, before, allowed), float(errors.max())
    return (
        f"is off {where}by {worst:.1e} of its scale, {float(before.max()):.1e} before; more than the "
        f"{allowed:.1e} allowed in {share:.2%} of its elements"
    )


def _size(x: Tensor) -> float:
    """Return the largest value; without infinities and NaN, beside which any error would be nothing."""
    finite = x[x.isfinite()]
    return float(finite.double().abs().max()) if finite.numel() else 0.0


def _errors(x: Tensor, truth: Tensor) -> Tensor:
    x, truth = x.double(), truth.double()
    return torch.where(x == truth, 0.0, x - truth).abs()  # infinities that agree


def _differs(what: str, got: str) -> VerificationError:
    return VerificationError(
        "The accelerated model does not compute what the model computes",
        f"{what} {got}",
        "the model is unchanged; please report it, with the model's forward",
    )
