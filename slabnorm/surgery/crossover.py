"""From which size on slabnorm's kernels take less time than PyTorch's own, in a model that runs.

A call from Python costs more than one from C++, and inside a model, where the caches hold other things, five
times what it costs in a loop: forward and backward take a quarter of a millisecond more than the work does.
And some of PyTorch's kernels are as fast as memory is. So an accelerated model takes each where it is faster.

Measured with matrix products and another layer's step between the calls, which empty the caches: two cores
of an AMD EPYC with AVX-512, PyTorch 2.13.0, two threads, medians of 15, float32 and bfloat16. How many times
as fast as PyTorch with so many elements, float32, forward and backward:

| | 131 thousand | 524 thousand | 1 million | 2 million | 4 million |
|---|---|---|---|---|---|
| batch norm, channels first | 0.72 | 1.15 | 1.69 | 1.94 | 2.32 |
| with ReLU | 0.87 | 1.45 | 2.21 | 2.45 | |
| batch norm, channels last | 0.54 | 0.69 | 0.81 | 0.82 | 0.87 |
| with ReLU | 0.65 | 0.91 | 1.17 | 1.23 | |
| instance norm, channels first | 0.91 | 1.21 | 1.69 | 2.01 | |
| instance norm, channels last | 1.13 | 2.53 | 4.33 | 4.84 | |
| group norm, channels first | 0.52 | 0.65 | 0.89 | 0.95 | 1.14 |
| with SiLU | 0.76 | 0.73 | 0.90 | 0.93 | 1.27 |
| group norm, channels last | 1.23 | 1.76 | 1.61 | 1.83 | 1.98 |

Rows of 768: layer norm with 393 thousand elements 0.71, 786 thousand 0.81, 1.6 million 0.97, 3.1 million
1.09; RMS norm with 49 thousand 0.91, 197 thousand 1.35, 786 thousand 2.09, 3.1 million 3.56.

Norms of other classes, how many times as fast as their own forward, forward and backward and forward alone.
They were measured while other programs took most of both cores, so that only the first digit is more than
noise: two runs of one size differed by up to four times. The thresholds leave room for that.

| | 25 thousand | 197 to 393 thousand | 0.8 million |
|---|---|---|---|
| LlamaRMSNorm, six operations | 1.1, 0.8 | 2.3, 1.2 | 8, 3 |
| LayerNorm2d of timm, channels moved last and back | | 1.8, 1.0 | |
| FrozenBatchNorm2d | | 0.5 to 1.3, 1.0 | 2.9, 1.3 |
| FrozenBatchNorm2d, channels last | | 0.8, 0.8 | 0.8, 1.1 |

On a GPU nothing has been measured yet. Two or three launches from Python, some 30 microseconds each, hide
behind the device's work where there is enough of it: from four million elements on, as an estimate. PyTorch's
layer norm and RMS norm are near the memory's limit there, and stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slabnorm.kernels.backend import triton_runs_on

_NEVER = 1 << 62
_WIDE = 384  # elements of a row; layer norm of rows of 256 is at 0.86 with 4 million elements

# (layer, channels last, fused): the fewest elements in training, in training with half precision, and without
# gradients.
_LEAST = {
    ("BatchNorm", False, False): (400_000, 1_500_000, _NEVER),
    ("BatchNorm", False, True): (250_000, 1_000_000, 700_000),
    ("BatchNorm", True, False): (_NEVER, _NEVER, _NEVER),
    ("BatchNorm", True, True): (800_000, 1_500_000, 700_000),
    ("InstanceNorm", False, False): (350_000, 1_000_000, 30_000),
    ("InstanceNorm", True, False): (100_000, 250_000, 30_000),
    ("GroupNorm", False, False): (3_000_000, _NEVER, _NEVER),
    ("GroupNorm", False, True): (3_000_000, 4_000_000, 2_000_000),
    ("GroupNorm", True, False): (100_000, 30_000, _NEVER),
    ("GroupNorm", True, True): (65_000, 30_000, 3_000_000),
    ("LayerNorm", True, False): (2_500_000, 1_500_000, 2_500_000),
    ("RMSNorm", True, False): (150_000, 60_000, 600_000),
}
_ON_GPU = ("BatchNorm", "InstanceNorm", "GroupNorm")
_LEAST_ON_GPU = 4_000_000

# What the forward of an adopted norm does: the fewest elements in training, and without gradients.
_LEAST_ADOPTED = {
    "operations": (40_000, 100_000),
    "fixed statistics": (1_000_000, 600_000),
    "fixed statistics, channels last": (_NEVER, 1_000_000),
    "a kernel, of channels moved last": (250_000, 400_000),
}


def pays_adopted(
    layer: str, x: Tensor, *, fixed: bool, kernel: bool, over_channels: bool, fused: bool
) -> bool:
    """Return whether slabnorm's kernels take less time than the forward of an adopted norm.

    Args:
        layer: its name.
        x: the input.
        fixed: whether its statistics are fixed, so that nothing is summed in the forward.
        kernel: whether it runs one of PyTorch's kernels, else it consists of several operations.
        over_channels: whether it is layer norm over the second axis.
        fused: whether an activation is fused with it.
    """
    last = x.dim() == 2 or x.stride(1) == 1
    if kernel and not over_channels:
        return pays(layer, x, fused)
    if kernel and last:
        return pays("LayerNorm", x.movedim(1, -1), fused)
    what = "a kernel, of channels moved last" if kernel else "operations"
    if fixed:
        what = "fixed statistics, channels last" if last else "fixed statistics"
    training, evaluation = _LEAST_ADOPTED[what]
    return x.numel() >= (training if torch.is_grad_enabled() else evaluation)


def pays(layer: str, x: Tensor, fused: bool) -> bool:
    """Return whether slabnorm's kernels take less time than PyTorch's for a layer of this name and input."""
    if x.device.type != "cpu":
        return triton_runs_on(x.device) and layer in _ON_GPU and x.numel() >= _LEAST_ON_GPU
    if layer == "LayerNorm" and x.shape[-1] < _WIDE:
        return False
    if layer == "InstanceNorm" and len(x) == 1:
        return True  # PyTorch 2.13 reads a channels_last gradient of one sample in the wrong order
    rows = layer in ("LayerNorm", "RMSNorm")
    last = rows or x.dim() == 2 or x.stride(1) == 1
    training, half, evaluation = _LEAST.get((layer, last, fused)) or _LEAST[layer, last, False]
    if not torch.is_grad_enabled():
        return x.numel() >= evaluation
    return x.numel() >= (half if x.element_size() == 2 else training)
