"""Reversible: against RevIN written out in float64, and everything that a block must not let pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import slabnorm as sn
from slabnorm.errors import DeviceError, DtypeError, ModelError, OptionError, PatternError, ShapeError
from slabnorm.kernels import using

RNG = np.random.default_rng(0)
EPS = 1e-5


def series(*shape: int, mean: float = 5.0, std: float = 2.0) -> np.ndarray:
    """Series of levels and sizes of their own."""
    level = mean * (1 + 0.1 * RNG.normal(size=(shape[0], 1, *shape[2:])))
    return level + std * RNG.uniform(0.5, 2, (shape[0], 1, *shape[2:])) * RNG.normal(size=shape)


class RevIN:
    """The published algorithm on [n, t, ...], in NumPy and float64; it reads one set of statistics back."""

    def __init__(self, weight: Any = None, bias: Any = 0.0, subtract_last: bool = False) -> None:
        self.weight, self.bias, self.subtract_last = weight, bias, subtract_last

    def normalise(self, x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        self.shift = x[:, -1:] if self.subtract_last else x.mean(1, keepdims=True)
        self.stdev = np.sqrt(x.var(1, keepdims=True) + EPS)
        y = (x - self.shift) / self.stdev
        return y if self.weight is None else y * self.weight + self.bias

    def inverse(self, y: np.ndarray) -> np.ndarray:
        y = y.astype(np.float64)
        if self.weight is not None:
            y = (y - self.bias) / (self.weight + EPS * EPS)
        return y * self.stdev + self.shift


def with_parameters(pattern: str, c: int, **options: Any) -> sn.Reversible:
    norm = sn.Reversible(pattern, c=c, **options)
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(RNG.uniform(0.5, 2, c)))
        norm.bias.copy_(torch.from_numpy(RNG.normal(size=c)))
    return norm


def close(got: Tensor, wanted: np.ndarray, tolerance: float) -> bool:
    error = np.abs(got.detach().double().numpy() - wanted)
    return got.shape == wanted.shape and bool((error <= tolerance * np.maximum(1, np.abs(wanted))).all())


# Each pattern with the order in which its tensor has the axes of [n, t, c] or [n, t, v, c].
ORDERS = {
    "n t c -> n c": (0, 1, 2),
    "n c t -> n c": (0, 2, 1),
    "n c t -> c n": (0, 2, 1),
    "n t v c -> n v c": (0, 1, 2, 3),
    "n c v t -> n c v": (0, 3, 2, 1),
}


@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("subtract_last", [False, True], ids=["mean", "last"])
@pytest.mark.parametrize("pattern", ORDERS)
def test_both_ways_are_the_published_algorithm(pattern: str, subtract_last: bool) -> None:
    order = ORDERS[pattern]
    shape = (4, 10, 5) if len(order) == 3 else (4, 10, 3, 5)
    x, output = series(*shape), RNG.normal(size=(4, 7, *shape[2:]))  # a horizon of 7 after 10 steps
    norm = with_parameters(pattern, 5, subtract_last=subtract_last, dtype=torch.float64)
    oracle = RevIN(norm.weight.detach().numpy(), norm.bias.detach().numpy(), subtract_last)
    with norm.instance(torch.from_numpy(x).permute(order)) as (y, inverse):
        forecast = inverse(torch.from_numpy(output).permute(order))
    assert close(y, oracle.normalise(x).transpose(order), 1e-12)
    assert close(forecast, oracle.inverse(output).transpose(order), 1e-12)


@pytest.mark.usefixtures("in_plain_torch")
def test_series_without_channels_and_statistics_of_all_channels() -> None:
    x, output = series(4, 10), RNG.normal(size=(4, 3))
    plain, oracle = sn.Reversible("n t -> n", affine=""), RevIN()
    y, statistics = plain(torch.from_numpy(x))
    assert close(y, oracle.normalise(x), 1e-12)
    assert close(plain.inverse(torch.from_numpy(output), statistics), oracle.inverse(output), 1e-12)
    # Time and channels together have one statistic, and weight and bias still vary with the channel.
    x, output = series(4, 10, 3), RNG.normal(size=(4, 2, 3))
    norm = with_parameters("n t c -> n", 3, dtype=torch.float64)
    weight, bias = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    shift, stdev = x.mean((1, 2), keepdims=True), np.sqrt(x.var((1, 2), keepdims=True) + EPS)
    y, statistics = norm(torch.from_numpy(x))
    assert close(y, (x - shift) / stdev * weight + bias, 1e-12)
    back = norm.inverse(torch.from_numpy(output), statistics)
    assert close(back, (output - bias) / (weight + EPS**2) * stdev + shift, 1e-12)


@pytest.mark.usefixtures("in_plain_torch")
def test_outputs_may_have_axes_that_the_series_have_not() -> None:
    x, quantiles = series(4, 10, 3), RNG.normal(size=(4, 7, 3, 9))
    norm, oracle = with_parameters("n t c ... -> n c", 3, dtype=torch.float64), RevIN()
    oracle.weight, oracle.bias = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    oracle.normalise(x)
    with norm.instance(torch.from_numpy(x)) as (_, inverse):
        got = inverse(torch.from_numpy(quantiles))
    for level in range(9):
        assert close(got[..., level], oracle.inverse(quantiles[..., level]), 1e-12)


FAR = [(0, 1), (100, 0.01), (1e4, 0.01), (1e6, 1), (1e18, 1e12), (0, 1e30)]


@pytest.mark.parametrize("subtract_last", [False, True], ids=["mean", "last"])
@pytest.mark.parametrize(("mean", "std"), FAR)
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_far_series_keep_their_digits(backend: str, mean: float, std: float, subtract_last: bool) -> None:
    """float32 within 1e-6 of the exact result; there and back within 4 units in the last place."""
    x = torch.from_numpy(mean + std * RNG.normal(size=(8, 96, 3))).float()
    norm, oracle = sn.Reversible("n t c -> n c", c=3, subtract_last=subtract_last), RevIN()
    oracle.subtract_last = subtract_last
    with using(backend), torch.no_grad():
        y, statistics = norm(x)
        back = norm.inverse(y, statistics)
    assert close(y, oracle.normalise(x.numpy()), 1e-6)
    largest = np.maximum(np.abs(x.numpy()), np.maximum(np.abs(oracle.shift), oracle.stdev))
    ulp = np.spacing(largest.astype(np.float32)).astype(np.float64)
    assert (np.abs(back.double().numpy() - x.double().numpy()) <= 4 * ulp).all()
    if mean >= 1e4 * std:  # where y has digits to spare
        assert torch.equal(back, x)
    # What fails without care: the mean as one float32, and a variance around it.
    if mean == 1e6:
        rough = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + EPS).sqrt()
        assert subtract_last or not close(rough, oracle.normalise(x.numpy()), 1e-3)


@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    x = torch.from_numpy(series(4, 32, 3, mean=300)).to(dtype)  # whose squares overflow in float16
    norm, oracle = sn.Reversible("n t c -> n c", c=3), RevIN()
    y, statistics = norm(x)
    back = norm.inverse(y, statistics)
    assert y.dtype == back.dtype == dtype
    for got, wanted in (
        (y, oracle.normalise(x.double().numpy())),
        (back, oracle.inverse(y.detach().double().numpy())),
    ):
        exact = torch.from_numpy(wanted)
        ulp = torch.finfo(dtype).eps * exact.abs().clamp(min=2**-14).log2().floor().exp2()
        assert ((got.double() - exact).abs() <= 0.51 * ulp).all()


@pytest.mark.usefixtures("in_plain_torch")
def test_units_keep_their_digits_under_autocast() -> None:
    """A model that runs in bfloat16 has outputs of 8 bits; 1e6 + 1 in units of the series needs more."""
    x = torch.from_numpy(series(4, 32, 3, mean=1e6)).float()
    norm, model, oracle = sn.Reversible("n t c -> n c", c=3), nn.Linear(3, 3), RevIN()
    with torch.autocast("cpu", torch.bfloat16), norm.instance(x) as (y, inverse):
        output = model(y)
        forecast = inverse(output)
    oracle.normalise(x.numpy())
    assert (output.dtype, forecast.dtype) == (torch.bfloat16, torch.float32)
    assert close(forecast, oracle.inverse(output.detach().double().numpy()), 1e-7)


@pytest.mark.parametrize("subtract_last", [False, True], ids=["mean", "last"])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_gradients_take_the_statistics_as_constants(backend: str, subtract_last: bool) -> None:
    """As the authors' code does, which detaches them: against autograd of the formula in float64."""
    norm = with_parameters("n t c -> n c", 3, subtract_last=subtract_last)
    x = torch.from_numpy(series(4, 10, 3)).float().requires_grad_()
    mix, upstream = (torch.from_numpy(RNG.normal(size=shape)).float() for shape in ((10, 6), (4, 6, 3)))
    with using(backend), norm.instance(x) as (y, inverse):
        out = inverse(torch.einsum("ntc,th->nhc", y, mix).tanh())
        grads = torch.autograd.grad(out, (x, norm.weight, norm.bias), upstream)
    wide, weight, bias = (t.detach().double().requires_grad_() for t in (x, norm.weight, norm.bias))
    shift = (wide[:, -1:] if subtract_last else wide.mean(1, keepdim=True)).detach()
    stdev = (wide.var(1, unbiased=False, keepdim=True) + EPS).sqrt().detach()
    hidden = torch.einsum("ntc,th->nhc", (wide - shift) / stdev * weight + bias, mix.double()).tanh()
    wanted = torch.autograd.grad(
        (hidden - bias) / (weight + EPS**2) * stdev + shift, (wide, weight, bias), upstream.double()
    )
    for got, exact in zip(grads, wanted, strict=True):
        assert (got.double() - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.usefixtures("in_plain_torch")
def test_the_inverse_passes_gradcheck() -> None:
    norm = with_parameters("n t c -> n c", 2, dtype=torch.float64)
    _, statistics = norm(torch.from_numpy(series(3, 6, 2)))

    class Back(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, y: Tensor) -> Tensor:
            return self.norm.inverse(y, statistics)

    def back(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(Back(), {"norm.weight": weight, "norm.bias": bias}, (y,))

    y = torch.from_numpy(RNG.normal(size=(3, 4, 2))).requires_grad_()
    weight, bias = (t.detach().clone().requires_grad_() for t in (norm.weight, norm.bias))
    assert torch.autograd.gradcheck(back, (y, weight, bias))
    assert torch.autograd.gradgradcheck(back, (y, weight, bias))


@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("weight", [0.0, 1e-12, -1e-3])
def test_small_weights_are_divided_by_as_published(weight: float) -> None:
    norm = sn.Reversible("n t c -> n c", c=1, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.fill_(weight)
        norm.bias.fill_(0.5)
    x, output = series(2, 8, 1), RNG.normal(size=(2, 3, 1))
    oracle = RevIN(weight, 0.5)
    y, statistics = norm(torch.from_numpy(x))
    assert close(y, oracle.normalise(x), 1e-12)
    assert close(norm.inverse(torch.from_numpy(output), statistics), oracle.inverse(output), 1e-12)
    assert torch.isfinite(norm.inverse(y, statistics)).all()


# Series of different lengths


@pytest.mark.parametrize("subtract_last", [False, True], ids=["mean", "last"])
@pytest.mark.parametrize("how", ["mask", "lengths"])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_padding_enters_no_statistic_and_becomes_0(backend: str, how: str, subtract_last: bool) -> None:
    """Each padded series is normalised as it would be by itself, whatever the padding holds."""
    lengths = [12, 5, 1, 9]
    x = series(4, 12, 3, mean=1000)
    valid = np.arange(12) < np.array(lengths)[:, None]
    norm = with_parameters("n t c -> n c", 3, subtract_last=subtract_last)
    oracle = RevIN(norm.weight.detach().numpy(), norm.bias.detach().numpy(), subtract_last)
    padded = torch.from_numpy(np.where(valid[..., None], x, np.nan)).float()
    cut = {"lengths": lengths} if how == "lengths" else {"mask": torch.from_numpy(valid)[..., None]}
    output = torch.from_numpy(RNG.normal(size=(4, 7, 3))).float()
    with using(backend), norm.instance(padded, **cut) as (y, inverse):
        forecast = inverse(output)
    for sample, length in enumerate(lengths):
        alone = padded[sample : sample + 1, :length].double().numpy()
        assert close(y[sample : sample + 1, :length], oracle.normalise(alone), 2e-6)
        assert close(forecast[sample : sample + 1], oracle.inverse(output[sample : sample + 1].numpy()), 2e-6)
        assert (y[sample, length:] == 0).all()


@pytest.mark.usefixtures("in_plain_torch")
def test_masks_may_have_gaps_and_leave_nothing() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 8.0], [5.0, 6.0, 7.0, 9.0]])
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    last = sn.Reversible("n t -> n", affine="", subtract_last=True)
    y, statistics = last(x, mask=mask)
    assert statistics.shift.tolist() == [3, 0]  # the last that counts, and of nothing 0
    assert close(statistics.scale, np.sqrt([1 + EPS, EPS]), 1e-6)  # of 1 and 3, whose variance is 1
    assert close(y, np.array([[-2 / np.sqrt(1 + EPS), 0, 0, 0], [0] * 4]), 1e-6)
    everything = torch.ones(1, 1, dtype=torch.bool)  # a mask that does not vary along time
    assert last(x, mask=everything)[1].shift.tolist() == [8, 9]
    assert last(x, mask=~everything)[1].shift.tolist() == [0, 0]


