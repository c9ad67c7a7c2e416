"""virtual_batch(): exact batch norm over micro-batches, as if the batch were whole.

Batch norm over a large batch needs every sample at every norm. So the micro-batches run in turn, each to its
next norm that pools samples; there their statistics are merged, and all go on with those of the whole batch.
The graphs of all parts hang together at these norms, and so one backward does the rest, as for one batch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from slabnorm.errors import ModelError, OptionError, SlabError, StatisticsError
from slabnorm.kernels.backend import dense
from slabnorm.kernels.memory_format import suggested
from slabnorm.merged_norm import Met, Norm, count, found_in, merge, merged_norm
from slabnorm.nn import SlabNorm
from slabnorm.nn.diagnostics import recomputing
from slabnorm.nn.norm import KEEPS_CHANNELS_LAST
from slabnorm.nn.running_stats import held
from slabnorm.notation import parse
from slabnorm.prepare import bind
from slabnorm.slab import Slab
from slabnorm.surgery.derived import Derived, derived
from slabnorm.surgery.lockstep import in_lockstep, wait
from slabnorm.surgery.norms import Accelerated
from slabnorm.surgery.tape import Tape
from slabnorm.surgery.transaction import transaction
from slabnorm.surgery.walk import walk

_BATCH_NORM = parse("n c ... -> c")
_FORWARDS = (SlabNorm.forward, Accelerated.forward, _BatchNorm.forward, nn.SyncBatchNorm.forward)


def virtual_batch(
    model: nn.Module,
    parts: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    recompute: bool = False,
    scaler: Any = None,
) -> Tensor:
    """Run forward and backward of a batch in parts, with the norms' statistics of the whole batch.

        mean, var = those of all parts together        loss = loss(part 1) + ... + loss(part n)

    Losses, gradients and running statistics are those of the whole batch, for which running statistics move
    once. Accumulating the gradients of micro-batches gives others: there batch norm sees each by itself.

    Norms that meet are, in train mode, batch norms of torch.nn, plain and accelerated, and slabnorm's layers
    whose pattern pools samples. In eval mode, frozen, they use their running statistics, as ever.

    Parts run in turn, in their order, each up to the next norm that pools samples. Random numbers, as of
    dropout, are drawn in that order: others than for the whole batch. All else that depends on other samples
    than through these norms sees its part alone, `torch.nn.functional.batch_norm` too. While a part waits
    at a norm the others run: no lock may be held over a norm, and no context that changes what is global,
    such as `torch.random.fork_rng`, may enclose one.

    Args:
        model: the model.
        parts: the micro-batches, each anything that `loss` takes; they may differ in size.
        loss: returns the loss of a part, a tensor of one element, as in
            `lambda model, part: F.cross_entropy(model(part.x), part.y, reduction="sum") / 32`. The losses of
            the parts are added: for a mean over the batch divide each sum by the size of the whole batch. A
            loss that compares samples of several parts, as in contrastive learning, cannot be written so.
        recompute: keep only what is dear, such as the results of convolutions; compute what is cheap
            (activations, norms, sums, pooling) again when the backward needs it. It takes about half of the
            memory that activations take in the whole batch; without it they take as much. Kernels of one's
            own that write into tensors must get these from `torch.empty` and the like.
        scaler: a `torch.amp.GradScaler`, which scales the losses; go on with `scaler.step(optimizer)`.

    Returns:
        The sum of the losses, without a graph. Gradients are in `.grad`, added to what was there.

    Raises:
        ModelError: the parts meet at different norms, a norm cannot meet (it has ghost batches or
            renormalisation, or is called with a mask), the model is compiled, or reentrant
            checkpointing runs a norm (say `use_reentrant=False`).
        StatisticsError: the whole batch has one element per channel.
        OptionError: there are no parts, or `loss` returns no tensor of one element.
        Whatever the model and `loss` raise: nothing is then left of the call, in gradients, running
        statistics or elsewhere in the model.

    Second derivatives of these norms are refused. Whole batches by halves: pytorch/pytorch issue 46516.

    Ioffe and Szegedy, "Batch Normalization" (2015), https://arxiv.org/abs/1502.03167

    >>> import slabnorm as sn, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
    >>> x = torch.randn(32, 3)
    >>> total = sn.virtual_batch(model, x.split([9, 1, 22]), lambda model, x: model(x).square().sum() / 32)
    >>> got = model[0].weight.grad.clone()
    >>> model.zero_grad()
    >>> model(x).square().mean().backward()
    >>> torch.allclose(got, model[0].weight.grad, atol=1e-6)
    True
    """
    if not isinstance(model, nn.Module):
        raise ModelError("virtual_batch() needs a torch.nn.Module", type(model).__name__, "give it the model")
    if isinstance(parts, Tensor | Mapping):
        got = type(parts).__name__
        raise OptionError("parts must be a list of micro-batches", got, "cut it, as in x.split(8)")
    parts = list(parts)
    if not parts:
        raise OptionError("There are no parts", fix="give at least one micro-batch")
    batch = _Batch(model, Tape() if recompute else None)
    with transaction(model), batch.joined():
        losses = batch.forward(parts, loss)
        batch.track()  # before the backward: what it raises leaves earlier gradients alone
        batch.backward(losses, scaler)
    return torch.stack([value.detach().reshape(()) for value in losses]).sum()


def runs_as_virtual_batch(layers: Iterable[nn.Module]) -> bool:
    """Whether a virtual batch of a model with these layers runs, whose parts meet at one of them."""
    return any("_virtual_batch" in vars(layer) for layer in layers)


class _Arrival(NamedTuple):
    """What a part waits with at a norm."""

    layer: nn.Module
    slab: Slab
    mine: Tensor
    graph: bool


@dataclass
class _Use:
    """One meeting at a norm: what every part came with, and what they made of it."""

    layer: nn.Module
    slab: Slab
    count: int
    parts: list[Tensor]
    graph: bool
    tracks: bool
    merged: Tensor | None = None


class _Merge(torch.autograd.Function):
    """Statistics merged over the parts of this process: one node, at which their graphs hang together."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.parts = len(parts)
        return merge(parts)

    @staticmethod
    def backward(ctx: Any, of_merged: Tensor) -> tuple[Tensor, ...]:  # autograd has added up what all say
        return (of_merged,) * ctx.parts


