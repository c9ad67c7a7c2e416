"""SlabNorm: any norm as a layer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from slabnorm.cut import Counted, Cut, check_masked, cut_of
from slabnorm.errors import OptionError, PatternError, ShapeError, SlabError
from slabnorm.functional import check_eps, run, run_cut
from slabnorm.kernels.activations import check_activation
from slabnorm.kernels.backend import dense
from slabnorm.kernels.call import Found, Given
from slabnorm.kernels.memory_format import suggested
from slabnorm.nn.batch_modes import (
    bind_ghosts,
    check_ghost,
    check_one_count,
    check_renorm,
    named_axes,
    renormed,
    run_ghosts,
)
from slabnorm.nn.diagnostics import name_of, recomputing, root_of, user_line
from slabnorm.nn.running_stats import RunningStatistics, held
from slabnorm.notation import Pattern, parse
from slabnorm.prepare import Bound, bind

# What torch's layers return, on any input: instance and layer norm; batch, group and RMS norm.
CONTIGUOUS = (torch.contiguous_format,)
KEEPS_CHANNELS_LAST = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


class SlabNorm(RunningStatistics):
    """Normalise over the slabs that a pattern names, with learned weight and bias.

        y = activation(weight * (x - mean_S) / sqrt(var_S + eps) + bias + residual)

    A pattern without the first axis on the right pools over samples. Such a layer has running
    statistics and two modes: train mode uses the batch and updates them, eval mode uses them only,
    so that its output for a sample does not depend on the other samples.

    Args:
        pattern: every axis of the input, "->", the axes that keep statistics of their own.
        affine: the axes of weight and bias; by default the axis that contains `c`; "" for none.
        bias: False leaves the bias out.
        eps: added to the variance, in squared units of the input; None: the epsilon of float32, or of
            float64 for float64 input.
        momentum: the weight of the new batch in the running statistics, 0 to 1; None: the average of
            all batches, weighted by their counts.
        center: False leaves the mean where it is (RMS norm).
        activation: applied last: relu, leaky_relu, silu, gelu, gelu_tanh, sigmoid, tanh, hardswish.
        inplace: allow the output to take the input's memory in eval mode, where no gradient is needed.
        track_running_stats: whether there are running statistics; by default if the pattern pools samples.
        ghost: samples of a ghost batch: in train mode statistics are those of so many samples at a time. Of a
            remainder they are its own, but a single sample joins the ghost batch before it.
        renorm: (rmax, dmax) of batch renormalisation. The attribute may be set anew at any time.
        device, dtype: of weight and bias. Running statistics are float32 at least.
        **sizes: sizes of the axes of weight, bias and running statistics, and of split axes.

    Shapes:
        Input and output: any shape that fits the pattern. `residual` (optional): the input's shape.
        The output lies in memory as the input does. That of a named layer lies as its namesake's: dense, and
        contiguous except where torch keeps channels_last (batch, group and RMS norm).

    Raises:
        PatternError: the pattern is wrong or a size is missing.
        OptionError: an argument is out of its range.
        ShapeError, DtypeError, DeviceError, StatisticsError: at a call, as in `slabnorm.normalize`.

    Batch norm: Ioffe and Szegedy, "Batch Normalization" (2015); group norm: Wu and He (2018).

    >>> import slabnorm as sn, torch
    >>> norm = sn.SlabNorm("n (g c) h w -> n g", g=2, c=4, activation="relu")
    >>> norm(torch.randn(3, 8, 5, 5)).shape
    torch.Size([3, 8, 5, 5])
    >>> norm
    SlabNorm('n (g c) h w -> n g', g=2, c=4, eps=1e-05, activation='relu')
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    formats: ClassVar[tuple[torch.memory_format, ...]] = ()  # of the output; (): as the input lies
    ghost: int | None = None  # here for layers that were pickled by an older version
    renorm: tuple[float, float] | None = None

    def __init__(
        self,
        pattern: str | Pattern,
        *,
        affine: str | None = None,
        bias: bool = True,
        eps: float | None = 1e-5,
        momentum: float | None = 0.1,
        center: bool = True,
        activation: str | None = None,
        inplace: bool = False,
        track_running_stats: bool | None = None,
        ghost: int | None = None,
        renorm: tuple[float, float] | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **sizes: int,
    ) -> None:
        # Not super(): next come the named layers' torch.nn parents, whose arguments are others.
        nn.Module.__init__(self)
        self._made_at = user_line()
        self.pattern = pattern if isinstance(pattern, Pattern) else parse(pattern)
        if eps is not None:
            check_eps(eps)
        check_activation(activation)
        self.sizes, self.eps, self.center = sizes, eps, center
        self.activation, self.inplace = activation, inplace
        self.affine_axes = self.pattern.affine(affine)
        if affine is None and not self.affine_axes:
            raise PatternError(
                f'"{self.pattern}" has no axis `c` for weight and bias to vary along',
                "",
                'name the axes, as in affine="h w", or use affine="" for no weight and bias',
            )
        shape = self.pattern.sizes_of(self.affine_axes, sizes, "weight and bias")
        for name, wanted in (("weight", bool(shape)), ("bias", bool(shape) and bias)):
            value = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, value)
        tracks = self.pattern.pools_samples if track_running_stats is None else track_running_stats
        running = (
            self.pattern.sizes_of(self.pattern.running, sizes, "the running statistics") if tracks else None
        )
        self._init_running(running, momentum, device, dtype)
        check_ghost(ghost, self.pattern, self.affine_axes)
        check_renorm(renorm, tracks and self.pattern.running == self.pattern.right, ghost)
        self.ghost, self.renorm = ghost, renorm
        self._sizes = tuple(sorted(sizes.items()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weight to 1 and bias to 0, and forget the running statistics."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    if TYPE_CHECKING:  # Module's own returns Any

        def __call__(
            self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None,
            lengths: Any = None, segments: Any = None, masked: str = "zero",
        ) -> Tensor: ...  # fmt: skip

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None, lengths: Any = None,
        segments: Any = None, masked: str = "zero",
    ) -> Tensor:  # fmt: skip
        """Return the normalised input; with a residual, added before the activation.

        What `mask`, `lengths`, `segments` and `masked` mean is said in `slabnorm.normalize`. Segments have
        statistics of their own in both modes, and so no running ones: make the layer without.
        """
        weight, bias = held(self, "weight"), held(self, "bias")
        try:
            call = bind(self.pattern, self.affine_axes, self._sizes, x, weight, bias, residual)
        except SlabError as error:
            raise self._misfit(error) from None
        formats = self.formats
        if formats and call.order not in formats:
            # torch's layer computes on such a copy, too: it is nothing that a namesake reads or writes more.
            x = dense(x, self.format_of(x))
            return SlabNorm.forward(
                self, x, residual, mask=mask, lengths=lengths, segments=segments, masked=masked
            )
        slab = call.slab
        # Warnings read values, which a traced or fake tensor does not have.
        observed = call.backend is not None and type(x) in (Tensor, nn.Parameter)
        if observed:
            self._warn_modes(self.pattern.pools_samples)
        eps = _epsilon(x.dtype) if self.eps is None else self.eps
        given = self._running(slab, observed)
        if mask is not None or lengths is not None or segments is not None:
            try:
                cut = self._cut(x, mask, lengths, segments, masked)
            except SlabError as error:
                raise self._misfit(error) from None
            return self._run_cut(x, call, cut, eps, given, residual, observed, masked)
        if (self.ghost is not None or self.renorm is not None) and self.training:
            return self._run_cut(x, call, None, eps, given, residual, observed, masked)
        inplace = self.inplace and not self.training
        y, found = run(x, call, weight, bias, eps, self.center, given, self.activation, residual, inplace)
        if self.training and found is not None:
            self._track(found, slab, self.center, observed)
        return y

    def _cut(self, x: Tensor, mask: Any, lengths: Any, segments: Any, masked: str) -> Cut:
        """Return how a call cuts its batch, if the layer can run so."""
        check_masked(masked)
        cut = cut_of(x, self.pattern, mask, lengths, segments)
        if cut.ids is not None and self.track_running_stats:
            raise OptionError(
                "a layer with running statistics, which are of whole batches, cannot normalise segments",
                fix="make it with track_running_stats=False",
            )
        if cut.ids is not None and self.ghost is not None:
            raise OptionError("segments and ghost batches cut samples twice", fix="leave one of them out")
        return cut

    def _run_cut(
        self, x: Tensor, call: Bound, cut: Cut | None, eps: float, given: Given | None,
        residual: Tensor | None, observed: bool, masked: str,
    ) -> Tensor:  # fmt: skip
        """Do what `forward` does with a batch that is cut, in ghost batches, or renormalised."""
        weight, bias, slab = held(self, "weight"), held(self, "bias"), call.slab
        options = eps, self.center, given, self.activation
        if self.training and self.momentum is None and self.track_running_stats and cut is not None:
            check_one_count(slab, cut)
        if self.training and self.renorm is not None and slab.numel > 0:
            alike = held(self, "running_mean") is not None and self.pattern.running == self.pattern.right
            check_renorm(self.renorm, alike, self.ghost)
            if recomputing():
                raise OptionError(
                    "A layer with renorm is computed again, with running statistics that have moved since",
                    fix="leave it out of the checkpoint",
                )
            running = Given(held(self, "running_mean"), held(self, "running_var"))
            weight, bias = renormed(x, call, cut, weight, bias, running, eps, self.center, self.renorm)
            items = named_axes(self.pattern, self.affine_axes)
            call = bind(self.pattern, items, self._sizes, x, weight, bias, residual)
        found: Found | Counted | None
        if self.training and self.ghost is not None:
            check_ghost(self.ghost, self.pattern, self.affine_axes)
            bound = partial(bind_ghosts, self.pattern, self.affine_axes, self._sizes)
            y, found = run_ghosts(x, bound, cut, self.ghost, weight, bias, options, residual, masked)
        elif cut is not None:
            counts = self.training and self.track_running_stats
            y, found = run_cut(x, call, cut, weight, bias, *options, residual, masked, counts)
        else:
            y, found = run(x, call, weight, bias, *options, residual)
        if self.training and found is not None:
            track = self._track_counted if isinstance(found, Counted) else self._track
            track(found, slab, self.center, observed)  # type: ignore[arg-type]
        return y

    def format_of(self, x: Tensor) -> torch.memory_format:
        """Return the memory format of the output, of a layer whose output does not lie as its input does."""
        suggestion = suggested(x)
        return suggestion if suggestion in self.formats else torch.contiguous_format

    def _misfit(self, error: SlabError) -> SlabError:
        """Return the error of an input that does not fit, with the layer's name and the line that made it."""
        if torch.compiler.is_compiling():  # which reads no stack
            return error
        made = getattr(self, "_made_at", "")  # a layer that was pickled by an older version has none
        got = "; ".join(filter(None, (error.got, made and f"the layer was made at {made}")))
        size = isinstance(error, ShapeError) and error.problem.startswith("Axis")
        fix = "make the layer for inputs of this size, or mend what comes before it" if size else error.fix
        name = name_of(self, root_of(self))
        return type(error)(f"{name} cannot normalise its input: {error.problem}", got, fix)

    def extra_repr(self) -> str:
        """Return the arguments with which the layer can be made again, device and dtype aside."""
        parts = [repr(self.pattern.text), *(f"{name}={size}" for name, size in self.sizes.items())]
        if not self.affine_axes or self.affine_axes != self.pattern.default_affine:
            items = (f"({' '.join(item)})" if len(item) > 1 else item[0] for item in self.affine_axes)
            parts.append(f"affine={' '.join(items)!r}")
        if self.affine_axes and self.bias is None:
            parts.append("bias=False")
        parts.append(f"eps={self.eps}")
        if self.track_running_stats:
            parts.append(f"momentum={self.momentum}")
        if self.track_running_stats != self.pattern.pools_samples:
            parts.append(f"track_running_stats={self.track_running_stats}")
        if not self.center:
            parts.append("center=False")
        return ", ".join(parts) + self._activation_repr()

    def _activation_repr(self) -> str:
        parts = f", activation={self.activation!r}" if self.activation else ""
        parts += ", inplace=True" if self.inplace else ""
        parts += "" if self.ghost is None else f", ghost={self.ghost}"
        return parts + ("" if self.renorm is None else f", renorm={self.renorm}")


def _epsilon(dtype: torch.dtype) -> float:
    # As torch's RMS norm has it: the epsilon of the type computed in, which is float32 for half precision.
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
