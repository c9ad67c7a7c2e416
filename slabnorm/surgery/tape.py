"""A tape of the operations of a forward, so that what a backward needs is computed again instead of kept.

What is cheap (activations, sums, pooling, and the norms that tell the tape of themselves) is noted, and runs
again from what is kept when a backward asks for its result. All else is kept where it is: results of
convolutions and matrix products, random numbers, and what kernels write unseen.

A `_Value` is what a piece of memory holds at one time: memory that is changed in place holds another value
from then on.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode
from torch.utils.flop_counter import flop_registry

_STEPS = 24  # that one tensor may take; longer chains of residual sums are cut
_FLOPS = 128  # an element of the result: a convolution of three channels is cheap, one of 64 is not
_SMALL = 256  # elements, which are not worth the steps

# What costs little beside a convolution, beside all that torch itself calls pointwise.
_CHEAP = frozenset(
    f"aten::{name}" for name in (
        "_adaptive_avg_pool2d", "_log_softmax", "_prelu_kernel", "_softmax", "_to_copy", "addmm",
        "avg_pool2d", "cat", "constant_pad_nd", "convolution", "copy_", "hardswish_",
        "max_pool2d_with_indices", "mean", "mm", "sum", "upsample_bilinear2d", "upsample_nearest2d",
    )
)  # fmt: skip


class _Value:
    """What a piece of memory holds: `flat`, all of it in order, kept; or else the result of a step."""

    __slots__ = ("__weakref__", "depth", "flat", "number", "step")

    def __init__(self, flat: Tensor | None, step: _Step | None = None, number: int = 0) -> None:
        self.flat, self.step, self.number = flat, step, number
        self.depth = 0 if step is None else step.depth


class _Window(NamedTuple):
    """A tensor's place in the memory that holds a value."""

    value: _Value
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    def of(self, flat: Tensor) -> Tensor:
        """Return the tensor."""
        flat = flat if flat.dtype == self.dtype else flat.view(self.dtype)
        return flat.as_strided(self.size, self.stride, self.offset)


class _Step(NamedTuple):
    """One operation: what runs it, and its arguments, tensors among them as windows.

    `changes` says which arguments it writes to: these are then its results, before what it returns.
    """

    run: Callable[[list[Any]], Any]
    arguments: list[Any]
    changes: tuple[int, ...] = ()

    @property
    def read(self) -> list[_Value]:
        """The values that it needs."""
        return [a.value for a in self.arguments if isinstance(a, _Window)]

    @property
    def depth(self) -> int:
        """The length of the longest chain of steps that ends here."""
        return 1 + max((value.depth for value in self.read), default=0)


class _Saved(NamedTuple):
    """What a graph keeps in the place of a tensor: where its values are, or itself and its version."""

    what: _Window | Tensor
    version: int = 0


class Tape(TorchDispatchMode):
    """Notes what runs in the threads that enter `recording`; `add` notes what no dispatch shows."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[int, tuple[Any, _Value]] = {}  # by the address of a storage that is alive
        self._kept: weakref.WeakValueDictionary[int, _Value] = weakref.WeakValueDictionary()
        self._thread = threading.local()
        # The latest result: what saved it (a convolution, the ReLU before it) asks for it in a row.
        self._last: tuple[_Value, Tensor] | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note what runs in this thread, and save for gradients what the tape cannot compute again."""
        with saved_tensors_hooks(self._pack, self._unpack):
            _push_mode(self)
            try:
                yield
            finally:
                _pop_mode()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Note nothing of what runs in this thread: `add` will say what it was."""
        self._thread.paused = True
        try:
            yield
        finally:
            self._thread.paused = False

    def close(self) -> None:
        """Let go of all that no graph needs: the forward is done."""
        self._values.clear()
        self._kept.clear()

    def add(self, run: Callable[..., Tensor], arguments: Sequence[Tensor | None], result: Tensor) -> None:
        """Note that a function of tensors has this result."""
        windows = [None if t is None else self._window(t) for t in arguments]
        self._note(_Step(lambda given: [run(*given)], windows), [result])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note it if it is cheap."""
        kwargs = kwargs or {}
        if getattr(self._thread, "paused", False):
            return func(*args, **kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        changed = _written(func, args, kwargs, leaves)
        arguments = self._arguments(func, leaves, changed)
        for i in changed:
            self._before_change(leaves[i])
        out = func(*args, **kwargs)
        made = pytree.tree_leaves(out)
        if arguments is None or not all(map(_plain, _tensors(made))) or _dear(func, args, kwargs, out):
            for i in changed:
                self._values.pop(_address(leaves[i]), None)
            return out

        def run(given: list[Any]) -> Any:
            given_args, given_kwargs = pytree.tree_unflatten(given, spec)
            return pytree.tree_leaves(func(*given_args, **given_kwargs))

        read = {_address(t) for t in _tensors(leaves)}
        fresh = [x if isinstance(x, Tensor) and _address(x) not in read else None for x in made]
        self._note(_Step(run, arguments, changed), [*(leaves[i] for i in changed), *fresh])
        return out

    def _arguments(self, func: Any, leaves: list[Any], changed: tuple[int, ...]) -> list[Any] | None:
        """Return the arguments of an operation that can run again; None if it cannot, or had better not."""
        if not (_cheap(func) and all(map(_plain, _tensors(leaves)))):
            return None
        if len({id(leaves[i]) for i in changed}) < len(changed):
            return None  # it reads what it writes, as `y += y` does
        known = {_address(leaves[i]) for i in changed} <= self._values.keys()
        # A change of what is kept would take a copy of it: better to keep what it was changed to.
        return [self._window(x) if isinstance(x, Tensor) else x for x in leaves] if known else None

    def _note(self, step: _Step, results: Sequence[Tensor | None]) -> None:
        for number, t in enumerate(results):
            if t is not None:
                key, storage = _address(t), t.untyped_storage()
                value = _Value(None, step, number)
                self._values[key] = weakref.ref(storage, partial(self._end, key, value)), value

    def _end(self, key: int, value: _Value, _: Any) -> None:
        if key in self._values and self._values[key][1] is value:
            del self._values[key]

    def _window(self, t: Tensor) -> _Window:
        key = _address(t)
        found = self._values.get(key)
        value = self._kept.get(key) if found is None else found[1]
        if value is None:
            value = self._kept[key] = _Value(_flat(t.detach()))
        return _Window(value, t.size(), t.stride(), int(t.storage_offset()), t.dtype)

    def _before_change(self, t: Tensor) -> None:
        """Copy what is kept, if steps read it and it is about to be changed."""
        value = self._kept.pop(_address(t), None)
        if value is not None and value.flat is not None:
            value.flat = value.flat.clone()

    def _pack(self, t: Tensor) -> _Saved:
        found = self._values.get(_address(t)) if _plain(t) else None
        if found is None or t.numel() < _SMALL:
            return _Saved(t.detach(), t._version)
        value = found[1]
        if len(_steps(value)) > _STEPS:
            del self._values[_address(t)]
            return _Saved(t.detach(), t._version)
        return _Saved(self._window(t))

    def _unpack(self, saved: _Saved) -> Tensor:
        what = saved.what
        if isinstance(what, Tensor):
            if what._version != saved.version:  # torch itself does not look where there are hooks
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace "
                    f"operation: a tensor of shape {tuple(what.shape)}"
                )
            return what
        if self._last is None or self._last[0] is not what.value:
            self._last = None  # which gives its memory back first
            self._last = what.value, _computed(what.value)
        return what.of(self._last[1])


