"""Whether a module computes what it seems to: outputs, gradients and buffers against the formula in float64.

Inputs are of several kinds, each of which shows what the others hide. Usual ones show a wrong axis, role or
gradient; means far from 0, statistics that lose their digits there; variances of the size of eps, another
eps; large values, a limit; and a NaN, who hides it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt

import torch
from torch import Tensor, nn

from slabnorm.kernels import eager
from slabnorm.kernels.call import Call
from slabnorm.slab import plan
from slabnorm.surgery import twins
from slabnorm.surgery.computes import Computes, Orders
from slabnorm.surgery.twins import Result, attributes

_KINDS = {
    "usual": "",
    "far": " with means far from 0",
    "tiny": " with variances as small as eps",
    "loud": " with large values",
    "nan": " with a NaN",
}
_LOUD = 1e4
_FAR = {torch.float32: 1e4, torch.float64: 1e7}  # means, in standard deviations
_ROUNDINGS = 64  # of the largest output
_ROUNDINGS_OF_GRADIENTS = 1000  # which are sums
_ROUNDINGS_OF_HALVES = 4
_FEW = 2
_KERNELS = "NativeBatchNorm", "NativeLayerNorm", "NativeGroupNorm", "FusedRmsNorm"
_LARGE = 500  # whose square float16 does not hold
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def shapes(size: int) -> list[tuple[int, ...]]:
    """Return shapes of ranks 2 to 5, with channels last or second; no other axis is as long."""
    n, a, b, c = [k for k in (7, 3, 4, 5, 2) if k != size][:4]
    return [(n, size), (n, a, size), (n, size, a), (a, b, c, size), (a, size, b, c), (a, size, b, c, a)]


def values_for(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return positive values for parameters and buffers of unknown meaning: any may be a variance."""
    generator = torch.Generator().manual_seed(0)
    return {name: 0.5 + _rand(t.shape, generator) for name, t in tensors.items()}


def confirmed(module: nn.Module, candidate: Computes, ranks: set[int]) -> tuple[Computes | None, str]:
    """Return what a module computes with all that is to be known of it; or None, and where it differs.

    Args:
        module: the module.
        candidate: what it seems to compute.
        ranks: of inputs for which it seems so.
    """
    size = candidate.channels or 6
    inputs = [
        s for s in shapes(size) if len(s) in ranks and s[candidate.axis] == size and _tells(candidate, s)
    ]
    if not inputs:
        return None, "it has so few channels that nothing shows"
    if candidate.source == "running":
        momentum = _momentum(module, candidate, inputs[0])
        if momentum is None:
            return None, "its buffers do not follow the batches as running statistics do"
        candidate = replace(candidate, momentum_name=momentum[0], momentum=momentum[1])
    dtypes = {torch.float32}
    fault = _fault(module, candidate, inputs, torch.float32, tuple(_KINDS))
    if fault:
        return None, fault
    if not _fault(module, candidate, inputs, torch.float64, ("usual", "far", "tiny")):
        dtypes.add(torch.float64)
    else:  # one that computes in float32 whatever it is given
        fault = _fault(module, candidate, inputs, torch.float64, ("usual", "tiny"), exact=False)
        if fault:
            return None, fault
    dtypes |= {half for half in (torch.bfloat16, torch.float16) if _halves(module, candidate, inputs, half)}
    orders: Orders = {}
    for shape in inputs:
        orders |= _orders(module, candidate, shape)
    eps_name, kernel = _eps_name(module, candidate, inputs[0]), _runs_kernel(module, candidate, inputs[-1])
    return replace(candidate, dtypes=frozenset(dtypes), orders=orders, eps_name=eps_name, kernel=kernel), ""


def _tells(candidate: Computes, shape: tuple[int, ...]) -> bool:
    """Whether slabs are large enough: z of two elements is -1 and 1, and all gradients nearly 0."""
    return plan(candidate.pattern, (), shape, candidate.sizes).count > _FEW


