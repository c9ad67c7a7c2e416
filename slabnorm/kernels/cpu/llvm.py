"""Numba's compiler as kernels use it, and memory for what it compiles: pointers, stores past the caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import config
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic
from numba.np import numpy_support
from numba.np.arrayobj import make_array

# Numba's compiler for kernels: quicker than as it comes, and whatever NUMBA_DISABLE_JIT says.
#
# The setting makes a user's own functions plain Python, to debug them or to see what of them runs. Kernels
# work on addresses, which plain Python cannot follow: they are compiled all the same.


@contextmanager
def compiling() -> Iterator[None]:
    """Let Numba compile within the block, on this thread."""
    config.reload_config()  # as the compiler itself does: not within the block, where it could undo this
    if not config.DISABLE_JIT:
        yield
        return
    with global_compiler_lock:
        before, config.DISABLE_JIT = config.DISABLE_JIT, 0
        try:
            yield
        finally:
            config.DISABLE_JIT = before


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator: `numba.njit` with these options."""

    def decorate(function: Callable[..., Any]) -> Any:
        with compiling():
            return numba.njit(**options)(function)

    return decorate


class _LinkedLibrary(JITCodeLibrary):
    """A function that is optimised in those that call it, and has no machine code of its own."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, name: str, environment: Any) -> None:
        pass  # an environment belongs to machine code


class InnerCompiler(CompilerBase):
    """Numba's compiler for what only kernels call.

    Numba optimises every function and makes machine code of it, and does so again in all that call it. Seven
    kernels take 50.5 s to compile so, 37.2 without the machine code, and 28.0 where only the kernel is
    optimised. Bits stayed what they were in all of 612 results but 9 in float64, and speeds within 4%, the
    noise.
    """

    def define_pipelines(self) -> list[Any]:
        state = self.state
        state.library = _LinkedLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        return [DefaultPassBuilder.define_nopython_pipeline(state)]


# Memory, compiled by Numba: pointers, and stores that go past the caches.
#
# Kernels see tensors as pointers, not as arrays of NumPy: an array passed to a function or cut into slices
# costs as much as a short run of it.
#
# Outputs never share memory with inputs. Loads and stores say so to LLVM, which would else compare the
# addresses of every pair of them before each loop, or not vectorise it at all. Memory that a kernel fills and
# then reads, such as coefficients, is filled as an array, whose stores promise nothing.

LINE = 64  # bytes of a cache line
STREAM = 4 << 20  # bytes of an output that leave the caches before anyone can read them
# What only kernels call needs no entry from Python or C. A kernel is made of ninety functions.
_NO_ENTRIES = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
INNER: dict[str, Any] = {"error_model": "numpy", "pipeline_class": InnerCompiler, **_NO_ENTRIES}
overload = partial(extending.overload, jit_options=INNER)


def _scopes(module):
    domain = module.add_metadata(["slabnorm"])
    names = "read", "written", "kept"
    return [module.add_metadata([module.add_metadata([name, domain])]) for name in names]


@intrinsic
def pointer(context, address, dtype):
    """Turn the address of memory into a pointer to elements of a dtype, a compile-time constant."""
    result = types.CPointer(dtype.dtype)

    def build(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(result))

    return result(types.int64, dtype), build


@intrinsic
def record(context, address, dtype):
    """Turn an address into a record of a structured dtype, a compile-time constant."""

    def build(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return dtype.dtype(types.int64, dtype), build


@intrinsic
def ahead(context, u, n):
    """Return memory from element n on, also within a tuple; a number, or None, as it is."""

    def moved(builder, kind, value, n):
        if isinstance(kind, types.CPointer):
            return builder.gep(value, [n])
        if isinstance(kind, types.BaseTuple):
            for i, inner in enumerate(kind):
                here = moved(builder, inner, builder.extract_value(value, i), n)
                value = builder.insert_value(value, here, i)
        return value

    def build(context, builder, signature, args):
        return moved(builder, signature.return_type, *args)

    return u(u, types.int64), build


@intrinsic
def address_of(context, p):
    """Return the address that a pointer holds."""

    def build(context, builder, signature, args):
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(p), build


def _read(builder, args, scope, apart):
    """Load an element of one scope, promised to be apart from another."""
    value = builder.load(builder.gep(args[0], [args[1]], inbounds=True))
    value.set_metadata("alias.scope", scope)
    value.set_metadata("noalias", apart)
    return value


def _write(context, builder, args, scope, apart):
    """Store an element of one scope, promised to be apart from another."""
    stored = builder.store(args[2], builder.gep(args[0], [args[1]], inbounds=True))
    stored.set_metadata("alias.scope", scope)
    stored.set_metadata("noalias", apart)
    return context.get_dummy_value()


@intrinsic
def read(context, p, i):
    """Return element i of an input."""

    def build(context, builder, signature, args):
        read, written, _ = _scopes(builder.module)
        return _read(builder, args, read, written)

    return p.dtype(p, types.int64), build


@intrinsic
def write(context, p, i, value):
    """Write element i of an output."""

    def build(context, builder, signature, args):
        read, written, _ = _scopes(builder.module)
        return _write(context, builder, args, written, read)

    return types.none(p, types.int64, p.dtype), build


@intrinsic
def keep_at(context, p, i, value):
    """Write element i of what one sweep keeps for the next, whose `kept_at` reads it."""

    def build(context, builder, signature, args):
        read, _, kept = _scopes(builder.module)
        return _write(context, builder, args, kept, read)

    return types.none(p, types.int64, p.dtype), build


@intrinsic
def kept_at(context, p, i):
    """Return element i of what `keep_at` has written.

    It may be overwritten by the output, element by element: no other element depends on that, and so the two
    are promised to be apart. Else LLVM would compare their addresses, and not vectorise.
    """

    def build(context, builder, signature, args):
        _, written, kept = _scopes(builder.module)
        return _read(builder, args, kept, written)

    return p.dtype(p, types.int64), build


@intrinsic
def read_back(context, p, i):
    """Return element i of what was written here."""

    def build(context, builder, signature, args):
        return builder.load(builder.gep(args[0], [args[1]], inbounds=True))

    return p.dtype(p, types.int64), build


@intrinsic
def _stream_line(context, out, source):
    # One line past the caches: LLVM makes it the widest such stores that the processor has.
    def build(context, builder, signature, args):
        size = signature.args[0].dtype.bitwidth // 8
        lanes = LINE // size
        vector = ir.VectorType(context.get_value_type(signature.args[0].dtype), lanes)
        source, out = (builder.bitcast(arg, vector.as_pointer()) for arg in (args[1], args[0]))
        stored = builder.store(builder.load(source, align=size), out, align=LINE)
        one = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        stored.set_metadata("nontemporal", one)
        return context.get_dummy_value()

    return types.none(out, source), build


@intrinsic
def fence(context):
    """Order streamed stores before what other threads do next."""

    def build(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), build


def data(values: Any, i: Any) -> Any:
    """Return the memory of an array from element i on, or None where there is none.

    The caller's caller must hold the array: Numba frees it after its last use as an array.
    """


def room(u: Any, n: Any) -> Any:
    """Return an array for n elements of the memory's dtype, or None where there is none."""