def _steps(value: _Value) -> list[_Step]:
    """Return the steps to a value from what is kept, each after those it needs, as far as `_STEPS` allows."""
    order: list[_Step] = []
    _visit(value, set(), order)
    return order


def _visit(value: _Value, seen: set[int], order: list[_Step]) -> None:
    # No function within `_steps`: it would refer to itself, and keep the steps until garbage is collected.
    step = value.step
    if value.flat is None and step is not None and id(step) not in seen and len(seen) <= _STEPS:
        seen.add(id(step))
        for needed in sorted(step.read, key=_depth, reverse=True):  # few results wait for others then
            _visit(needed, seen, order)
        order.append(step)


def _depth(value: _Value) -> int:
    return value.depth


@torch.no_grad()
def _computed(wanted: _Value) -> Tensor:
    """Return what a value is, computed again if it is not kept."""
    if wanted.flat is not None:
        return wanted.flat
    steps = _steps(wanted)
    left = Counter(id(value) for step in steps for value in step.read)
    results: dict[int, list[Any]] = {}  # of each step that later ones need

    def take(value: _Value) -> Tensor:
        if value.flat is not None:
            return value.flat
        flat: Tensor = results[id(value.step)][value.number]
        left[id(value)] -= 1
        if not left[id(value)] and value is not wanted:
            results[id(value.step)][value.number] = None
        return flat

    for step in steps:
        given, changed = [], []
        for i, argument in enumerate(step.arguments):
            if not isinstance(argument, _Window):
                given.append(argument)
                continue
            flat = take(argument.value)
            if i in step.changes:
                if argument.value.flat is not None or left[id(argument.value)]:
                    flat = flat.clone()  # others need what it was
                changed.append(flat)
            given.append(argument.of(flat))
        made = step.run(given)
        results[id(step)] = [*changed, *(_flat(x) if isinstance(x, Tensor) else None for x in made)]
    found: Tensor = results[id(wanted.step)][wanted.number]
    return found


def _flat(t: Tensor) -> Tensor:
    """Return all of a tensor's memory as one row."""
    size = t.untyped_storage().nbytes() // t.element_size()
    return t.as_strided((size,), (1,), 0)


def _address(t: Tensor) -> int:
    return int(t.untyped_storage()._cdata)


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [x for x in leaves if isinstance(x, Tensor)]


def _plain(t: Tensor) -> bool:
    plain = type(t) in (Tensor, torch.nn.Parameter) and t.layout is torch.strided
    return plain and not t.is_conj() and not t.is_neg() and not t.is_quantized


def _written(func: Any, args: Any, kwargs: Any, leaves: list[Any]) -> tuple[int, ...]:
    """Return which arguments an operation writes to, of those that the tape can know."""
    if not func._schema.is_mutable:
        return ()
    found: set[int] = set()
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            found |= {id(x) for x in pytree.tree_leaves(given)}
    return tuple(i for i, x in enumerate(leaves) if isinstance(x, Tensor) and id(x) in found and _plain(x))


def _cheap(func: Any) -> bool:
    if torch.Tag.nondeterministic_seeded in func.tags:
        return False
    return torch.Tag.pointwise in func.tags or func._schema.name in _CHEAP


def _dear(func: Any, args: Any, kwargs: Any, out: Any) -> bool:
    """Return whether a convolution or matrix product costs more than what it returns is worth."""
    count = flop_registry.get(func._overloadpacket)
    if count is None:
        return False
    elements = sum(x.numel() for x in _tensors(pytree.tree_leaves(out)))
    return bool(count(*args, **kwargs, out_val=out) > _FLOPS * elements)