# Series that are awkward


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_constant_series_and_single_steps_come_back(backend: str) -> None:
    """`y` is the bias, exactly; what a model adds to it is in units of sqrt(eps)."""
    norm = with_parameters("n t c -> n c", 2)
    for x in (torch.full((3, 9, 2), 14.62), torch.tensor([[[0.1, 3e38]], [[-7.0, 0.0]]])):
        with using(backend), norm.instance(x) as (y, inverse):
            assert torch.equal(y, norm.bias.expand_as(y))
            assert torch.equal(inverse(y), x)


def test_a_constant_series_keeps_its_forecast() -> None:
    """Normalised by one rule and mapped back by another, a forecast is lost (timesfm, issue 522).

    There a spread below 1e-6 is taken as 1 on the way there, and as it is on the way back.
    """
    x = torch.full((1, 16), 20.0)
    mu, sigma = x.mean(1, keepdim=True), x.std(1, keepdim=True, correction=0)
    asymmetric = (x - mu) / torch.where(sigma < 1e-6, 1.0, sigma)
    assert torch.equal((asymmetric + 2.0) * sigma + mu, x)  # a rise of 2, gone
    norm = sn.Reversible("n t -> n", affine="")
    with using("eager"), norm.instance(x) as (y, inverse):
        assert torch.equal(inverse(y), x)
        forecast = inverse(y + 2.0)
    assert close(forecast, np.full((1, 16), 20 + 2 * np.sqrt(EPS)), 1e-7)


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_nan_stays_in_its_series(backend: str) -> None:
    x = torch.from_numpy(series(3, 10, 2)).float()
    clean, oracle = sn.Reversible("n t c -> n c", c=2), RevIN()
    wanted = oracle.normalise(x.numpy())
    x[1, 4, 0] = torch.nan
    with using(backend), clean.instance(x) as (y, inverse):
        back = inverse(y)
    bad = torch.zeros(3, 10, 2, dtype=torch.bool)
    bad[1, :, 0] = True
    assert torch.equal(y.isnan(), bad)
    assert torch.equal(back.isnan(), bad)
    assert close(y[~bad], wanted[~bad.numpy()], 1e-6)


