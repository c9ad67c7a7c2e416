"""Reversible: each series is normalised with its own statistics, and its forecast mapped back with them."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from slabnorm.cut import Cut, cut_of, opened
from slabnorm.errors import DeviceError, ModelError, OptionError, PatternError, ShapeError
from slabnorm.functional import check_eps, run, run_cut, statistics_of
from slabnorm.kernels.call import Given
from slabnorm.notation import Pattern, parse
from slabnorm.prepare import Bound, bind, check_input
from slabnorm.slab import Slab, plan


class InstanceStatistics(NamedTuple):
    """What a series was normalised with, for each slab, in the shape of the pattern's right side.

    Attributes:
        shift: what was subtracted, the mean or the last value, in the dtype and units of the input.
        shift_low: what `shift` lost to rounding; float32, or float64 for float64 input.
        scale: what the series was divided by, sqrt(var + eps), in units of the input; dtype as `shift_low`.
    """

    shift: Tensor
    shift_low: Tensor
    scale: Tensor


class Reversible(nn.Module):
    """Normalise every series with its own statistics, and map what a model makes of it back to its units.

        forward:  y = weight * (x - shift) / scale + bias         scale = sqrt(var + eps)
        inverse:  x = (y - bias) / (weight + eps^2) * scale + shift

    The statistics are those of one instance, such as one channel of one sample over time: `shift` is their
    mean, or their last value, and `var` their variance around the mean, divided by the count. The model sees
    series of one level and size, also where a test period has drifted away from the training data, and the
    inverse gives its output the level and size of the series that it was computed from.

    There are two ways to use it. In a block, the inverse cannot be forgotten:

        with norm.instance(x) as (y, inverse):
            forecast = inverse(model(y))

    As plain functions, the caller carries the statistics: `y, statistics = norm(x)` and later
    `norm.inverse(model(y), statistics)`. The layer keeps nothing of a call, so that calls may be nested or
    run in threads. Both ways can be compiled (`fullgraph=True`) and exported.

    Args:
        pattern: every axis of the input, "->", the axes that keep statistics of their own: the sample axis,
            and others such as channels.
        affine: the axes of weight and bias; by default the axis that contains `c`; "" for none.
        eps: added to the variance, in squared units of the input.
        subtract_last: subtract the last value that counts instead of the mean. One axis may be pooled.
        device, dtype: of weight and bias.
        **sizes: sizes of the axes of weight and bias, as in `c=7`, and of split axes.

    Shapes:
        Forward: any shape that fits the pattern. Inverse: the same, but pooled axes may have any size, such
        as the horizon of a forecast. "n t c ... -> n c" also takes outputs with more axes, such as quantiles.

    Gradients: no gradient flows to the statistics, which are constants, as in the authors' code. Gradients
    flow through x and y themselves, and to weight and bias from both directions.

    dtypes: float16 and bfloat16 are computed in float32 and rounded once. `y` has the dtype of x. The inverse
    returns the wider one of its input's and x's, so that under autocast units keep their digits.

    Accuracy: in float32 y is within 1e-6 * max(1, abs(y)) of the exact result, however far the series is from
    0. `inverse` applied to y is x within 4 units in the last place of the largest of abs(x), abs(shift) and
    scale, at the initial weight and bias.

    Small weights: the inverse divides by weight + eps^2, as the authors' code does. So a weight of 0 gives no
    infinity (unless eps is 0), but what was multiplied by 0 does not come back; of a series multiplied by a
    weight near 0 comes back what rounding has left. Above 0.002 and with the usual eps, no float32 weight is
    changed by eps^2.

    Raises:
        PatternError: the pattern is wrong, pools over samples or over nothing, or a size is missing.
        OptionError: `eps` is out of its range; at a call, several axes are pooled with `subtract_last`.
        ShapeError, DtypeError, DeviceError, StatisticsError: at a call, as in `slabnorm.normalize`.

    Kim et al., "Reversible Instance Normalization for Accurate Time-Series Forecasting against Distribution
    Shift" (ICLR 2022). `subtract_last` is that of PatchTST (Nie et al., ICLR 2023).

    >>> import slabnorm as sn, torch
    >>> norm = sn.Reversible("n t -> n", affine="", eps=0.0)
    >>> series = torch.tensor([[1.0, 2.0, 3.0], [100.0, 200.0, 300.0]])
    >>> with norm.instance(series) as (y, inverse):
    ...     forecast = inverse(y[:, -1:] + 0.5)  # half a standard deviation above the last value
    >>> y
    tensor([[-1.2247,  0.0000,  1.2247],
            [-1.2247,  0.0000,  1.2247]])
    >>> forecast
    tensor([[  3.4082],
            [340.8248]])
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        pattern: str | Pattern,
        *,
        affine: str | None = None,
        eps: float = 1e-5,
        subtract_last: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **sizes: int,
    ) -> None:
        super().__init__()
        self.pattern = pattern if isinstance(pattern, Pattern) else parse(pattern)
        _check_pattern(self.pattern)
        check_eps(eps)
        self.sizes, self.eps, self.subtract_last = sizes, eps, subtract_last
        self._sizes = tuple(sorted(sizes.items()))
        self.affine_axes = self.pattern.affine(affine)
        if affine is None and not self.affine_axes:
            raise PatternError(
                f'"{self.pattern}" has no axis `c` for weight and bias to vary along',
                "",
                'use affine="" for no weight and bias, or name their axes',
            )
        shape = self.pattern.sizes_of(self.affine_axes, sizes, "weight and bias")
        for name in ("weight", "bias"):
            value = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if shape else None
            self.register_parameter(name, value)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weight to 1 and bias to 0."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    if TYPE_CHECKING:  # Module's own returns Any

        def __call__(
            self, x: Tensor, *, mask: Tensor | None = None, lengths: Any = None
        ) -> tuple[Tensor, InstanceStatistics]: ...

    def instance(self, x: Tensor, *, mask: Tensor | None = None, lengths: Any = None) -> Inverse:
        """Normalise a batch for a block: `with norm.instance(x) as (y, inverse):`.

        `inverse(output)` maps an output of the model back to the units of x, as often as there are outputs.
        A block that never calls it ends with an error; `inverse.unused()` says that there is nothing to map
        back, as in a classifier. After its block, the inverse is not to be called. Its outputs need the
        sizes of x along the axes that the statistics keep. Whether they are of the same samples, in the same
        order, cannot be seen: do not shuffle or select samples within the block.

        Args:
            x, mask, lengths: as in `forward`.

        Raises:
            ModelError: the block ends, other than by an exception, and the inverse was never called; or it is
                called outside its block.
            ShapeError: an output has other samples, or other kept axes, than x.
            Others as in `forward`.
        """
        y, statistics = self(x, mask=mask, lengths=lengths)
        return Inverse(self, y, statistics)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, lengths: Any = None
    ) -> tuple[Tensor, InstanceStatistics]:
        """Return the normalised batch, and the statistics that `inverse` needs.

        Args:
            x: a batch of series.
            mask: True where an element counts, in any shape that broadcasts to x. What does not count enters
                no statistic and becomes 0. Series of which nothing counts have shift 0 and variance 0.
            lengths: instead of a mask, how many elements of each sample count, as in `slabnorm.normalize`.

        Raises:
            As `slabnorm.normalize`; ShapeError also if x has no time step, or nothing else to pool over.
        """
        bound = bind(self.pattern, self.affine_axes, self._sizes, x, self.weight, self.bias)
        if bound.slab.count == 0:
            problem = f'x has no element along the axes that "{self.pattern}" pools over'
            raise ShapeError(problem, f"shape {tuple(x.shape)}", "give series of one step or more")
        cut = None
        if mask is not None or lengths is not None:
            cut = cut_of(x, self.pattern, mask, lengths, None)
        with torch.no_grad():
            given = self._measured(x.detach(), bound, cut)
            statistics = _rounded(given, float(self.eps), x.dtype)
        options = float(self.eps), True, given, None, None
        if cut is None:
            return run(x, bound, self.weight, self.bias, *options)[0], statistics
        y, _ = run_cut(x, bound, cut, self.weight, self.bias, *options, "zero", counts=False)
        return y, statistics

    def inverse(self, y: Tensor, statistics: InstanceStatistics) -> Tensor:
        """Return an output of the model in the units of the series that it was computed from.

        Args:
            y: the output. Pooled axes may have another size than those of the series; all of it is mapped.
            statistics: those that came with the normalised series.

        Raises:
            ShapeError: y does not have the samples or the other kept axes of the series.
            OptionError: `statistics` is something else.
            DtypeError, DeviceError: y has another kind of dtype, or lies on another device.
        """
        check_input(y, "y")
        if not isinstance(statistics, InstanceStatistics):
            got = type(statistics).__name__
            raise OptionError("statistics must be those of the series", got, "y, statistics = norm(x)")
        shift, low, scale = statistics
        slab = plan(self.pattern, self.affine_axes, tuple(y.shape), self._sizes)
        _check_same(y, slab, shift)
        dtype = torch.promote_types(y.dtype, shift.dtype)
        work = _work(dtype)
        x = y.reshape(slab.split).to(work)
        if self.weight is not None and self.bias is not None:
            x = x - slab.affine.spread(self.bias.to(work))
            x = x / slab.affine.spread(self.weight.to(work) + float(self.eps) ** 2)
        # The low part first: beside a large shift it would be lost.
        x = x * slab.kept.spread(scale.to(work)) + slab.kept.spread(low.to(work))
        return (x + slab.kept.spread(shift.to(work))).reshape(y.shape).to(dtype)

    def extra_repr(self) -> str:
        """Return the arguments with which the layer can be made again, device and dtype aside."""
        parts = [repr(self.pattern.text), *(f"{name}={size}" for name, size in self.sizes.items())]
        if self.affine_axes != self.pattern.default_affine or not self.affine_axes:
            items = (f"({' '.join(item)})" if len(item) > 1 else item[0] for item in self.affine_axes)
            parts.append(f"affine={' '.join(items)!r}")
        parts.append(f"eps={self.eps}")
        return ", ".join(parts) + (", subtract_last=True" if self.subtract_last else "")

    def _measured(self, x: Tensor, bound: Bound, cut: Cut | None) -> Given:
        """Return shift and variance of every slab, in float64."""
        slab = bound.slab
        if slab.slabs == 0:
            nothing = x.new_zeros(slab.kept.shape, dtype=torch.float64)
            return Given(nothing, nothing)
        mean, m2, count = statistics_of(x, bound, cut)
        return Given(_last(x, slab, cut) if self.subtract_last else mean, m2 / count)


