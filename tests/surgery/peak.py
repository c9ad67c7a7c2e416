"""How much memory of tensors is alive at once, counted without an allocator or the system."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class _Counting(TorchDispatchMode):
    """Counts the bytes of storages that operations return, until these die."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        for t in _tensors(out):
            storage = t.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in known and key not in self.alive:
                self.now += size
                self.peak = max(self.peak, self.now)
                self.alive[key] = weakref.ref(storage, lambda _, key=key, size=size: self._end(key, size))
        return out

    def _end(self, key: int, size: int) -> None:
        del self.alive[key]
        self.now -= size


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def peak_of(step: Callable[[], Any]) -> tuple[int, int]:
    """Return the most bytes that were alive at once while a function ran, and those that are after it."""
    with _Counting() as counting:
        step()
    return counting.peak, counting.now