class _AtNorm:
    """The meeting of the parts at one norm."""

    def __init__(self, layer: nn.Module, slab: Slab) -> None:
        self.layer, self.slab = layer, slab

    def merge(self, mine: Tensor) -> Tensor:
        """Wait for the others; return the statistics of all."""
        use: _Use = wait(_Arrival(self.layer, self.slab, mine, torch.is_grad_enabled()))
        if use.merged is None:  # the first part does it: nodes are numbered by thread, and run by number
            with torch.enable_grad():
                use.merged = _Merge.apply(*use.parts)
            use.parts = [part.detach() for part in use.parts]
        return use.merged


class _Meets(Derived):
    """A norm of a model that runs as a virtual batch."""

    def forward(self, *args: Any, **options: Any) -> Any:
        """Normalise a part with the statistics of the whole batch, if the norm pools samples."""
        if not _pools(self):
            return super().forward(*args, **options)
        batch: _Batch = vars(self)["_virtual_batch"]
        return batch.norm(self, *_taken(self)(*args, **options))


class _Batch:
    """A batch that runs in parts."""

    def __init__(self, model: nn.Module, tape: Tape | None) -> None:
        self.model, self.tape, self.forwards = model, tape, True
        self.names = {place.module: place.name for place in walk(model)}
        self.layers = [module for module in self.names if _meets(module, self.names[module])]
        self.uses: list[_Use] = []

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Have the norms of the model meet, within the block."""
        kinds = [type(layer) for layer in self.layers]
        writing = [m for m in self.names if self.tape and isinstance(m, SlabNorm) and m.inplace]
        try:
            for layer in self.layers:
                vars(layer)["_virtual_batch"] = self
                object.__setattr__(layer, "__class__", derived(_Meets, type(layer)))
            for norm in writing:
                norm.inplace = False  # the tape does not see what a kernel writes
            yield
        finally:
            for layer, kind in zip(self.layers, kinds, strict=True):
                object.__setattr__(layer, "__class__", kind)
                vars(layer).pop("_virtual_batch", None)
            for norm in writing:
                norm.inplace = True

    def forward(self, parts: Sequence[Any], loss: Callable[[nn.Module, Any], Tensor]) -> list[Tensor]:
        """Return the losses of all parts."""

        def run(number: int, part: Any) -> Tensor:
            try:
                value = loss(self.model, part)
            except Exception as error:
                error.add_note(f"in part {number} of the virtual batch")
                raise
            if not isinstance(value, Tensor) or value.numel() != 1:
                got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise OptionError("loss must return a tensor of one element", got, "return a sum or a mean")
            return value

        runs = [partial(run, number, part) for number, part in enumerate(parts)]
        losses = in_lockstep(runs, self.meet, self.tape.recording if self.tape else nullcontext)
        self.forwards = False
        if self.tape is not None:
            self.tape.close()
            _trim()
        return losses

    def meet(self, arrivals: list[_Arrival | None]) -> _Use:
        """Hold the meeting of all parts at a norm."""
        first = arrivals[0]
        if first is None or any(a is None or a.layer is not first.layer for a in arrivals):
            at = [
                f"part {i} " + ("has ended" if a is None else f"is at {self.name(a.layer)}")
                for i, a in enumerate(arrivals)
            ]
            raise ModelError(
                "The parts of a virtual batch do not meet at the same norm",
                ", ".join(at[:4]) + (", ..." if len(at) > 4 else ""),
                "let the model run the same norms in the same order for every part",
            )
        came = [a for a in arrivals if a is not None]
        if any(a.slab.kept.shape != first.slab.kept.shape for a in came):
            raise ModelError(
                f"The parts differ along an axis that {self.name(first.layer)} keeps",
                ", ".join(str(a.slab.kept.shape) for a in came[:4]),
                "cut the batch along its samples alone",
            )
        total = sum(a.slab.count for a in came)
        if total <= 1:
            raise StatisticsError(
                f"{self.name(first.layer)} pools samples, but the whole batch has {total} element per slab",
                fix="use a larger batch, or eval mode",
            )
        use = _Use(
            first.layer, first.slab, total, [a.mine for a in came], first.graph, bool(first.layer.training)
        )
        self.uses.append(use)
        return use

    def norm(self, layer: nn.Module, x: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        """Normalise a part with the statistics of the whole batch."""
        norm, weight, bias = _norm_of(layer, x, activation)
        try:
            bound = bind(norm.pattern, norm.affine, norm.sizes, x, weight, bias, residual)
        except SlabError as error:
            raise (layer._misfit(error) if isinstance(layer, SlabNorm) else error) from None
        formats = layer.formats if isinstance(layer, SlabNorm) else KEEPS_CHANNELS_LAST
        if formats and bound.order not in formats:
            order = suggested(x)
            x = dense(x, order if order in formats else torch.contiguous_format)
        if not self.forwards or recomputing():
            merged = self._met(layer, x, norm)
            return merged_norm(x, weight, bias, residual, norm, Met(merged))[0]
        meeting = _AtNorm(layer, bound.slab)
        if self.tape is None:
            return merged_norm(x, weight, bias, residual, norm, meeting)[0]
        with self.tape.paused():
            y, merged = merged_norm(x, weight, bias, residual, norm, meeting)
        again = partial(_again, norm, merged.detach())
        self.tape.add(again, (x, weight, bias, residual), y)
        return y

    def _met(self, layer: nn.Module, x: Tensor, norm: Norm) -> Tensor:
        """Return what was merged when checkpointing ran this norm on these values for the first time."""
        uses = [use for use in self.uses if use.layer is layer and use.graph == torch.is_grad_enabled()]
        if not uses:
            raise ModelError(
                f"{self.name(layer)} runs in a backward otherwise than in its forward",
                fix="call torch.utils.checkpoint.checkpoint with use_reentrant=False",
            )
        if len(uses) > 1:
            # A norm that is used several times: this part came with these statistics then, but for rounding.
            mine = count(x, norm)
            uses.sort(key=lambda use: min(float((mine - part).abs().sum()) for part in use.parts))
        assert uses[0].merged is not None
        return uses[0].merged.detach()

    def backward(self, losses: Sequence[Tensor], scaler: Any) -> None:
        """Run the one backward of all parts; gradients are added when it is done."""
        with torch.enable_grad():
            scaled = [value if scaler is None else scaler.scale(value) for value in losses]
        roots = [value for value in scaled if value.requires_grad]
        if not roots:
            raise ModelError(
                "No loss depends on anything that has a gradient",
                fix="leave torch.no_grad(), and give the model parameters that require a gradient",
            )
        leaves = {id(t): t for t in (*self.model.parameters(), *_leaves(roots))}
        with _added(list(leaves.values())), ExitStack() as stack:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            torch.autograd.backward(roots)

    def track(self) -> None:
        """Let the whole batch enter the running statistics."""
        for use in self.uses:
            if use.tracks:
                assert use.merged is not None
                _track(use.layer, use.merged.detach(), use.slab, use.count)

    def name(self, layer: nn.Module) -> str:
        """Return a layer's name in the model, and its class."""
        kind = layer.under if isinstance(layer, Derived) else type(layer)
        return f"{self.names[layer]} ({kind.__name__})".lstrip()