@pytest.mark.parametrize("subtract_last", [False, True], ids=["mean", "last"])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_batch_of_nothing_and_series_of_nothing(backend: str, subtract_last: bool) -> None:
    norm = sn.Reversible("n t c -> n c", c=2, subtract_last=subtract_last)
    for cut in ({}, {"lengths": torch.empty(0, dtype=torch.int64)}):
        with using(backend), norm.instance(torch.empty(0, 5, 2), **cut) as (y, inverse):
            assert inverse(torch.empty(0, 3, 2)).shape == (0, 3, 2)
        assert y.shape == (0, 5, 2)
        y.sum().backward()
        assert norm.weight.grad.tolist() == [0, 0]
    with pytest.raises(ShapeError, match='x has no element along the axes that "n t c -> n c" pools over'):
        norm(torch.empty(3, 0, 2))


@pytest.mark.usefixtures("in_plain_torch")
def test_what_is_no_series_of_floats_is_refused() -> None:
    norm = sn.Reversible("n t c -> n c", c=2)
    with pytest.raises(DtypeError, match="x must be float32"):
        norm(torch.ones(3, 5, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"Axis 2 \(`c`\) has size 3, but c=2 was given"):
        norm(torch.ones(3, 5, 3))
    _, statistics = norm(torch.ones(3, 5, 2))
    with pytest.raises(DtypeError, match="y must be float32"):
        norm.inverse(torch.ones(3, 5, 2, dtype=torch.int64), statistics)
    with pytest.raises(DeviceError, match="y is on meta, but the statistics are on cpu"):
        norm.inverse(torch.ones(3, 5, 2, device="meta"), statistics)
    with pytest.raises(OptionError, match="statistics must be those of the series"):
        norm.inverse(torch.ones(3, 5, 2), torch.ones(3, 2))  # type: ignore[arg-type]


REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("n t c -> c", {"c": 2}, PatternError, "pools over samples"),
    ("(a n) t -> n", {"affine": "", "a": 2}, PatternError, "pools over samples"),
    ("n t c -> n t c", {"c": 2}, PatternError, "pools over no axis"),
    ("n t -> n", {}, PatternError, "has no axis `c` for weight and bias"),
    ("n t c -> n c", {}, PatternError, "The size of 'c' is missing"),
    ("n t c -> n c", {"c": 2, "eps": -1.0}, OptionError, "eps must be"),
]


