"""accelerate() and restore(): plan everything, then change everything, or nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import nn

from slabnorm.errors import ModelError
from slabnorm.nn import SlabNorm
from slabnorm.surgery.adopt import Adopted, adopt, release
from slabnorm.surgery.computes import Computes, tail
from slabnorm.surgery.derived import plain_class
from slabnorm.surgery.fusion import rewriting
from slabnorm.surgery.fusion.call_sites import hooked, name_of
from slabnorm.surgery.fusion.rewriting import Site
from slabnorm.surgery.norms import KINDS, Accelerated, become, donor, never, revert, why_not
from slabnorm.surgery.recognise import called_norm, fits_norm, recognise
from slabnorm.surgery.record import Acceleration, Left, Replaced
from slabnorm.surgery.transaction import transaction
from slabnorm.surgery.verify import check
from slabnorm.surgery.walk import Place, follow, walk


def accelerate(model: nn.Module, *, verify: Any = None, always: bool = False) -> Acceleration:
    """Let slabnorm compute the norms of a model, in place.

        y = activation(norm(x) + residual)          in one call, where the source shows that it is one

    BatchNorm1d to 3d, InstanceNorm1d to 3d, GroupNorm, LayerNorm and RMSNorm of torch.nn change their class
    and stay the same objects: parameters, buffers, hooks, mode, names and references. `isinstance` of the
    torch.nn class stays true. Modules that run a norm and then an activation, a sum or both do so in one
    call. A second call changes nothing; `restore` goes back.

    Norms of other classes, such as LlamaRMSNorm, are recognised by what they compute: copies of them run on
    random inputs. Where outputs and gradients are those of a norm that slabnorm knows, it computes them too,
    as long as the module stays what was tried.

    Args:
        model: any module; the model itself may be a norm.
        verify: a batch, to compare outputs and gradients before and after: a tensor, a tuple of positional
            arguments, or a dict of keyword arguments. The comparison runs on copies, in train and eval
            mode; float64 copies judge. Where the results differ the model is not changed.
        always: let slabnorm compute every size of input, for its exactness or to save memory. By default,
            calls that PyTorch's own kernels finish sooner go to these: small tensors above all, layer norm of
            short rows, other devices than the CPU, and what `torch.compile` compiles.

    Returns:
        What was done, what was left, and why: print it.

    Raises:
        ModelError: `model` is no module, or it does not run on the batch.
        VerificationError: the changed model does not compute what the model computes.

    >>> import slabnorm as sn, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> sn.accelerate(model, verify=torch.randn(2, 3, 8, 8))
    1 replaced, 1 of them fused, 0 left; outputs and gradients verified
      1  BatchNorm2d  -> BatchNorm + relu
    inputs that PyTorch's kernels take less time for stay with them (always=True: none)
    >>> sn.restore(model)
    """
    if not isinstance(model, nn.Module):
        raise ModelError("accelerate() needs a torch.nn.Module", type(model).__name__, "give it the model")
    plan = _Plan(model)
    report = plan.report(verify is not None, always)
    if verify is not None:
        # The batch may be small, later ones large: what is verified is slabnorm's part.
        check(model, lambda twin: _Plan(twin).commit(always=True), verify)
    plan.commit(always)
    return report


def restore(model: nn.Module) -> None:
    """Make an accelerated model the model that it was: its classes and forwards, with the present values.

    What training, casts and checkpoints have changed since stays. A model that is not accelerated stays as
    it is.

    >>> import slabnorm as sn, torch
    >>> norm = torch.nn.LayerNorm(8)
    >>> report = sn.accelerate(norm)
    >>> sn.restore(norm)
    >>> type(norm)
    <class 'torch.nn.modules.normalization.LayerNorm'>
    """
    for module, _ in walk(model):
        if isinstance(module, Accelerated):
            revert(module)
        elif isinstance(module, Adopted):
            release(module)
        elif isinstance(module, rewriting.Rewritten):
            object.__setattr__(module, "__class__", module.plain)


@dataclass
class _Norm:
    """A norm that slabnorm will compute, and the places that take up its result."""

    place: Place
    ends: list[tuple[str | None, bool]] = field(default_factory=list)  # activation, residual
    note: str = ""

    @property
    def activation(self) -> str | None:
        """What most call sites end with; the others stay apart."""
        return Counter(name for name, _ in self.ends).most_common(1)[0][0] if self.ends else None

    @property
    def residual(self) -> bool:
        return any(residual for name, residual in self.ends if name == self.activation)


class _Plan:
    """What is to become of every module of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model, places = model, walk(model)
        self.order = {place.names: at for at, place in enumerate(places)}
        self.norms: dict[int, _Norm] = {}
        self.adopted: list[tuple[Place, Computes]] = []
        self.before = [place.module for place in places if isinstance(place.module, Adopted)]
        self.left: list[Left] = []
        self.classes: list[tuple[nn.Module, type[nn.Module]]] = []
        for place in places:
            reason = self._take(place)
            if reason:
                self.left.append(Left(place.names, type(place.module).__name__, reason))
        for place in places:
            self._sites(place.module)
        for norm in self.norms.values():
            if hooked(norm.place.module):
                norm.ends, norm.note = [], "a hook sees its output: not fused"

    def _take(self, place: Place) -> str:
        """Note a norm that slabnorm can compute; return why it cannot, "" also for what is no norm."""
        module = place.module
        if isinstance(module, Accelerated):
            self.norms[id(module)] = _Norm(place)
            return ""
        if isinstance(module, SlabNorm | Adopted) or type(module).__module__.startswith("slabnorm."):
            return ""  # slabnorm computes it as it is, also where it is torch's class as well
        if plain_class(type(module)) in KINDS:
            reason = why_not(module)
            if not reason:
                self.norms[id(module)] = _Norm(place)
            return reason
        called = called_norm(module)
        if not (called or fits_norm(module)):
            return ""
        reason = never(module)
        if plain_class(type(module)) is not type(module):
            reason = reason or "frozen: accelerate it before you freeze it"
        if reason:
            return reason
        found = recognise(module)
        if found.computes is not None:
            self.adopted.append((place, found.computes))
        return found.reason if called else ""

    def _is_norm(self, module: Any) -> bool:
        return id(module) in self.norms

    def _sites(self, module: nn.Module) -> None:
        """Find where a module takes up the results of norms below it, and the class that it gets for that."""
        plain = rewriting.own_class(module)
        heads = frozenset(
            name
            for name, child in (*module._modules.items(), *vars(module).items())
            if isinstance(child, nn.Module) and any(self._is_norm(below) for below in child.modules())
        )
        if not heads or not rewriting.rewritable(plain):
            return
        norms: set[str] = set()
        activations: set[str] = set()

        def is_norm(path: str) -> bool:
            return self._is_norm(follow(module, path))

        def is_activation(path: str) -> bool:
            return name_of(follow(module, path)) is not None

        found = self._in_order(module) if rewriting.in_order(plain) else []
        for _, _, sites in rewriting.methods_of(plain, heads, is_norm, is_activation):
            found += sites
        if not found:
            if rewriting.unreadable(plain):
                for child in module.children():
                    if self._is_norm(child):
                        self.norms[id(child)].note = f"the source of {plain.__name__}.forward cannot be read"
            return
        for site in found:
            name = site.function or (name_of(follow(module, site.module)) if site.module else None)
            self.norms[id(follow(module, site.norm))].ends.append((name, site.residual))
            norms.add(site.norm)
            activations.update([site.module] if site.module else [])
        kind = rewriting.rewritten(plain, tuple(sorted(norms)), tuple(sorted(activations)))
        self.classes.append((module, kind))

    def _in_order(self, module: nn.Module) -> list[Site]:
        children = list(module._modules.items())
        return [
            Site(first, module=second)
            for (first, norm), (second, activation) in pairwise(children)
            if self._is_norm(norm) and name_of(activation) is not None
        ]

    def commit(self, always: bool) -> None:
        """Change the model; where anything fails, nothing is changed."""
        twins = {key: donor(norm.place.module) for key, norm in self.norms.items() if not _done(norm)}
        with transaction(self.model):
            for key, norm in self.norms.items():
                module = norm.place.module
                if key in twins:
                    become(module, twins[key], norm.activation, always)
                else:
                    module.__dict__ |= {"activation": norm.activation, "always": always}
            for place, computes in self.adopted:
                adopt(place.module, computes, always)
            for module in self.before:
                module.__dict__["_always"] = always
            for module, kind in self.classes:
                object.__setattr__(module, "__class__", kind)

    def report(self, verified: bool, always: bool) -> Acceleration:
        """Return what `commit` will do; before it, for it says what the modules are until then."""
        done = [
            Replaced(
                norm.place.names, type(norm.place.module).__name__,
                KINDS[plain_class(type(norm.place.module))].layer, norm.activation, norm.residual, norm.note,
            )
            for norm in self.norms.values()
            if not _done(norm)
        ]  # fmt: skip
        already = len(self.norms) - len(done) + len(self.before)
        done += [
            Replaced(
                place.names, type(place.module).__name__, str(computes),
                tail(place.module, computes.after)[0], note="recognised by its results",
            )
            for place, computes in self.adopted
        ]  # fmt: skip
        done.sort(key=lambda norm: self.order[norm.names])
        return Acceleration(tuple(done), tuple(self.left), already, verified, always)


def _done(norm: _Norm) -> bool:
    return isinstance(norm.place.module, Accelerated)
