"""The kernels and the one table that says which of them runs a call.

Every backend is a module with the same five functions over a Slab:

    takes(x, slab)                                                 whether it can run this call
    statistics(x, slab)                                            -> mean, low, m2
    apply(x, slab, stats, weight, bias, dtype)                     -> y
    sums(dy, x, slab, stats, weight)                               -> s1, s2, dweight, dbias
    gradient(dy, x, slab, stats, weight, c1, c2)                   -> dx

`statistics` is reduce and merge; statistics of several processes merge between it and `apply`, and
the slab sums s1 and s2 between `sums` and `gradient`. All small tensors are float64 and gathered
(see slab.py).

| backend | runs |
|---|---|
| cpu   | float32 on the CPU, any dense memory order that lies in cells (Cells in slab.py) |
| eager | everything else: plain torch in float64, any device, dtype and strides |
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from slabnorm.kernels import eager
from slabnorm.slab import Slab


@dataclass(frozen=True)
class Statistics:
    """What a slab is normalised with: y = ((x - mean) - low) * rstd.

    `low` is what float64 could not hold of the mean, None where it is nothing.
    """

    mean: Tensor
    low: Tensor | None
    rstd: Tensor


def traced() -> bool:
    """Whether torch records this call and needs plain torch operations.

    It does in compile, export, trace, torch.func and forward mode.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def backend(x: Tensor, slab: Slab) -> ModuleType:
    """Return the backend that runs a call: the first of the table that takes it."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and type(x) in (Tensor, torch.nn.Parameter):
        from slabnorm.kernels import cpu  # loads Numba: on first use, not with `import slabnorm`

        if cpu.takes(x, slab):
            return cpu
    return eager