class Inverse:
    """The way back from a block of `Reversible.instance`: called with outputs, it returns them in units.

    Attributes:
        statistics: those that the batch was normalised with.
    """

    def __init__(self, norm: Reversible, y: Tensor, statistics: InstanceStatistics) -> None:
        self.statistics = statistics
        self._norm, self._y = norm, y
        self._open = self._settled = False

    def __enter__(self) -> tuple[Tensor, Inverse]:
        self._open, self._settled = True, False
        return self._y, self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if kind is None and not self._settled:
            raise ModelError(
                "The block of norm.instance(x) ended, and its inverse was never called",
                "outputs that are still in normalised units",
                "call inverse(output) in the block, or inverse.unused() if nothing is to be mapped back",
            )

    def __call__(self, y: Tensor) -> Tensor:
        """Return an output of the model in the units of the series; see `Reversible.inverse`."""
        if not self._open:
            raise ModelError(
                "inverse was called outside the block of norm.instance(x) that it belongs to",
                fix="call it within the block, or keep the statistics of norm(x) and use norm.inverse",
            )
        x = self._norm.inverse(y, self.statistics)
        self._settled = True
        return x

    def unused(self) -> None:
        """Say that the block has no output to be mapped back."""
        self._settled = True


def _check_pattern(pattern: Pattern) -> None:
    if pattern.pools_samples:
        sample = " ".join(pattern.sample)
        raise PatternError(
            f'"{pattern}" pools over samples, but every series is to have statistics of its own',
            "statistics that mix samples cannot map the forecast of one of them back",
            f'keep the sample axis on the right, as in "{pattern.text.partition("->")[0]}-> {sample}"',
        )
    if pattern.kept.issuperset(pattern.names):
        problem = f'"{pattern}" pools over no axis, so that each statistic would be of one element'
        raise PatternError(problem, fix='leave out the axis of time on the right, as in "n t c -> n c"')


