"""Weight and bias of a norm that takes another's place, from data: the same mean and variance per channel."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slabnorm.errors import ModelError, OptionError, SlabError, StatisticsError
from slabnorm.functional import moments
from slabnorm.mergeable_moments import Moments
from slabnorm.surgery.norms import input_of, valid_of

Run = Callable[[nn.Module, Any], Any]


@dataclass
class Seen:
    """What a norm was given and returned in eval mode.

    Attributes:
        shape: that of its first input.
        given, returned: the moments of all inputs and outputs, per channel, of what counts in them.
        runs: how often it ran.
        repeated: whether it ran more often than there were batches.
    """

    shape: tuple[int, ...]
    given: Moments
    returned: Moments
    runs: int = 1
    repeated: bool = False


class _Enough(BaseException):
    """The norm that is looked at has run on a batch, and what comes behind it need not."""


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch, or on its first part where it is a tuple or a list."""
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


def twin_of(model: nn.Module) -> nn.Module:
    """Return a copy of a model in eval mode.

    Raises:
        ModelError: it cannot be copied.
    """
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        raise ModelError(
            "The model could not be copied, to run it on the loader's batches",
            f"{type(error).__name__}: {error}",
            "leave loader= away",
        ) from error


def look(
    model: nn.Module, last: dict[str, bool], loader: Iterable[Any], run: Run, stop: bool = False
) -> dict[str, Seen]:
    """Run a model on all batches; return what its norms were given and returned, in the order they first ran.

    Args:
        model: in eval mode.
        last: whether the channels are the last axis of a norm's input, else the second, by its name.
        loader: batches that can be gone through more than once.
        run: runs the model on a batch.
        stop: whether to go on to the next batch as soon as one of the norms has run.

    Raises:
        OptionError: the loader cannot be gone through again, or has no batch.
        ModelError: the model does not run on a batch.
    """
    if iter(loader) is loader:
        fix = "give a list or a DataLoader: a warm start needs the batches once for each norm, and once more"
        raise OptionError(
            "loader must be something that can be gone through again", type(loader).__name__, fix
        )
    seen: dict[str, Seen] = {}
    hooks = []
    for name, at_end in last.items():
        pattern = "... c -> c" if at_end else "n c ... -> c"

        def note(
            module: nn.Module, args: Any, options: Any, y: Any, name: str = name, pattern: str = pattern
        ) -> None:
            x = input_of(args, options)
            if not isinstance(x, Tensor) or x.dim() < 2:
                return
            valid = valid_of(module, x, options)
            given, returned = moments(x, pattern, mask=valid), moments(y, pattern, mask=valid)
            if name not in seen:
                seen[name] = Seen(tuple(x.shape), given, returned)
            else:
                seen[name].given += given
                seen[name].returned += returned
                seen[name].runs += 1
            if stop:
                raise _Enough

        hooks.append(model.get_submodule(name).register_forward_hook(note, with_kwargs=True))
    try:
        batches = 0
        # As many random numbers are drawn each time, and the same: those of a loader that shuffles.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for batch in loader:
                with suppress(_Enough):
                    _run(model, batch, run)
                batches += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not batches:
        raise OptionError("The loader has no batch", "", "give batches of what the model is trained on")
    for one in seen.values():
        one.repeated = one.runs > batches
    return seen


def _run(model: nn.Module, batch: Any, run: Run) -> None:
    try:
        run(model, batch)
    except SlabError:
        raise
    except Exception as error:
        raise ModelError(
            "The model does not run on a batch of the loader",
            f"{type(error).__name__}: {error}",
            "say how it is called, as in call=lambda model, batch: model(batch['image'])",
        ) from error


def start(norm: nn.Module, wanted: Moments, again: Callable[[], Seen]) -> None:
    """Set weight and bias so that each channel's outputs have the mean and variance wanted.

        weight = sign(weight before) * sqrt(var wanted / var z)        bias = mean wanted - weight * mean z

    z is what the norm returns with weight 1 and bias 0. A norm that pools samples gets the moments of its
    inputs as running statistics, first.

    Args:
        norm: it is in eval mode, and its tensors are written.
        wanted: the moments of the outputs wanted, per channel.
        again: runs the model, and returns what the norm was given and returned.

    Raises:
        StatisticsError: outputs are not finite.
    """
    weight, bias = norm._parameters.get("weight"), norm._parameters.get("bias")
    with torch.no_grad():
        if norm._buffers.get("running_mean") is not None:
            _track(norm, again)
        if weight is None:
            return
        sign = torch.where(weight < 0, -1.0, 1.0).double()
        weight.fill_(1)
        if bias is not None:
            bias.zero_()
        z = again().returned
        # A channel that does not vary comes out as its mean, whatever its weight.
        scale = torch.where(z.m2 > 0, (wanted.m2 / z.m2).sqrt(), 1.0) * sign
        offset = wanted.mean - scale * z.mean
        if not bool((scale.isfinite() & offset.isfinite()).all()):
            fix = "look for the batch, or the weight, that makes them so"
            raise StatisticsError("A norm's outputs over the loader's batches are not finite", "", fix)
        weight.copy_(scale)
        if bias is not None:
            bias.copy_(offset)


def _track(norm: Any, again: Callable[[], Seen]) -> None:
    norm._trained = True  # the run below is no evaluation before training
    given = again().given
    norm.running_mean.copy_(given.mean)
    norm.running_var.copy_(given.var(ddof=int(bool((given.count > 1).all()))))
    norm.num_batches_tracked += 1
