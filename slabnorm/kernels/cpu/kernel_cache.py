"""Kernels compiled, and kept on disk: a file for each, named by all that made it, read only if it is whole.

Numba's own cache writes an index first and the kernel afterwards. Where that failed, on a full disk, the
index named the file of an older kernel, which then ran in every process: ReLU where there was to be none. A
flipped bit went unnoticed, too: gradients off by 5.6e9, or a segmentation fault.

    name      SHA-256 of the sources, what a kernel is compiled for, options, versions, processor: the key
    content   MAGIC, the key, SHA-256 of all the rest, and a pickle of what Numba has compiled

The key is in the content as well, so that a file under another's name is noticed. A pickle can do anything
when it is read: folder and file belong to the user, and nobody else may write to them.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any
from warnings import warn

import llvmlite.binding
import numba
import numpy as np
from numba.core import config, sigutils
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.serialize import dumps

from slabnorm.errors import KernelWarning
from slabnorm.kernels.cpu.llvm import compiling

MAGIC = b"slabnorm kernel 1\n"
_HEAD = len(MAGIC) + 32  # bytes of magic and key
# Of kernels, and of files while they are written.
_NAMES = re.compile(r"[0-9a-f]{64}\.kernel|\.[0-9a-f]{64}\.[0-9a-f]{12}")
_DAY = 86400
_KEPT = 30 * _DAY  # seconds after its last use that a kernel is kept: those of old sources go
# Settings of Numba that change nothing in what it compiles. CACHE_DIR is that of its own cache.
_UNRELATED = re.compile(
    r"CUDA|DISABLE_CUDA|FORCE_CUDA|CACHE_|DUMP_|COLOR|DISABLE_JIT|THREADING|NUMBA_|SHOW_|FULL_"
)

Build = Callable[..., Callable[..., Any]]  # makes a function that is to be compiled
_OPTIONS = {"error_model": "numpy"}
_alive: list[Any] = []  # Numba frees a kernel that nobody holds, and its address with it


def compile_function(
    signature: tuple[Any, ...], build: Build, *of: Any, sources: str = ""
) -> Callable[..., Any]:
    """Compile a function, or take it from disk; return what calls it without looking at types again.

    Args:
        signature: Numba's types of its arguments.
        build: makes the function as plain Python.
        of: the arguments of `build`: what the function is compiled for.
        sources: the digest of the sources that it is made of; by default that of this folder.
    """
    options = _OPTIONS | {"nogil": True}
    function, kept = _function(signature, options, build, of, sources)
    with compiling():
        dispatcher = numba.njit(**options)(function)
        dispatcher._cache = kept
        return dispatcher.compile(signature)


def compile_address(signature: Any, build: Build, *of: Any) -> int:
    """Compile a function to be called from C, or take it from disk; return its address."""
    function, kept = _function(signature, _OPTIONS, build, of)
    with compiling():
        compiled: Any = CFunc(function, sigutils.normalize_signature(signature), locals={}, options=_OPTIONS)
        compiled._cache = kept
        compiled.compile()
    _alive.append(compiled)
    return int(compiled.address)


def flag(value: bool) -> int | None:
    """Return what a function is compiled for, in the place of a bool.

    Numba leaves out, when it compiles, what stands under `if flag is None`; of numbers it knows the type.
    """
    return 1 if value else None


def _function(
    signature: Any, options: dict[str, Any], build: Build, of: tuple[Any, ...], sources: str = ""
) -> tuple[Callable[..., Any], KernelCache]:
    """Return a function as plain Python, and where it is kept: by all that makes it what it is."""
    kept = KernelCache(repr((build.__module__, build.__qualname__, of, signature, options)), sources)
    function = build(*of)
    # Numba makes a symbol of a function's name and of a number that each process counts anew: the symbols of
    # one that is read from disk, and of another that is compiled here, would be the same.
    function.__qualname__ += f"_{kept.key.hex()[:16]}"
    return function, kept


class KernelCache:
    """What is kept of one kernel, as Numba asks for it.

    Args:
        name: what the kernel is, and what it is compiled for.
        sources: the digest of its sources; by default that of this folder.
    """

    def __init__(self, name: str, sources: str = "") -> None:
        parts = (name, sources or _SOURCES, _settings(), _surroundings())
        self.key = hashlib.sha256("\n".join(parts).encode()).digest()

    @property
    def name(self) -> str:
        """The name of the kernel's file."""
        return f"{self.key.hex()}.kernel"

    def load_overload(self, signature: Any, target_context: Any) -> CompileResult | None:
        """Return the kernel from disk; None if there is none that can be trusted."""
        target_context.refresh()
        kept = folder()
        pickled = None if kept is None else self._read(os.path.join(kept, self.name))
        if pickled is not None:
            # What is whole but cannot be rebuilt is compiled anew, and written over.
            with suppress(Exception):
                return CompileResult._rebuild(target_context, *pickle.loads(pickled))
        _announce(kept)
        return None

    def save_overload(self, signature: Any, compiled: CompileResult) -> None:
        """Write the kernel to disk, whole or not at all."""
        kept = folder()
        if kept is None or compiled.library.has_dynamic_globals:  # addresses, which differ in every process
            return
        path = os.path.join(kept, self.name)
        try:
            if os.path.lexists(path) and not _is_ours(path):
                _tell(f"{path}: cannot be read as a kernel of slabnorm's, and is left as it is", "remove it")
                return
            pickled = dumps(compiled._reduce())
            head = MAGIC + self.key
            _write(path, head + hashlib.sha256(head + pickled).digest() + pickled)
            _sweep(kept)
        except Exception as error:  # a full disk, say: the kernel has been compiled all the same
            reason = getattr(error, "strerror", None) or error
            _tell(f"{kept}: {reason}", "free space, or set SLABNORM_CACHE_DIR to a folder you may write to")

    def _read(self, path: str) -> bytes | None:
        """Return the pickle in a file; None unless all of it is as it was written, and under its own name."""
        try:
            with open(path, "rb", opener=_open_for_reading) as file:
                status = os.fstat(file.fileno())
                if _unsafe(status) or not stat.S_ISREG(status.st_mode):
                    return None
                head = file.read(_HEAD)
                if head != MAGIC + self.key:
                    return None
                digest, pickled = file.read(32), file.read()
                if time.time() - status.st_mtime > _DAY:
                    with suppress(OSError):
                        os.utime(path)
        except OSError:
            return None
        return pickled if hashlib.sha256(head + pickled).digest() == digest else None