def _trim() -> None:
    """Give free memory back to the system, if the C library is one that can.

    GNU's keeps what a thread has freed for that thread: with four parts of a ResNet-18 a third of the peak.
    """
    with suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _again(
    norm: Norm, merged: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    return merged_norm(x, weight, bias, residual, replace(norm), Met(merged))[0]


# Which norms meet, and what they compute.


def _meets(module: nn.Module, name: str) -> bool:
    """Return whether a module is a norm that may pool samples.

    Raises:
        ModelError: it is one that cannot meet, or nothing can be changed in the model.
    """

    def refused(why: str, fix: str) -> ModelError:
        kind = type(module).__name__
        return ModelError(f"{name or 'The model'} ({kind}) cannot run as a virtual batch", why, fix)

    scripted = isinstance(module, torch.jit.ScriptModule)
    if scripted or type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
        raise refused("it is compiled", "give the model that was compiled")
    if isinstance(module, _Meets):
        raise refused("it runs in another one", "wait until that has ended")
    if not isinstance(module, SlabNorm | _BatchNorm | _InstanceNorm):
        return False
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        raise refused("it is not initialised yet", "run the model once")
    apart = (
        not module.pattern.pools_samples
        if isinstance(module, SlabNorm)
        else isinstance(module, _InstanceNorm)
    )
    if apart:
        if module.training and module.track_running_stats and held(module, "running_mean") is not None:
            raise refused("its running statistics are averages over samples", "freeze it with eval()")
        return False
    if _pools(module) and ("forward" in vars(module) or type(module).forward not in _FORWARDS):
        raise refused("its forward is its own, and may pool samples", "use a class of torch.nn or slabnorm")
    if module.training and (getattr(module, "ghost", None) or getattr(module, "renorm", None)):
        raise refused("it has ghost batches or renormalisation", "set its ghost and renorm to None")
    if _pools(module) and isinstance(module, nn.SyncBatchNorm) and _processes() > 1:
        raise refused("it merges its statistics over processes", "train in one process")
    return True


def _processes() -> int:
    here = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if here else 1


def _pools(layer: Any) -> bool:
    """Return whether a norm uses the statistics of its batch now."""
    return layer.training or held(layer, "running_mean") is None


def _taken(layer: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None, str | None]]:
    """Return a function of a layer's arguments that returns input, residual and activation."""
    if isinstance(layer, Accelerated):
        return lambda input, residual=None, fused=False: (
            input,
            residual,
            layer.activation if fused else None,
        )
    if isinstance(layer, SlabNorm):
        return partial(_taken_from, layer)
    return lambda input: (input, None, None)


