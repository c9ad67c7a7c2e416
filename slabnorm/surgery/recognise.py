"""Norm classes recognised by what they compute: LlamaRMSNorm, FrozenBatchNorm2d and whoever writes the next.

A class's name proves nothing, and neither does its source, of which there are hundreds of spellings. So a
copy of the module runs on random inputs, and every norm that slabnorm knows is compared with it: with every
way to take its parameters and buffers for weight, bias, mean and variance, and its numbers for eps and
groups. What agrees is then tried in earnest: outputs and gradients, in float64 and float32, in both modes,
with means far from 0 (where E[x^2] - E[x]^2 has no digits left), variances as small as eps (where another
eps shows), inputs of several ranks and memory orders.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, jit, nn

from slabnorm.surgery import twins
from slabnorm.surgery.adopt import Adopted, bare
from slabnorm.surgery.computes import Computes
from slabnorm.surgery.evidence import confirmed, shapes, values_for
from slabnorm.surgery.fusion.call_sites import hooked
from slabnorm.surgery.norms import KINDS
from slabnorm.surgery.twins import Result, SideEffectError, attributes, frozen, is_plain

_DIFFERS = "its outputs differ from every norm that slabnorm knows"
_MOST_TENSORS = 4  # that hold numbers: weight, bias, mean and variance
_MOST_CHILDREN = 3
_KEPT = 512  # recognitions
_MOST_LIKELY = 8  # candidates that are tried in earnest
_USUAL_EPS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3)  # of a forward that has none as an attribute
_NEAR = 1e-5  # of the largest output; what computes in float32 is off by rounding
_SIZES = (6, 10)  # of axis c, of a norm without weight, statistics and a size that it says
_PASSES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True)
class Recognition:
    """What a module computes, or why nobody can say: one of the two."""

    computes: Computes | None
    reason: str = ""


def recognise(module: nn.Module) -> Recognition:
    """Find out which norm a module of any class computes, by its results.

        y = activation((shift + weight) * (x - mean_S) / sqrt(var_S + eps) + bias)

    Copies are tried on the CPU, and what comes out holds for modules of this class with these attributes and
    shapes, whatever the values of their parameters and buffers are, and is remembered. The module is not
    touched.

    Args:
        module: any module. It is not tried if it holds more than four parameters and buffers, others than
            of one axis, or submodules that hold any.

    Returns:
        What it computes, with the names of its attributes, parameters and buffers; or why that is not known.

    >>> class Norm(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.scale, self.tiny = torch.nn.Parameter(torch.zeros(8)), 1e-6
    ...     def forward(self, x):
    ...         return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.tiny) * (1 + self.scale)
    >>> found = recognise(Norm()).computes
    >>> print(found, found.weight, found.eps_name, found.eps)
    RMSNorm(weight + 1) scale tiny 1e-06
    """
    module = bare(module) if isinstance(module, Adopted) else module
    reason = _unfit(module)
    if reason:
        return Recognition(None, reason)
    key = _signature(module)
    if key not in _known:
        if len(_known) >= _KEPT:
            _known.clear()
        with twins.quiet():
            _known[key] = _judge(module)
    return _known[key]


_known: dict[Any, Recognition] = {}


def called_norm(module: nn.Module) -> bool:
    """Whether a module is a norm by its name or its parents; one that consists of modules is not."""
    return isinstance(module, tuple(KINDS)) or (
        "norm" in type(module).__name__.lower() and not _parts(module)
    )


def fits_norm(module: nn.Module) -> bool:
    """Whether a module of another library holds what a norm holds: a few small tensors and no other parts."""
    return not type(module).__module__.startswith("torch.") and bool(_flat(module)) and not _unfit(module)


def _parts(module: nn.Module) -> bool:
    """Whether a module has submodules that hold anything, or many."""
    below = [child for child in module.modules() if child is not module]
    held = any(child._parameters or child._buffers or child._modules for child in below)
    return held or len(below) > _MOST_CHILDREN


def _unfit(module: nn.Module) -> str:
    """Return why a module cannot be tried; "" if it can."""
    if "forward" in vars(module):
        return "its forward was replaced on the object"
    if isinstance(module, jit.ScriptModule):
        return "it is a script, whose class is made for one object"
    if _parts(module) or any(hooked(child) for child in module.children()):
        return "it has submodules of its own"
    if not all(is_plain(value) for value in attributes(module).values()):
        return "it has attributes that are not plain data"
    tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    if any(t.is_complex() for t in tensors):
        return "it holds complex numbers"
    flat = _flat(module)
    floats = [t for t in tensors if t.is_floating_point()]
    if len(flat) != len(floats) or len(flat) > _MOST_TENSORS or len({t.numel() for t in flat.values()}) > 1:
        return "its parameters and buffers are not a number for each channel"
    return ""


def _flat(module: nn.Module) -> dict[str, Tensor]:
    """Return the floating-point parameters and buffers that have one axis, others of size 1 aside."""
    named = {**module._parameters, **module._buffers}
    return {
        name: t
        for name, t in named.items()
        if t is not None and t.is_floating_point() and t.dim() > 0 and max(t.shape) == t.numel() > 0
    }


def _signature(module: nn.Module) -> Any:
    """Return all that decides what a module computes, beside values."""

    def own(m: nn.Module | None) -> Any:
        return None if m is None else (type(m), type(m).forward, frozen(attributes(m)))

    named = [(store, *item) for store in ("_parameters", "_buffers") for item in vars(module)[store].items()]
    held = tuple((s, n, None if t is None else (t.shape, t.is_floating_point())) for s, n, t in named)
    numbers = twins.class_numbers(type(module))
    return own(module), numbers, held, tuple((name, own(child)) for name, child in module._modules.items())


class _Seen(NamedTuple):
    """What a copy returned for one input in both modes."""

    x: Tensor
    results: dict[bool, Result]


def _judge(module: nn.Module) -> Recognition:
    """Try a module and every norm that it may be."""
    flat = _flat(module)
    sizes = {t.numel() for t in flat.values()} or _said_sizes(module)
    values = values_for(flat)
    try:
        seen = [look for size in sorted(sizes or _SIZES) for look in _looks(module, values, size)]
    except SideEffectError as error:
        return Recognition(None, str(error))
    except Exception as error:  # whatever a constructor's leftovers raise when they are copied
        return Recognition(None, f"it cannot be copied to be tried ({type(error).__name__})")
    if not seen:
        return Recognition(None, "its forward does not take one tensor and return one of its shape")
    channels = next(iter(sizes)) if len(sizes) == 1 else None
    everywhere = {look.x.dim() for look in seen}
    partly: list[tuple[set[int], Computes]] = []
    reason = ""
    for candidate in _candidates(module, channels):
        ranks = _agreeing(module, candidate, values, seen)
        if ranks == everywhere:
            computes, fault = _confirmed(module, candidate, ranks)
            if computes is not None:
                return Recognition(computes)
            reason = reason or fault
        elif ranks:
            partly.append((ranks, candidate))
    for ranks, candidate in sorted(partly, key=lambda pair: -len(pair[0]))[:_MOST_LIKELY]:
        computes, fault = _confirmed(module, candidate, ranks)
        if computes is not None:
            return Recognition(replace(computes, partly=True))
        reason = reason or fault
    return Recognition(None, reason or _DIFFERS)


def _confirmed(module: nn.Module, candidate: Computes, ranks: set[int]) -> tuple[Computes | None, str]:
    try:
        computes, fault = confirmed(module, candidate, ranks)
    except Exception as error:
        computes, fault = None, f"its forward raises {type(error).__name__} on some inputs"
    return computes, f"it resembles {candidate}, but {fault}"


def _said_sizes(module: nn.Module) -> set[int]:
    """Return the one size that a module without tensors says that its input has, if it says one."""
    said = attributes(module).get("normalized_shape")
    said = said[0] if isinstance(said, list | tuple) and len(said) == 1 else said
    return {said} if type(said) is int and said > 0 else set()


def _looks(module: nn.Module, values: dict[str, Tensor], size: int) -> Iterator[_Seen]:
    """Run copies on inputs of all ranks; yield those that ran in both modes."""
    generator = torch.Generator().manual_seed(1)
    for shape in shapes(size):
        x = 0.05 + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        results = {}
        for training in (False, True):
            try:
                with torch.no_grad():
                    results[training] = twins.run(twins.make(module, values, torch.float64, training), x)
            except SideEffectError:
                raise
            except Exception:  # another rank, other channels: whatever a forward raises, it does not take it
                break
        if len(results) == 2:
            yield _Seen(x, results)


def _candidates(module: nn.Module, channels: int | None) -> Iterator[Computes]:
    """Yield every norm that the tensors and numbers of a module allow."""
    flat = _flat(module)
    buffers = [name for name in flat if name in module._buffers]
    kinds: list[Computes] = []
    pairs = list(itertools.permutations(buffers, 2))
    pairs.sort(key=lambda pair: not ("mean" in pair[0] and "var" in pair[1]))  # the likely one first
    for source in ("running", "fixed"):
        for mean, var in pairs:
            kinds.append(Computes("BatchNorm", "n c ... -> c", source=source, mean=mean, var=var))
    kinds += [
        Computes("RMSNorm", "... c -> ...", center=False), Computes("LayerNorm", "... c -> ..."),
        Computes("LayerNorm", "n c ... -> n ..."), Computes("RMSNorm", "n c ... -> n ...", center=False),
        Computes("BatchNorm", "n c ... -> c"), Computes("InstanceNorm", "n c ... -> n c"),
        *(Computes("GroupNorm", "n (g c) ... -> n g", groups) for groups in _groups(module, channels)),
    ]  # fmt: skip
    afters = [*(name for name, child in module._modules.items() if not isinstance(child, _PASSES)), None]
    counter = next((name for name, t in module._buffers.items() if t is not None and name not in flat), None)
    for kind, after, eps in itertools.product(kinds, afters, _epsilons(module)):
        free = [*(name for name in flat if name not in (kind.mean, kind.var)), None]
        for weight, bias in itertools.product(free, free):
            if weight is not None and weight == bias:
                continue
            for shift in (0.0, 1.0) if weight is not None else (0.0,):
                yield replace(
                    kind, eps=eps, weight=weight, bias=bias, shift=shift, after=after, channels=channels,
                    counter=counter if kind.source == "running" else None,
                )  # fmt: skip


def _epsilons(module: nn.Module) -> list[float]:
    """Return the numbers that can be the eps: attributes, constants of the forward, and usual ones."""
    code = getattr(type(module).forward, "__code__", None)
    numbers = [*attributes(module).values(), *getattr(code, "co_consts", ()), *_USUAL_EPS]
    return list(dict.fromkeys(n for n in numbers if type(n) is float and 0 < n < 1))


def _groups(module: nn.Module, channels: int | None) -> list[int]:
    """Return the numbers that can be the groups."""
    numbers = [n for n in attributes(module).values() if type(n) is int and n > 1]
    size = channels or math.gcd(*_SIZES)
    return list(dict.fromkeys([1, *(n for n in numbers if size % n == 0 and n < size)]))


def _agreeing(
    module: nn.Module, candidate: Computes, values: dict[str, Tensor], seen: list[_Seen]
) -> set[int]:
    """Return the ranks at which a candidate's outputs are the module's; none if the first is not."""
    ranks: dict[int, bool] = {}
    for x, results in seen:
        if candidate.channels is not None and x.shape[candidate.axis] != candidate.channels:
            continue
        same = all(_same(module, candidate, values, x, mode, results[mode]) for mode in results)
        if not same and not ranks:
            return set()
        ranks[x.dim()] = ranks.get(x.dim(), True) and same
    return {rank for rank, same in ranks.items() if same}


def _same(
    module: nn.Module, candidate: Computes, values: dict[str, Tensor], x: Tensor, mode: bool, result: Result
) -> bool:
    y = result.y.double()
    try:
        wanted = candidate.formula(module, values, x, mode)
    except Exception:  # the pattern does not fit the shape
        return False
    return bool((y - wanted).abs().max() <= _NEAR * wanted.abs().max())
