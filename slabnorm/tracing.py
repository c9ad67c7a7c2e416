"""Whether torch records a call instead of running it, and what can be known of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_TENSORS = (Tensor, torch.nn.Parameter)
_plain: dict[int, bool] = {}  # by dispatch keys
_MODES = torch._C._TorchDispatchModeKey
_RECORDERS = (_MODES.FAKE, _MODES.PROXY, _MODES.FUNCTIONAL)


def traced() -> bool:
    """Whether torch records this call and needs plain torch operations.

    It does in compile, export, trace, make_fx, torch.func and forward mode. Other dispatch modes, such as
    FlopCounterMode and that of selective checkpointing, watch a call that runs: kernels run as ever.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch)
        or (torch._C._len_torch_dispatch_stack() > 0 and _recording())
    )


def _recording() -> bool:
    return any(torch._C._get_dispatch_mode(key) is not None for key in _RECORDERS)


def plain(x: Tensor) -> bool:
    """Return whether a tensor is memory and strides, and nothing else."""
    if type(x) not in _TENSORS:
        return False
    # All that is asked here of a tensor follows from its dispatch keys, which one look tells.
    keys = torch._C._dispatch_keys(x).raw_repr()
    known = _plain.get(keys)
    if known is None:
        known = _plain[keys] = _is_plain(x)
    return known


def _is_plain(x: Tensor) -> bool:
    # Batched gradients arrive as tensors of tensors (torch.func, or is_grads_batched); a lazily negated
    # tensor shares its memory with the original.
    return (
        x.layout is torch.strided
        and not x.is_nested
        and not x.is_neg()
        and not x._is_zerotensor()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and not torch._C._functorch.is_legacy_batchedtensor(x)
    )


def readable(t: Tensor) -> bool:
    """Whether the values of a tensor can be read now: it has some, and nothing is recorded."""
    if t.device.type == "meta" or traced():
        return False
    if t.device.type == "cuda":
        return not torch.cuda.is_current_stream_capturing()
    return not _is_fake(t)


def _is_fake(t: Tensor) -> bool:
    if type(t) is Tensor:
        return False
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(t, FakeTensor)