def _taken_from(
    layer: SlabNorm, x: Tensor, residual: Tensor | None = None, *, mask: Any = None, lengths: Any = None,
    segments: Any = None, masked: str = "zero",
) -> tuple[Tensor, Tensor | None, str | None]:  # fmt: skip
    if mask is not None or lengths is not None or segments is not None:
        raise ModelError(
            "A norm of a virtual batch was called with a mask, lengths or segments",
            f'{type(layer).__name__} of "{layer.pattern}"',
            "leave them out, or train on the whole batch",
        )
    return x, residual, layer.activation


def _norm_of(layer: Any, x: Tensor, activation: str | None) -> tuple[Norm, Tensor | None, Tensor | None]:
    """Return what a layer computes, with its weight and bias."""
    weight, bias = held(layer, "weight"), held(layer, "bias")
    if isinstance(layer, SlabNorm):
        pattern, affine, sizes, center = layer.pattern, layer.affine_axes, layer._sizes, layer.center
    else:
        layer._check_input_dim(x)
        pattern, affine, sizes, center = _BATCH_NORM, _BATCH_NORM.default_affine, (), True
    eps = layer.eps
    if eps is None:
        eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    affine = () if weight is None and bias is None else affine
    return Norm(pattern, affine, sizes, float(eps), center, activation), weight, bias