@pytest.mark.parametrize(("pattern", "options", "error", "says"), REFUSED, ids=[case[3] for case in REFUSED])
def test_what_cannot_be_reversible_is_refused(
    pattern: str, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        sn.Reversible(pattern, **options)


@pytest.mark.usefixtures("in_plain_torch")
def test_the_last_value_of_several_axes_is_refused() -> None:
    norm = sn.Reversible("n t c -> n", c=2, subtract_last=True)
    with pytest.raises(OptionError, match='"n t c -> n" pools 2'):
        norm(torch.ones(3, 5, 2))


# The block


@pytest.mark.usefixtures("in_plain_torch")
class TestBlock:
    norm, x = sn.Reversible("n t c -> n c", c=2), torch.arange(24.0).reshape(3, 4, 2)

    def test_cannot_end_without_its_inverse(self) -> None:
        with (
            pytest.raises(ModelError, match="its inverse was never called") as raised,
            self.norm.instance(self.x),
        ):
            pass
        assert "inverse.unused()" in str(raised.value)
        with self.norm.instance(self.x) as (_, inverse):
            inverse.unused()

    def test_lets_an_exception_pass(self) -> None:
        with pytest.raises(ZeroDivisionError), self.norm.instance(self.x):
            raise ZeroDivisionError

    def test_a_failed_inverse_is_none(self) -> None:
        def guarded() -> None:
            with self.norm.instance(self.x) as (y, inverse), pytest.raises(ShapeError):
                inverse(y[:2])

        with pytest.raises(ModelError, match="never called"):
            guarded()

    def test_has_no_inverse_outside(self) -> None:
        block = self.norm.instance(self.x)
        with pytest.raises(ModelError, match="outside the block"):
            block(self.x)
        with block as (y, inverse):
            inverse(y)
        with pytest.raises(ModelError, match="outside the block"):
            inverse(y)
        with pytest.raises(ModelError, match="never called"), block:  # a second time, without it
            pass

    @pytest.mark.parametrize("shape", [(2, 4, 2), (3, 4, 1)], ids=["samples", "channels"])
    def test_refuses_outputs_of_other_sizes(self, shape: tuple[int, ...]) -> None:
        norm = sn.Reversible("n t c -> n c", affine="")
        with norm.instance(self.x) as (_, inverse):
            with pytest.raises(ShapeError) as raised:
                inverse(torch.zeros(shape))
            inverse.unused()
        assert str((shape[0], shape[2])) in str(raised.value)

    def test_knows_its_own_statistics(self) -> None:
        """Two blocks at once, where a layer that keeps statistics would map one back with the other's."""
        far, oracles = self.x * 3 + 100, (RevIN(), RevIN())
        wanted = [oracle.normalise(x.numpy()) for oracle, x in zip(oracles, (self.x, far), strict=True)]
        with self.norm.instance(self.x) as (y, inverse), self.norm.instance(far) as (z, inverse_far):
            got = inverse(z), inverse_far(y)
        assert close(got[0], oracles[0].inverse(wanted[1]), 1e-6)
        assert close(got[1], oracles[1].inverse(wanted[0]), 1e-6)


# What torch records


class Forecaster(nn.Module):
    """Ten steps in, four out: in a block or with statistics carried along."""

    def __init__(self, block: bool, **options: Any) -> None:
        super().__init__()
        self.norm, self.linear = with_parameters("n t c -> n c", 3, **options), nn.Linear(10, 4)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        if self.block:
            with self.norm.instance(x) as (y, inverse):
                forecast: Tensor = inverse(self.linear(y.mT).mT)
            return forecast
        y, statistics = self.norm(x)
        return self.norm.inverse(self.linear(y.mT).mT, statistics)


def compiled(model: nn.Module, x: Tensor) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")


def exported(model: nn.Module, x: Tensor) -> Callable[..., Any]:
    return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()


def by_onnx(model: nn.Module, x: Tensor) -> Callable[..., Any]:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    program = torch.onnx.export(
        model.eval(), (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False
    )
    assert program is not None
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    (given,) = session.get_inputs()
    return lambda x: torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("way", "block", "subtract_last"),
    [
        (compiled, True, False),
        (compiled, False, True),
        (exported, True, True),
        (exported, False, False),
        (by_onnx, True, True),
    ],
)
def test_forecasters_are_recorded(way: Any, block: bool, subtract_last: bool) -> None:
    """One graph for batches of any size, with the results of the formula in float64, far from 0."""
    model = Forecaster(block, subtract_last=subtract_last)
    recorded = way(model, torch.from_numpy(series(3, 10, 3)).float())
    x = torch.from_numpy(series(5, 10, 3, mean=1e6)).float()
    oracle = RevIN(model.norm.weight.detach().numpy(), model.norm.bias.detach().numpy(), subtract_last)
    weight, bias = (t.detach().double().numpy() for t in model.linear.parameters())
    hidden = np.einsum("ntc,ht->nhc", oracle.normalise(x.numpy()), weight) + bias[:, None]
    assert close(recorded(x), oracle.inverse(hidden), 3e-7)  # 2.5 units in the last place of 1e6


def test_padded_series_are_compiled_and_learned_from() -> None:
    norm = with_parameters("n t c -> n c", 3, subtract_last=True)
    x = torch.from_numpy(series(4, 8, 3)).float().requires_grad_()
    lengths = torch.tensor([8, 3, 1, 5])

    def call(x: Tensor, lengths: Tensor) -> Tensor:
        with norm.instance(x, lengths=lengths) as (y, inverse):
            return inverse(y.square())

    torch._dynamo.reset()
    got = torch.compile(call, fullgraph=True, backend="aot_eager")(x, lengths)
    grads = torch.autograd.grad(got.sum(), (x, norm.weight, norm.bias))
    with using("eager"):
        wanted = call(x, lengths)
    assert close(got, wanted.detach().double().numpy(), 1e-6)
    exact = torch.autograd.grad(wanted.sum(), (x, norm.weight, norm.bias))
    for grad, other in zip(grads, exact, strict=True):
        assert torch.allclose(grad, other, rtol=1e-5, atol=1e-6)
    assert (grads[0][1, 3:] == 0).all()
    assert (grads[0][1, :3] != 0).any()


WRITTEN = [
    (sn.Reversible("n t c -> n c", c=3), (2, 5, 3)),
    (sn.Reversible("n t -> n", affine="", eps=0.0), (2, 5)),
    (sn.Reversible("n (g c) t -> n g c", g=2, c=3, affine="c", subtract_last=True), (2, 6, 5)),
]


@pytest.mark.parametrize(("norm", "shape"), WRITTEN, ids=[repr(norm) for norm, _ in WRITTEN])
def test_a_layer_can_be_written_down_copied_and_stored(norm: sn.Reversible, shape: tuple[int, ...]) -> None:
    again = eval(repr(norm), {"Reversible": sn.Reversible})
    assert repr(again) == repr(norm) == repr(copy.deepcopy(norm))
    if norm.weight is not None:
        nn.init.constant_(norm.weight, 3.0)
    again.load_state_dict(norm.state_dict())
    assert set(norm.state_dict()) == (set() if norm.weight is None else {"weight", "bias"})
    x = torch.from_numpy(series(*shape)).float()
    with using("eager"):
        assert torch.equal(again(x)[0], norm(x)[0])
