"""Compiled kernels on disk: what is damaged, of another kernel or not ours never runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numba.core.registry import cpu_target

import slabnorm
from slabnorm.errors import KernelWarning
from slabnorm.kernels.cpu import compiled, kernel_cache
from slabnorm.kernels.cpu.kernel_cache import KernelCache

pytestmark = pytest.mark.skipif(os.name == "nt", reason="modes and owners are POSIX's")
DTYPES = torch.float32, torch.float64


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a folder of kernels of a test's own, as in a process that has warned of nothing."""
    monkeypatch.setenv("SLABNORM_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(kernel_cache, "_told", set())
    return tmp_path / "kernels"


def compile_use(dtype: torch.dtype = torch.float32) -> None:
    """Compile a small kernel, or take it from disk, as a new process does; check what it computes."""
    use = compiled.use.__wrapped__(dtype)
    mean, var, stats = (
        torch.tensor([1.0, 2.0], dtype=dtype),
        torch.tensor([4.0, 0.25], dtype=dtype),
        np.ones((5, 2)),
    )
    use(mean.data_ptr(), var.data_ptr(), stats, 0.0)
    assert stats[2:].tolist() == [[1, 2], [0.5, 2], [0, 0]]


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def loads(path: Path) -> bool:
    """Return whether the kernel `compile_use` asks for is taken from disk."""
    kept = KernelCache("")
    kept.key = bytes.fromhex(path.stem)
    return kept.load_overload(None, cpu_target.target_context) is not None


def test_a_kernel_is_found_again(folder: Path) -> None:
    compile_use()
    path = only_file(folder)
    before = path.stat()
    assert loads(path)
    compile_use()
    assert path.stat().st_mtime_ns == before.st_mtime_ns  # not written again
    assert (folder.stat().st_mode & 0o777, before.st_mode & 0o777) == (0o700, 0o600)


def test_a_flipped_bit_is_found_wherever_it_is(folder: Path) -> None:
    compile_use()
    path = only_file(folder)
    whole = path.read_bytes()
    for at in [*range(100), *range(100, len(whole), 211)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        assert not loads(path), f"byte {at}"
    compile_use()
    assert path.read_bytes() != whole  # compiled anew, and whole
    assert loads(path)


@pytest.mark.parametrize("length", [0, 5, 60, 5000])
def test_a_torn_kernel_is_compiled_again(folder: Path, length: int) -> None:
    compile_use()
    path = only_file(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    assert not loads(path)
    path.write_bytes(whole + b"\0")
    assert not loads(path)
    path.write_bytes(whole[:length])
    compile_use()
    assert loads(path)


def test_exchanged_kernels_are_compiled_again(folder: Path) -> None:
    for dtype in DTYPES:
        compile_use(dtype)
    a, b = folder.iterdir()
    contents = a.read_bytes(), b.read_bytes()
    a.write_bytes(contents[1])
    b.write_bytes(contents[0])
    assert not loads(a)
    assert not loads(b)
    for dtype in DTYPES:
        compile_use(dtype)  # which checks what it computes
    assert loads(a)
    assert loads(b)


OTHER = """
import numpy as np, torch
from slabnorm.kernels.cpu import compiled
one, stats = torch.ones(2), np.ones((5, 2))
compiled.use(torch.float32)(one.data_ptr(), one.data_ptr(), stats, 0.0)
print(compiled.__file__, *stats[3])
"""


def test_kernels_of_other_sources_have_files_of_their_own(folder: Path, tmp_path: Path) -> None:
    """Changed sources whose kernel could not be written, and once it could: each computes what it says."""
    copy = tmp_path / "changed"
    shutil.copytree(
        Path(slabnorm.__file__).parent, copy / "slabnorm", ignore=shutil.ignore_patterns("__pycache__")
    )
    source = copy / "slabnorm" / "kernels" / "cpu" / "running_stats.py"
    source.write_text(source.read_text().replace("= 1.0 / np.sqrt", "= 7.0 / np.sqrt"))

    def run(before: str = "") -> str:
        # -B: Python would leave its own compiled modules torn under the limit.
        command = [sys.executable, "-B", "-W", "ignore", "-c", before + OTHER]
        return subprocess.run(command, cwd=copy, capture_output=True, text=True, check=True).stdout

    compile_use()
    ours = only_file(folder)
    fail = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    assert run(fail).split() == [str(copy / "slabnorm" / "kernels" / "cpu" / "compiled.py"), "7.0", "7.0"]
    assert list(folder.iterdir()) == [ours]
    assert run().split()[1:] == ["7.0", "7.0"]
    assert len(list(folder.iterdir())) == 2
    compile_use()
    assert loads(ours)


def test_sources_are_those_of_a_package_or_of_some_of_its_modules(tmp_path, monkeypatch) -> None:
    package = tmp_path / "kernels_of_a_test"
    package.mkdir()
    for name in ("__init__", "norms", "compiler"):
        (package / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = lambda: [kernel_cache.digest_sources(package.name, *of) for of in ((), ("compiler",))]  # noqa: E731
    before = digests()
    (package / "norms.py").write_text("x = 1")
    changed = digests()
    assert changed[0] != before[0]
    assert changed[1] == before[1]
    (package / "compiler.py").write_text("x = 1")
    assert digests()[1] != before[1]
    names = {KernelCache("sum", sources).name for sources in ("", *before)}
    assert len(names) == 3


@contextmanager
def small_files_only() -> Iterator[None]:
    import resource

    before, writes = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # or modules are left torn
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_kernel_that_cannot_be_written_leaves_nothing(folder: Path) -> None:
    with small_files_only():
        with pytest.warns(KernelWarning, match="File too large"):
            compile_use()
        compile_use()  # one warning is enough
    assert list(folder.iterdir()) == []
    compile_use()
    assert loads(only_file(folder))


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_to_is_refused(folder: Path, mode: int) -> None:
    compile_use()
    path = only_file(folder)
    folder.chmod(mode)
    with pytest.warns(KernelWarning, match=r"others may write to it\n.*chmod 700"):
        assert not loads(path)
    path.unlink()
    compile_use()
    assert list(folder.iterdir()) == []


def test_a_folder_or_kernel_of_another_user_is_refused(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    compile_use()
    path = only_file(folder)
    os.chown(path, 12345, -1)
    assert not loads(path)
    compile_use()
    assert path.stat().st_uid == 0  # written again
    os.chown(folder, 12345, -1)
    with pytest.warns(KernelWarning, match="it belongs to another user"):
        assert not loads(path)


def test_a_kernel_that_others_may_write_to_is_compiled_again(folder: Path) -> None:
    compile_use()
    path = only_file(folder)
    path.chmod(0o666)
    assert not loads(path)
    compile_use()
    assert path.stat().st_mode & 0o777 == 0o600
    assert loads(path)


def test_a_folder_that_cannot_be_made_costs_the_file_alone(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.warns(KernelWarning, match="set SLABNORM_CACHE_DIR"):
        compile_use()
    assert folder.read_text() == "a file"


def test_a_folder_behind_a_symbolic_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "there")
    compile_use()
    assert loads(only_file(tmp_path / "there"))
    (tmp_path / "there").chmod(0o777)
    with pytest.warns(KernelWarning, match="others may write to it"):
        compile_use()


@pytest.mark.parametrize("kind", ["text", "link", "pipe", "folder"])
def test_what_is_not_ours_under_a_kernel_s_name_is_left_alone(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    compile_use()
    path = only_file(folder)
    whole = path.read_bytes()
    path.unlink()
    (tmp_path / "elsewhere").write_bytes(whole)
    {
        "text": lambda: path.write_text("a poem"),
        "link": lambda: path.symlink_to(tmp_path / "elsewhere"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[kind]()
    before = path.lstat()
    assert not loads(path)
    with pytest.warns(KernelWarning, match="cannot be read as a kernel"):
        compile_use()
    after = path.lstat()
    assert (before.st_ino, before.st_mtime_ns, before.st_size) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_size,
    )
    assert (tmp_path / "elsewhere").read_bytes() == whole


def test_kernels_that_nobody_uses_go(folder: Path) -> None:
    compile_use()
    used = only_file(folder)
    old = time.time() - 40 * 86400
    unused, foreign, other = (
        folder / name for name in ("0" * 64 + ".kernel", "1" * 64 + ".kernel", "notes.txt")
    )
    unused.write_bytes(used.read_bytes())
    foreign.write_text("a poem")
    other.write_text("a list")
    for path in (used, unused, foreign, other):
        os.utime(path, (old, old))
    compile_use()  # used now, after 40 days
    compile_use(torch.float64)  # written: what nobody uses goes
    assert {used, foreign, other} < set(folder.iterdir())
    assert not unused.exists()


def test_where_kernels_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the folder of Linux")
    monkeypatch.setattr(kernel_cache, "_told", set())
    monkeypatch.delenv("SLABNORM_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernel_cache.folder() == str(tmp_path / "xdg" / "slabnorm")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    assert kernel_cache.folder() == str(tmp_path / "home" / ".cache" / "slabnorm")
    monkeypatch.setenv("SLABNORM_CACHE_DIR", "~/mine")
    assert kernel_cache.folder() == str(tmp_path / "home" / "mine")


def test_a_terminal_is_told_once_that_kernels_are_compiled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pty

    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)

    def shown() -> str:
        try:
            return os.read(ours, 4096).decode()
        except BlockingIOError:
            return ""

    with open(theirs, "w") as terminal:
        monkeypatch.setattr(kernel_cache, "_announced", False)
        compile_use()  # stderr is no terminal
        monkeypatch.setattr(sys, "stderr", terminal)
        compile_use()  # nothing to compile
        assert shown() == ""
        compile_use(torch.float64)
        terminal.flush()
        said = shown()
        assert "compiling kernels" in said
        assert f"kept in {folder}" in said
        only_file_of_32 = min(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        only_file_of_32.unlink()
        compile_use()
        terminal.flush()
        assert shown() == ""
    os.close(ours)


def test_settings_changed_in_a_running_process_have_files_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_use()
    ours = only_file(folder)
    with monkeypatch.context() as changed:
        changed.setenv("NUMBA_OPT", "1")
        compile_use()
        assert len(list(folder.iterdir())) == 2
    ours.unlink()
    compile_use()
    assert loads(ours)


WITHOUT_JIT = """
import numba, numpy as np, torch, slabnorm as sn
assert numba.config.DISABLE_JIT
x = torch.arange(24.0).reshape(4, 6)
y = sn.normalize(x, "n c -> n")
norm = sn.fit(np.arange(24.0).reshape(4, 6), "zscore", split="train")
mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
print(torch.allclose(y, (x - mean) * (var + 1e-5).rsqrt()),
      norm.moments.mean.tolist() == [9, 10, 11, 12, 13, 14],
      type(numba.njit(lambda: 1)).__name__)
"""


def test_numba_disable_jit_disables_no_kernel() -> None:
    """A user's own functions stay plain Python."""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-W", "error", "-c", WITHOUT_JIT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "function"], done.stderr