def _rand(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")


def _randn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _draw(
    module: nn.Module, candidate: Computes, shape: tuple[int, ...], flavour: str, far: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return an input of a kind, and values for parameters and buffers that go with it."""
    generator = torch.Generator().manual_seed(2)
    x = _randn(shape, generator)
    scale = torch.linspace(0.5, 2, shape[0], dtype=torch.float64, device="cpu")
    if flavour in ("usual", "nan"):
        x = 0.5 + x * scale.reshape(-1, *(1 for _ in shape[1:]))
    sizes = {"tiny": sqrt(candidate.eps), "large": far, "loud": _LOUD}
    x = x + far if flavour == "far" else x * sizes.get(flavour, 1)
    if flavour == "nan":
        x[(0,) * x.dim()] = torch.nan
    values = {}
    for name, t in {**module._parameters, **module._buffers}.items():
        if t is None or not t.is_floating_point():
            continue
        value = _randn(tuple(t.shape), generator)
        if name == candidate.var:  # in half precision, the square of a large value would be infinite
            size = sizes.get(flavour, 1) if flavour != "large" else 1
            value = size**2 * (0.5 + _rand(tuple(t.shape), generator))
        elif name == candidate.mean:
            value = value + far if flavour == "far" else value * sizes.get(flavour, 1)
        elif flavour == "loud":
            value = value * _LOUD
        values[name] = value
    return x, values


def _tries(
    module: nn.Module, candidate: Computes, inputs: list[tuple[int, ...]], dtype: torch.dtype,
    flavours: tuple[str, ...], far: float,
) -> Iterator[tuple[str, bool, nn.Module, Tensor, Tensor, dict[str, Tensor]]]:  # fmt: skip
    """Yield copies and inputs to be tried: kind, mode, copy, input; input and tensors in float64."""
    for flavour in flavours:
        for shape in inputs:
            for training in (True, False):
                x, values = _draw(module, candidate, shape, flavour, far)
                x = x.to(dtype)
                made = twins.make(module, values, dtype, training)
                held = {**made._parameters, **made._buffers}
                wide = {
                    name: t.detach().double() for name, t in held.items() if t is not None and name in values
                }
                yield flavour, training, made, x, x.double(), wide


def _fault(
    module: nn.Module, candidate: Computes, inputs: list[tuple[int, ...]], dtype: torch.dtype,
    flavours: tuple[str, ...], exact: bool = True,
) -> str:  # fmt: skip
    """Return where outputs, gradients or buffers of a module are not the formula's, in words; "" if nowhere.

    Unless it has to be `exact`, it may round to float32 in float64.
    """
    unit = torch.finfo(dtype if exact else torch.float32).eps
    far = _FAR[dtype]
    for flavour, training, made, x, wide, tensors in _tries(module, candidate, inputs, dtype, flavours, far):
        where = f"in {'train' if training else 'eval'} mode"
        before = {name: t.clone() for name, t in made._buffers.items() if t is not None}
        leaves = {name: t.requires_grad_(name in made._parameters) for name, t in tensors.items()}
        x.requires_grad_(), wide.requires_grad_()
        result = twins.run(made, x)
        wanted = candidate.formula(made, leaves, wide, training)
        allowed = _ROUNDINGS * unit * (far if flavour == "far" else 1)
        if result.y.dtype != dtype and exact:
            return f"its output is {result.y.dtype} for {dtype}"
        if not _near(result.y, wanted, allowed):
            return f"its outputs differ {where}{_KINDS[flavour]}"
        if flavour != "usual":
            continue
        if not _gradients_near(made, x, result.y, leaves, wide, wanted, _ROUNDINGS_OF_GRADIENTS * unit):
            return f"its gradients differ {where}"
        if not _buffers_near(candidate, before, result, wide.detach(), training, _ROUNDINGS * unit):
            return f"its buffers differ {where}"
    return ""


def _near(found: Tensor, wanted: Tensor, allowed: float) -> bool:
    found, wanted = found.detach().double(), wanted.detach()
    if not torch.equal(found.isnan(), wanted.isnan()):
        return False
    error = (found - wanted).nan_to_num(0).abs().max()
    return bool(error <= allowed * wanted.nan_to_num(0).abs().max().clamp(min=1e-30))


def _gradients_near(
    made: nn.Module, x: Tensor, y: Tensor, leaves: dict[str, Tensor], wide: Tensor, wanted: Tensor,
    allowed: float,
) -> bool:  # fmt: skip
    """Whether gradients of the input and of every parameter are the formula's, and none is missing."""
    names = [name for name, t in made._parameters.items() if t is not None]
    direction = _randn(tuple(y.shape), torch.Generator().manual_seed(3))
    mine = [x, *(made.get_parameter(name) for name in names)]
    theirs = [wide, *(leaves[name] for name in names)]
    if not y.requires_grad:
        return False
    got = torch.autograd.grad(y, mine, direction.to(y.dtype), allow_unused=True)
    want = torch.autograd.grad(wanted, theirs, direction, allow_unused=True)
    return all(
        (a is None) == (b is None) and (a is None or b is None or _near(a, b, allowed))
        for a, b in zip(got, want, strict=True)
    )


def _batch_statistics(candidate: Computes, x: Tensor) -> dict[str, Tensor]:
    """Return mean and unbiased variance of a batch under the names that the module keeps them by."""
    slab = plan(candidate.pattern, (), tuple(x.shape), candidate.sizes)
    mean, _, m2 = eager.statistics(x, Call(slab))
    assert candidate.mean is not None
    assert candidate.var is not None
    return {candidate.mean: mean, candidate.var: m2 / (slab.count - 1)}


def _buffers_near(
    candidate: Computes, before: dict[str, Tensor], result: Result, x: Tensor, training: bool, allowed: float
) -> bool:
    """Whether a forward leaves buffers as they were, or moved them as running statistics move."""
    wanted = {name: t.double() for name, t in before.items()}
    if training and candidate.source == "running":
        for name, batch in _batch_statistics(candidate, x).items():
            wanted[name] = wanted[name].lerp(batch.reshape(wanted[name].shape), candidate.momentum)
        if candidate.counter is not None:
            wanted[candidate.counter] = wanted[candidate.counter] + 1
    if wanted.keys() != result.buffers.keys():
        return False
    return all(
        t.dtype == before[name].dtype and _near(t, wanted[name], allowed)
        for name, t in result.buffers.items()
    )


def _momentum(module: nn.Module, candidate: Computes, shape: tuple[int, ...]) -> tuple[str, float] | None:
    """Return the attribute by which running statistics follow a batch, and its value; None if none does."""
    assert candidate.mean is not None
    x, values = _draw(module, candidate, shape, "usual", 0)
    made = twins.make(module, values, torch.float64, True)
    before = made._buffers[candidate.mean]
    assert before is not None
    before = before.clone()
    with torch.no_grad():
        after = twins.run(made, x).buffers[candidate.mean]
    batch = _batch_statistics(candidate, x)[candidate.mean].reshape(before.shape)
    followed = float(((after - before) / (batch - before)).median())
    for name, value in attributes(module).items():
        if type(value) is float and 0 < value <= 1 and abs(followed - value) <= 1e-6:
            return name, value
    return None


def _halves(
    module: nn.Module, candidate: Computes, inputs: list[tuple[int, ...]], dtype: torch.dtype
) -> bool:
    """Whether a module computes in half precision as the formula does, but for rounding."""
    flavours = "usual", "tiny", "large"
    allowed = _ROUNDINGS_OF_HALVES * torch.finfo(dtype).eps
    try:
        with torch.no_grad():
            for _, training, made, x, wide, tensors in _tries(
                module, candidate, inputs, dtype, flavours, _LARGE
            ):
                y = twins.run(made, x).y
                if y.dtype != dtype or not _near(
                    y, candidate.formula(made, tensors, wide, training), allowed
                ):
                    return False
    except Exception:  # a kernel that torch lacks on the CPU
        return False
    return True


def _orders(module: nn.Module, candidate: Computes, shape: tuple[int, ...]) -> Orders:
    """Return in which memory format a module returns inputs of this rank, by theirs."""
    x, values = _draw(module, candidate, shape, "usual", 0)
    made = twins.make(module, values, torch.float32, False)
    x = x.float()
    given = {torch.contiguous_format: x}
    if len(shape) in _LAST:
        given[_LAST[len(shape)]] = x.contiguous(memory_format=_LAST[len(shape)])
    if len(shape) > 2:
        given[torch.preserve_format] = x.transpose(0, 1).contiguous().transpose(0, 1)
    found: Orders = {}
    with torch.no_grad():
        wanted = candidate.formula(
            made, {n: t.float().double() for n, t in values.items()}, x.double(), False
        )
        for order, laid in given.items():
            try:
                y = twins.run(made, laid).y
            except Exception:  # it makes views that not every order has
                continue
            if not _near(y, wanted, 1e-5):
                continue
            if y.is_contiguous():
                found[len(shape), order] = torch.contiguous_format
            elif len(shape) in _LAST and y.is_contiguous(memory_format=_LAST[len(shape)]):
                found[len(shape), order] = _LAST[len(shape)]
            elif y.stride() == laid.stride():
                found[len(shape), order] = torch.preserve_format
    return found


def _runs_kernel(module: nn.Module, candidate: Computes, shape: tuple[int, ...]) -> bool:
    """Whether a forward runs one of PyTorch's kernels for norms, by what its gradient goes through."""
    x, values = _draw(module, candidate, shape, "usual", 0)
    y = twins.run(twins.make(module, values, torch.float32, True), x.float().requires_grad_()).y
    nodes, seen = [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name().startswith(_KERNELS):
            return True
        seen.add(node)
        nodes += [below for below, _ in node.next_functions]
    return False


def _eps_name(module: nn.Module, candidate: Computes, shape: tuple[int, ...]) -> str | None:
    """Return the attribute that is the eps, by changing each that has its value on a copy."""
    for name, value in attributes(module).items():
        if type(value) is not float or value != candidate.eps:
            continue
        other = replace(candidate, eps=3 * candidate.eps)
        x, values = _draw(module, other, shape, "tiny", 0)
        made = twins.make(module, values, torch.float64, False)
        vars(made)[name] = other.eps
        try:
            with torch.no_grad():
                y = twins.run(made, x).y
        except Exception:  # it checks its numbers
            continue
        if _near(y, other.formula(made, values, x, False), 1e-5):
            return name
    return None
