"""ReturnScale: rewards divided by the spread of their discounted returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slabnorm.contracts.running import RunningInputNorm
from slabnorm.errors import DtypeError, OptionError, ShapeError
from slabnorm.inputs.schemes import is_number


class ReturnScale(nn.Module):
    """Divide rewards by the spread of their discounted returns, one return for each environment.

        return_t = gamma * return_{t-1} + reward_t, which starts anew after the end of an episode
        y = reward / sqrt(var(return) + eps), cut off at -clip and clip

    var is that of all returns so far. Rewards are not centred, since that would change which policy is best.
    In train mode the returns of a step are counted first; in eval mode nothing is counted. While returns have
    had one value only, rewards are divided by 1. A reward that is not finite leaves the statistics as they
    are, with a warning, and its return starts anew.

    Args:
        gamma: the discount, from 0 to 1; that of the algorithm.
        clip: the largest absolute value of a result; None for no limit.
        eps: added to the variance, in squared units of rewards.

    Attributes:
        returns: the RunningInputNorm that keeps the statistics; `returns.sync()` merges those of processes.
        discounted: the return of each environment so far, in the state_dict too.

    Raises:
        OptionError: an option is out of its range.

    As `VecNormalize` of stable-baselines3; Engstrom et al., "Implementation matters in deep policy gradients"
    (2020).

    >>> import torch, slabnorm as sn
    >>> scale = sn.ReturnScale(gamma=0.5, clip=10)
    >>> scale(torch.tensor([1.0, 3.0]), torch.tensor([False, True]))
    tensor([1., 3.])
    >>> scale.discounted
    tensor([1., 0.], dtype=torch.float64)
    """

    discounted: Tensor

    def __init__(self, gamma: float = 0.99, *, clip: float | None = 10.0, eps: float = 1e-8) -> None:
        super().__init__()
        if not (is_number(gamma) and 0 <= gamma <= 1):
            raise OptionError("gamma must be a number from 0 to 1", repr(gamma), "0.99 is usual")
        if clip is not None and not (is_number(clip) and clip > 0):
            raise OptionError("clip must be a number above 0, or None", repr(clip), "10 is usual")
        self.gamma, self.clip = float(gamma), math.inf if clip is None else float(clip)
        self.returns = RunningInputNorm("n ->", eps=eps)
        self.register_buffer("discounted", torch.empty(0, dtype=torch.float64))

    if TYPE_CHECKING:  # that of Module returns Any

        def __call__(self, rewards: Tensor, dones: Tensor, counts: Tensor | None = None) -> Tensor: ...

    def forward(self, rewards: Tensor, dones: Tensor, counts: Tensor | None = None) -> Tensor:
        """Return scaled rewards of one step.

        Args:
            rewards: one number for each environment.
            dones: True where the episode ends with this step.
            counts: False where a step only starts an environment, and has no reward; None: all count.

        Raises:
            DtypeError: rewards or dones are no tensors.
            ShapeError: they do not fit each other, or the number of environments is another than before.
        """
        for name, given in (("rewards", rewards), ("dones", dones)):
            if not isinstance(given, Tensor):
                fix = "convert it with torch.as_tensor"
                raise DtypeError(f"{name} must be a tensor", type(given).__name__, fix)
        if rewards.dim() != 1 or rewards.shape != dones.shape:
            got = f"shapes {tuple(rewards.shape)} and {tuple(dones.shape)}"
            raise ShapeError("rewards and dones must be one number for each environment", got)
        if self.training:
            self._count(rewards.detach(), dones, counts)
        scaled = (rewards.double() / self.returns.scale).clamp(-self.clip, self.clip)
        return scaled.to(rewards.dtype if rewards.is_floating_point() else torch.float32)

    def reset(self) -> None:
        """Start all returns anew, as all environments are reset; their number may change."""
        self.discounted = torch.empty(0, dtype=torch.float64, device=self.discounted.device)

    def _count(self, rewards: Tensor, dones: Tensor, counts: Tensor | None) -> None:
        with torch.inference_mode(False), torch.no_grad():
            before = (
                self.discounted if len(self.discounted) else torch.zeros_like(rewards, dtype=torch.float64)
            )
            if before.shape != rewards.shape:
                got = f"{len(rewards)}, after {len(before)}"
                raise ShapeError("The number of environments has changed", got, "call reset() before")
            found = before * self.gamma + rewards
            self.returns.update(found, mask=counts)
            self.discounted = torch.where(dones.bool() | ~found.isfinite(), 0.0, found)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = self.discounted
        super()._apply(fn, recurse)
        if kept.is_meta:
            self.reset()
        else:
            self.discounted = kept.to(self.discounted.device)  # moved, but never cast
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(prefix + "discounted")
        if isinstance(stored, Tensor):  # of as many environments as there were
            self.discounted = self.discounted.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