def _track(layer: Any, merged: Tensor, slab: Slab, count: int) -> None:
    """Let a whole batch enter a layer's running statistics, by the layer's own rule."""
    found, whole = found_in(merged, slab, count)
    alike = isinstance(layer, Accelerated) and layer.momentum is None  # torch weighs every batch alike
    if isinstance(layer, SlabNorm) and not alike:
        layer._track(found, whole, layer.center, True)
        return
    if not layer.track_running_stats:
        return
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    mean, var = held(layer, "running_mean"), held(layer, "running_var")
    if mean is None or var is None:
        return
    share = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    with torch.no_grad():
        for running, batch in ((mean, found.mean), (var, found.m2 / (count - 1))):
            running.copy_((1 - share) * running.double() + share * batch)


# Gradients.


def _leaves(roots: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the tensors in which a backward leaves gradients."""
    todo = [root.grad_fn for root in roots]
    seen: set[Any] = set()
    for root in roots:
        if root.is_leaf:
            yield root
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            yield node.variable  # type: ignore[attr-defined]
        todo += [before for before, _ in node.next_functions]


@contextmanager
def _added(leaves: list[Tensor]) -> Iterator[None]:
    """Add the gradients that the block leaves to those that are there; if it raises, these stay alone."""
    before = [leaf.grad for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.grad = None
        yield
    except BaseException:
        for leaf, gradient in zip(leaves, before, strict=True):
            leaf.grad = gradient
        raise
    with torch.no_grad():
        for leaf, gradient in zip(leaves, before, strict=True):
            if gradient is None:
                continue
            if leaf.grad is not None:
                gradient = (
                    gradient.add_(leaf.grad) if gradient.layout is torch.strided else gradient + leaf.grad
                )
            leaf.grad = gradient