def folder() -> str | None:
    """Return the folder of compiled kernels, made if need be; None, with a warning, if it is not safe."""
    path, fix = _path(), "set SLABNORM_CACHE_DIR to a folder that you may write to"
    try:
        if not os.path.isabs(path):
            raise OSError(None, "no home folder")
        if not _SOURCES:
            raise OSError(
                None, "the kernels' sources, which tell one version from another, are not installed"
            )
        os.makedirs(path, mode=0o700, exist_ok=True)
        unsafe = _unsafe(os.stat(path))
    except OSError as error:
        _tell(f"{path}: {error.strerror}", fix)
        return None
    if unsafe:
        _tell(f"{path}: {unsafe}", f"chmod 700 {path!r} if it is yours, or {fix}")
        return None
    return path


def _path() -> str:
    given = os.environ.get("SLABNORM_CACHE_DIR")
    if given:
        return os.path.abspath(os.path.expanduser(given))
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or r"~\AppData\Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(base):  # which is to be ignored, says the XDG specification
            base = "~/.cache"
    return os.path.join(os.path.expanduser(base), "slabnorm")


def _unsafe(status: os.stat_result) -> str | None:
    """Return why a file or folder cannot be trusted; None if the user alone may write to it."""
    if os.name == "nt":  # where a user's folders are their own, and modes say nothing
        return None
    if status.st_uid != os.geteuid():
        return "it belongs to another user"
    return "others may write to it" if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


def _open_for_reading(path: str, flags: int) -> int:
    # No symbolic link, and no waiting for what somebody may write into a pipe.
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _is_ours(path: str) -> bool:
    """Return whether a file was written by slabnorm, however much of it is left."""
    try:
        with open(path, "rb", opener=_open_for_reading) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            return regular and MAGIC.startswith(file.read(len(MAGIC)))
    except OSError:
        return False


def _write(path: str, content: bytes) -> None:
    """Write a file beside `path`, and move it there when all of it is on disk."""
    place, name = os.path.split(path)
    beside = os.path.join(place, f".{name.removesuffix('.kernel')}.{secrets.token_hex(6)}")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    descriptor = os.open(beside, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def _sweep(kept: str) -> None:
    """Remove our files that nobody has used for 30 days."""
    before = time.time() - _KEPT
    with os.scandir(kept) as entries:
        for entry in entries:
            if _NAMES.fullmatch(entry.name):
                with suppress(OSError):  # another process was faster
                    if entry.stat(follow_symlinks=False).st_mtime < before and _is_ours(entry.path):
                        os.unlink(entry.path)


def digest_sources(package: str, *modules: str) -> str:
    """Return a digest of a package's sources, all or those of some modules; nothing if there are none.

    Called when kernels are imported, and not when the first is compiled: an upgrade under a running process
    must not give its old kernels the new ones' names.
    """
    digest = hashlib.sha256()
    found = [file for file in files(package).iterdir() if file.name.endswith((".py", ".pyc"))]
    found = [file for file in found if not modules or file.name.partition(".")[0] in modules]
    for file in sorted(found, key=lambda file: file.name):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest() if found else ""


def joined_digests(*digests: str) -> str:
    """Return one digest for several; nothing if one of them is nothing."""
    return "".join(digests) if all(digests) else ""


@cache
def _surroundings() -> str:
    """Return what all kernels of this process have in common: versions, processor."""
    versions = sys.version, numba.__version__, llvmlite.__version__, np.__version__
    processor = cpu_target.target_context.codegen().magic_tuple()
    return repr((versions, llvmlite.binding.llvm_version_info, processor))


def _settings() -> str:
    """Return Numba's settings, as they are now: checked bounds, levels of optimisation, ..."""
    config.reload_config()  # the compiler does, and a kernel is not to be kept under the settings before
    given = ((name, value) for name, value in vars(config).items() if name.isupper())
    return repr(sorted((name, repr(value)) for name, value in given if not _UNRELATED.match(name)))


def _announce(kept: str | None) -> None:
    """Say once, on a terminal, what is going to take so long."""
    global _announced
    with suppress(AttributeError, ValueError, OSError):  # no stderr, or a closed one
        if _announced or not sys.stderr.isatty():
            return
        _announced = True
        where = f"kept in {kept} for the next time" if kept else "for this process alone"
        print(f"slabnorm: compiling kernels, some seconds for each on first use, {where}", file=sys.stderr)


def _tell(got: str, fix: str) -> None:
    """Warn once that kernels are not kept."""
    if got not in _told:
        _told.add(got)
        warn(
            "a compiled kernel is not kept on disk: each process compiles it anew, which takes seconds\n"
            f"  got: {got}\n  fix: {fix}",
            KernelWarning,
            stacklevel=2,
        )


_SOURCES = joined_digests(
    digest_sources("slabnorm.kernels.cpu"), digest_sources("slabnorm.kernels", "layout")
)
_announced = False
_told: set[str] = set()