def _check_same(y: Tensor, slab: Slab, shift: Tensor) -> None:
    """Raise an error unless an output has the sizes of the series along the axes that statistics keep."""
    if y.device != shift.device:
        problem = f"y is on {y.device}, but the statistics are on {shift.device}"
        raise DeviceError(problem, fix=f"move y with .to({str(shift.device)!r})")
    if slab.kept.shape != tuple(shift.shape):
        kept = slab.pattern.text.partition("->")[2].strip()
        raise ShapeError(
            f"The output is not that of the normalised batch: its sizes along `{kept}` are other ones",
            f"{slab.kept.shape}, and {tuple(shift.shape)} in the batch",
            "give inverse the outputs for this batch, all samples in their order",
        )


def _work(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that is computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rounded(given: Given, eps: float, dtype: torch.dtype) -> InstanceStatistics:
    """Return what a forward has normalised with: the shift in two parts, as one float32 would lose digits."""
    shift = given.mean.to(dtype)
    low = given.mean - shift.double()
    scale = (given.var + eps).sqrt()
    return InstanceStatistics(shift, low.to(_work(dtype)), scale.to(_work(dtype)))


def _last(x: Tensor, slab: Slab, cut: Cut | None) -> Tensor:
    """Return the last element of every slab that counts, 0 where none does."""
    if len(slab.pooled) != 1:
        raise OptionError(
            f'subtract_last needs one pooled axis, whose last value is meant, and "{slab.pattern}" pools '
            f"{len(slab.pooled)}",
            fix="keep all axes but that of time on the right, or subtract the mean",
        )
    (dim,) = slab.pooled
    size = slab.split[dim]
    parts = x.reshape(slab.split)
    if cut is None or cut.valid is None:
        return slab.kept.gather(parts.narrow(dim, size - 1, 1).double())
    steps = torch.arange(size, device=x.device).reshape([-1 if d == dim else 1 for d in range(parts.dim())])
    at = torch.where(opened(cut.valid, slab), steps, -1).amax(dim, keepdim=True)
    at = at.expand([1 if d == dim else length for d, length in enumerate(slab.split)])
    values = parts.gather(dim, at.clamp(min=0)).double()
    return slab.kept.gather(torch.where(at < 0, 0.0, values))
