"""Large results in huge pages: who asks for them, for which memory, and what they change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import slabnorm as sn
from slabnorm.kernels import huge_pages

MODES = {
    "always": "[always] madvise never\n",
    "madvise": "always [madvise] never\n",
    "never": "always madvise [never]\n",
}
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _ask_anew() -> Iterator[None]:
    asked = huge_pages._advise
    asked.cache_clear()
    yield
    asked.cache_clear()


@pytest.mark.parametrize(
    ("mode", "setting", "asks"),
    [
        ("madvise", None, True),
        ("madvise", "1", True),
        ("madvise", "0", False),
        ("always", None, False),
        ("never", None, False),
        ("none", None, False),  # a system without the file
    ],
)
def test_who_asks(mode: str, setting: str | None, asks: bool, tmp_path: Path, monkeypatch) -> None:
    enabled = tmp_path / "enabled"
    if mode in MODES:
        enabled.write_text(MODES[mode])
    monkeypatch.setattr(huge_pages, "_ENABLED", enabled)
    monkeypatch.delenv("SLABNORM_HUGE_PAGES", raising=False)
    if setting is not None:
        monkeypatch.setenv("SLABNORM_HUGE_PAGES", setting)
    assert (huge_pages._advise() is not None) == asks


@pytest.fixture
def advised(monkeypatch) -> list[tuple[int, int]]:
    """What is asked for: start and size."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(huge_pages, "_advise", lambda: lambda start, size, _: found.append((start, size)))
    return found


def within(advised: list[tuple[int, int]], y: torch.Tensor) -> bool:
    """Whether all whole huge pages of a tensor were asked for at some time."""
    start = -(-y.data_ptr() // (2 * MIB)) * 2 * MIB
    return (start, (y.data_ptr() + y.nbytes) // (2 * MIB) * 2 * MIB - start) in advised


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_outputs_and_gradients(advised: list[tuple[int, int]], backend: str) -> None:
    """Forward and backward, the gradient of a residual, too; and nothing but whole pages."""
    x, residual = (torch.randn(2048, 2048, requires_grad=True) for _ in range(2))
    with sn.kernels.using(backend):
        y = sn.normalize(x, "n c -> n", residual=residual, activation="relu")
        assert within(advised, y)
        gradients = torch.autograd.grad(y, (x, residual), torch.ones_like(y))
    assert all(within(advised, gradient) for gradient in gradients)
    for start, size in advised:
        assert start % (2 * MIB) == size % (2 * MIB) == 0
        assert size > 0


def test_inputs(advised: list[tuple[int, int]]) -> None:
    norm = sn.fit(torch.randn(100, 64), split="train")
    for x in (torch.randn(40000, 64), torch.randint(0, 255, (40000, 64), dtype=torch.uint8)):
        y = norm(x)
        assert within(advised, y)
        assert within(advised, norm.inverse(y))
        advised.clear()
        wide = norm.double()(x.double())
        norm.float()
        assert (y - wide).abs().max() <= 1e-6 * wide.abs().clamp(min=1).max()
    x = torch.randn(40000, 64, requires_grad=True)
    norm(x).sum().backward()
    assert torch.allclose(x.grad, (1 / norm.scale).float().expand(x.shape))


def test_small_results_are_left_alone(advised: list[tuple[int, int]]) -> None:
    sn.normalize(torch.randn(64, 2048), "n c -> n")
    assert not advised


def test_the_system_has_heard() -> None:
    """In /proc/self/smaps, which has the flag `hg` for a mapping that was advised, and for no other."""
    y = sn.normalize(torch.randn(4096, 2048), "n c -> n")
    middle = y.data_ptr() + y.nbytes // 2
    for entry in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", entry)
        if found and int(found[1], 16) <= middle < int(found[2], 16):
            assert bool(re.search(r"VmFlags:.*\bhg\b", entry)) == (huge_pages._advise() is not None)
            return
    pytest.fail("the output lies in no mapping")