def memory(given: Any, address: Any, dtype: Any) -> Any:
    """Return the memory at an address, or None where `given` is None."""


def to_line(out: Any, most: Any) -> Any:
    """Return how many elements, at most `most`, reach from memory to the start of a line."""


def stream(out: Any, source: Any, n: Any) -> Any:
    """Write n elements to memory past the caches; nothing where there is none."""


@intrinsic
def _data(context, values):
    def build(context, builder, signature, args):
        return make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(values.dtype)(values), build


@overload(data)
def _data_of(values, i):
    if isinstance(values, types.NoneType):
        return lambda values, i: None
    return lambda values, i: ahead(_data(values), i)


@overload(room)
def _room(u, n):
    if isinstance(u, types.NoneType):
        return lambda u, n: None
    dtype = numpy_support.as_dtype(u.dtype).type
    return lambda u, n: np.empty(n, dtype=dtype)


@overload(memory)
def _memory(given, address, dtype):
    if isinstance(given, types.NoneType):
        return lambda given, address, dtype: None
    return lambda given, address, dtype: pointer(address, dtype)


@overload(to_line)
def _to_line(out, most):
    size = out.dtype.bitwidth // 8
    return lambda out, most: most - address_of(out) % LINE // size


@overload(stream)
def _stream(out, source, n):
    if isinstance(out, types.NoneType):
        return lambda out, source, n: None
    size = out.dtype.bitwidth // 8
    lanes = LINE // size

    def lines(out, source, n):
        start = min(n, -(address_of(out) // size) % lanes)
        for i in range(start):
            write(out, i, read_back(source, i))
        whole = start + (n - start) // lanes * lanes
        for i in range(start, whole, lanes):
            _stream_line(ahead(out, i), ahead(source, i))
        for i in range(whole, n):
            write(out, i, read_back(source, i))

    return lines
