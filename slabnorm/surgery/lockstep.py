"""Functions that run in turn, one at a time, each until it meets the others.

Each has a thread of its own, for the frames of its calls; a thread runs only while the caller waits for it.
So the order is fixed, and nothing is shared at one time. What torch keeps for a thread is the caller's.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.overrides import _pop_mode as pop_function_mode
from torch.overrides import _push_mode as push_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._python_dispatch import _pop_mode as pop_dispatch_mode
from torch.utils._python_dispatch import _push_mode as push_dispatch_mode

from slabnorm.errors import ModelError

_here = threading.local()
_AUTOCAST = ("cpu", "cuda")


def in_lockstep(
    functions: Sequence[Callable[[], Any]], meet: Callable[[list[Any]], Any], thread: Callable[[], Any]
) -> list[Any]:
    """Run functions in turn until each waits in `wait`, hold the meeting, go on; return what they return.

    Args:
        functions: what is run, in this order.
        meet: is given what each function waits with, None for one that has ended; each gets what it returns.
        thread: returns a context manager that each thread enters.

    Raises:
        Whatever a function or the meeting raises, once all other functions have been ended, too.
    """
    surroundings = Surroundings()
    strands = [_Strand(function, surroundings, thread) for function in functions]
    result: Any = None
    try:
        while True:
            for strand in strands:
                strand.resume(result)
            if all(strand.ended for strand in strands):
                return [strand.result for strand in strands]
            result = meet([strand.item for strand in strands])
    finally:
        for strand in strands:
            strand.stop()


def wait(item: Any) -> Any:
    """Wait, in a function that runs in lockstep, for the meeting; return its result.

    Raises:
        ModelError: this thread is none that runs in lockstep.
    """
    strand: _Strand | None = getattr(_here, "strand", None)
    if strand is None:
        raise ModelError(
            "A norm of a virtual batch runs in a thread of the model's own",
            fix="let the model run in the thread that calls it",
        )
    return strand.wait(item)


class _Stopped(BaseException):
    """Ends a function whose meeting will not be held; no Exception, which a function may catch."""


class _Strand:
    """A function in a thread that runs only while `resume` waits for it."""

    def __init__(
        self, function: Callable[[], Any], surroundings: Surroundings, thread: Callable[[], Any]
    ) -> None:
        self.item: Any = None
        self.result: Any = None
        self.ended = self.stopped = False
        self._received: Any = None
        self._error: BaseException | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._main, function, surroundings, thread), daemon=True
        )

    def resume(self, received: Any) -> None:
        """Let it run until it waits or has ended; raise what it raised."""
        if self.ended:
            return
        # A cast that parts share would add up their gradients in half precision.
        torch.clear_autocast_cache()
        self._received = received
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._back.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self, item: Any) -> Any:
        if self.stopped:
            raise _Stopped
        self.item = item
        self._back.release()
        self._go.acquire()
        if self.stopped:
            raise _Stopped
        received, self._received = self._received, None
        return received

    def stop(self) -> None:
        """End it, also if it runs because an interrupt has ended `resume`."""
        self.stopped = True
        self._go.release()
        if self._thread.ident is not None:
            self._thread.join()

    def _main(
        self, function: Callable[[], Any], surroundings: Surroundings, thread: Callable[[], Any]
    ) -> None:
        _here.strand = self
        try:
            with surroundings.entered(), thread():
                self.result = function()
        except _Stopped:
            pass
        except BaseException as error:
            self._error = error
        self.item, self.ended = None, True
        self._back.release()


class Surroundings:
    """What torch keeps for a thread: modes, devices and hooks, as they are where this is made."""

    def __init__(self) -> None:
        self.gradients = torch.is_grad_enabled()
        self.autocast = {
            kind: torch.get_autocast_dtype(kind) for kind in _AUTOCAST if torch.is_autocast_enabled(kind)
        }
        self.caches = torch.is_autocast_cache_enabled()
        self.function_modes = _get_current_function_mode_stack()
        self.dispatch_modes = _get_current_dispatch_mode_stack()
        self.hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        self.stream = torch.cuda.current_stream() if on_gpu else None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make another thread's the same."""
        with ExitStack() as stack:
            if self.stream is not None:
                stack.enter_context(torch.cuda.device(self.stream.device))
                stack.enter_context(torch.cuda.stream(self.stream))
            stack.enter_context(torch.set_grad_enabled(self.gradients))
            for kind, dtype in self.autocast.items():
                stack.enter_context(torch.autocast(kind, dtype, cache_enabled=self.caches))
            if self.hooks is not None:
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(*self.hooks))
            for function_mode in self.function_modes:
                push_function_mode(function_mode)
                stack.callback(pop_function_mode)
            for dispatch_mode in self.dispatch_modes:
                push_dispatch_mode(dispatch_mode)
                stack.callback(pop_dispatch_mode)
            yield
