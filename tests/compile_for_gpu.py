"""Compiles the kernels that a few calls need for an NVIDIA H100, without one, and prints their names.

Run as a program of its own: kernels that are loaded for the interpreter cannot be compiled.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import slabnorm as sn
from slabnorm.kernels import backend


class Driver:
    """A driver of a GPU that is not there: enough to compile for it."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


# Norm, shape, dtype, channels last, activation, residual: every kernel once, and either dtype.
CALLS: list[tuple[str, tuple[int, ...], torch.dtype, bool, str | None, bool]] = [
    ("batch", (32, 2048, 7, 7), torch.float32, False, "relu", True),
    ("batch", (32, 64, 56, 56), torch.bfloat16, True, "relu", True),
    ("group", (2, 320, 48, 48), torch.bfloat16, False, "silu", False),
    ("group", (10, 320, 64, 64), torch.bfloat16, False, "silu", False),
    ("rows", (4096, 768), torch.float16, False, "gelu", True),
    ("channel", (8, 384, 14, 14), torch.float32, False, None, False),
]
PATTERNS = {
    "batch": "n c h w -> c", "group": "n (g c) h w -> n g", "rows": "n c -> n", "channel": "n c h w -> n h w"
}  # fmt: skip


def main() -> None:
    driver.set_active(Driver())
    compiled = []

    def instead(kernel: JITFunction, grid: tuple[int, ...]) -> Any:
        def compile_only(*arguments: Any, **options: Any) -> None:
            kernel.warmup(*arguments, grid=grid, **options)
            compiled.append(f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}")

        return compile_only

    JITFunction.__getitem__ = instead
    backend.forced, backend.on_gpu = "gpu", lambda x: True
    for name, shape, dtype, last, activation, residual in CALLS:
        x = torch.empty(shape, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        weight, bias = (torch.ones(shape[1], requires_grad=True) for _ in range(2))
        x.requires_grad_()
        sizes = {"g": 32} if name == "group" else {}
        other = torch.empty_like(x) if residual else None
        options = {"activation": activation, "residual": other, **sizes}
        y = sn.normalize(x, PATTERNS[name], weight=weight, bias=bias, **options)
        torch.autograd.grad(y, (x, weight, bias), torch.empty_like(y))
    x = torch.empty((32, 64, 7, 7))
    sn.BatchNorm(64)(x)
    sn.normalize(x, "n c h w -> c", mean=torch.zeros(64), var=torch.ones(64))
    print(*sorted(set(compiled)))


if __name__ == "__main__":
    main()
