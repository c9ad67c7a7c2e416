"""Every norm under every law, through whichever kernel takes it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import slabnorm as sn
from slabnorm.kernels import using
from slabnorm.kernels.activations import ACTIVATIONS
from slabnorm.kernels.backend import Name, choose
from slabnorm.kernels.cpu import plans
from slabnorm.kernels.layout import Layout
from slabnorm.notation import parse
from slabnorm.prepare import forget
from slabnorm.slab import Slab, plan
from tests import laws
from tests.cases import CONSTANTS, DISTRIBUTIONS, LAYOUTS, NORMS, Case, draw

BY_NAME = {case.name: case for case in NORMS}
GATED = [name for name in DISTRIBUTIONS if name not in CONSTANTS]
norms = pytest.mark.parametrize("case", NORMS, ids=str)
centring = pytest.mark.parametrize("case", [case for case in NORMS if case.center], ids=str)


small = pytest.mark.parametrize("case", [case for case in NORMS if not case.name.endswith("large")], ids=str)


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [(torch.float32, "cpu"), (torch.float64, "cpu"), (torch.float32, "eager"), (torch.float64, "eager")],
    ids=["float32-cpu", "float64-cpu", "float32-eager", "float64-eager"],
)
@norms
def test_gates_on_every_distribution(case: Case, dtype: torch.dtype, backend: Name) -> None:
    for name in GATED:
        x = draw(case.shape, name, dtype)
        with using(backend):
            done = laws.run(case, x)
        exact = laws.oracle(case, x, done.weight, done.bias, done.dy)
        limit = 1e6 if dtype == torch.float32 else 1e12
        if exact.kappa <= 2 * limit:
            laws.output_is_exact(case, done, exact)
        if exact.kappa <= 1e4:
            laws.gradients_are_exact(case, done, exact)


# float16 is as bfloat16 but for how an element is read and written.
HALF = [(case, torch.bfloat16) for case in NORMS]
HALF.append((BY_NAME["batch-4d"], torch.float16))


@pytest.mark.parametrize(("case", "dtype"), HALF, ids=str)
def test_half_precision_is_rounded_once(case: Case, dtype: torch.dtype) -> None:
    for name in ("normal", "100 +- 0.01", "cauchy", "alternating"):
        x = draw(case.shape, name, dtype)
        if dtype == torch.float16:
            x = x.clamp(-6e4, 6e4)
        done = laws.run(case, x)
        laws.output_is_exact(case, done, laws.oracle(case, x, done.weight, done.bias, done.dy))
        assert done.y.dtype == dtype
        assert done.dx.dtype == dtype
        assert done.dweight.dtype == torch.float32


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
@norms
def test_every_layout(case: Case, layout: str) -> None:
    for name in ("normal", "1e6 +- 1"):
        plain = draw(case.shape, name)
        x = LAYOUTS[layout](plain)
        done = laws.run(case, x)
        exact = laws.oracle(case, x, done.weight, done.bias, done.dy)
        laws.output_is_exact(case, done, exact)
        if name == "normal":
            laws.gradients_are_exact(case, done, exact)
        dense = layout != "strided"
        assert not dense or done.y.stride() == x.stride()


@norms
def test_expanded_input(case: Case) -> None:
    row = draw((1, *case.shape[1:]))
    wide, copied = row.expand(case.shape), row.expand(case.shape).contiguous()
    done = laws.run(case, wide)
    laws.output_is_exact(case, done, laws.oracle(case, copied, done.weight, done.bias, done.dy))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@centring
def test_constant_slab_gives_bias(case: Case, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16:
        x = draw(case.shape, "constant 14.62", dtype)
        generator = torch.Generator().manual_seed(1)
        bias = torch.randn(case.weight_shape, generator=generator).to(dtype)
        y = sn.normalize(x, case.pattern, bias=bias, **case.options)
        assert set(y.unique().tolist()) == set(bias.unique().tolist())
        return
    for name in CONSTANTS:
        laws.constant_gives_bias(case, laws.run(case, draw(case.shape, name, dtype)))


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), float("-inf")], ids=str)
@norms
def test_a_fault_stays_in_its_slab(case: Case, fault: float) -> None:
    clean = draw(case.shape)
    for where in (0, clean.numel() // 2, clean.numel() - 1):
        dirty = clean.clone()
        dirty.reshape(-1)[where] = fault
        laws.only_its_slab(case, laws.run(case, clean), laws.run(case, dirty), where)


@small
def test_gradcheck_twice(case: Case) -> None:
    # Every element is moved: few of them, but three or more in a slab.
    most = (3, 6, 3, 3) if len(case.shape) < 4 else (2, 6, 2, 3) if len(case.shape) == 4 else (2, 6, 2, 2, 2)
    few = tuple(map(min, case.shape, most))
    x = draw(few, dtype=torch.float64).requires_grad_()
    shape = list(case.weight_shape)
    if case.affine is None:
        shape = [few[-1] if "c -> ..." in case.pattern else few[1]]
    elif case.affine == "c h w":
        shape = list(few[1:])
    else:
        shape = [few[3], few[2]]
    weight, bias = (draw(tuple(shape), dtype=torch.float64, seed=s).requires_grad_() for s in (1, 2))

    def call(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return sn.normalize(x, case.pattern, weight=weight, bias=bias, eps=0.1, **case.options)

    assert torch.autograd.gradcheck(call, (x, weight, bias))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias))
    kept = sn.moments(x, case.pattern, **case.sizes)
    mean = 0.5 + kept.mean if case.center else None

    def held(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        options = {**case.options, "mean": mean, "var": 2 * kept.var() + 0.1}
        return sn.normalize(x, case.pattern, weight=weight, bias=bias, **options)

    assert torch.autograd.gradcheck(held, (x, weight, bias))
    assert torch.autograd.gradgradcheck(held, (x, weight, bias))


@norms
def test_double_backward_through_the_kernel(case: Case) -> None:
    """float32 through the kernel against float64: a gradient penalty, as in a WGAN."""

    def penalty(dtype: torch.dtype) -> list[torch.Tensor]:
        x, dy = (draw(case.shape, seed=s).to(dtype).requires_grad_() for s in (0, 1))
        weight = draw(case.weight_shape, seed=2).to(dtype).requires_grad_()
        y = sn.normalize(x, case.pattern, weight=weight, **case.options)
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
        return list(torch.autograd.grad(dx.square().sum(), (x, weight, dy)))

    for got, want in zip(penalty(torch.float32), penalty(torch.float64), strict=True):
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()


@norms
def test_repeats_bit_for_bit(case: Case) -> None:
    x = draw(case.shape)
    first = laws.run(case, x)
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            laws.same_bits(case, first, laws.run(case, x))
        finally:
            torch.set_num_threads(before)


_FOUR_THREADS = """
import hashlib, torch
torch.set_num_threads({threads})
from tests import laws
from tests.cases import NORMS, LAYOUTS, draw
digest = hashlib.sha256()
for case in NORMS:
    for layout in ("contiguous", "channels_last"):
        for result in laws.run(case, LAYOUTS[layout](draw(case.shape))).results:
            digest.update(result.contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


def test_one_two_and_four_threads_give_the_same_bits() -> None:
    """In processes of their own: a pool keeps the size it started with."""
    digests = set()
    for threads in (1, 2, 4):
        done = subprocess.run(
            [sys.executable, "-c", _FOUR_THREADS.format(threads=threads)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        digests.add(done.stdout.strip())
    assert len(digests) == 1


@norms
def test_given_statistics_are_constants(case: Case) -> None:
    """Eval mode: y is affine in x, and the gradient is weight * rstd * dy."""
    x = draw(case.shape).requires_grad_()
    m = sn.moments(x, case.pattern, **case.sizes)
    mean = m.mean + 0.5 if case.center else None
    if not case.center:  # a mean is not subtracted, even if it is given
        ignored = sn.normalize(x, case.pattern, mean=m.mean + 0.5, var=m.var(), **case.options)
        assert torch.equal(ignored, sn.normalize(x, case.pattern, var=m.var(), **case.options))
    weight = draw(case.weight_shape, seed=3).requires_grad_()
    y = sn.normalize(x, case.pattern, weight=weight, mean=mean, var=2 * m.var(), **case.options)
    wide = sn.normalize(
        x.double(), case.pattern, weight=weight.double(), mean=mean, var=2 * m.var(), **case.options
    )
    assert (y - wide).abs().max() < 1e-6
    dy = draw(case.shape, seed=4)
    dx, dweight = torch.autograd.grad(y, (x, weight), dy)
    step = 1e-3
    moved = sn.normalize(
        x.double() + step * dy,
        case.pattern,
        weight=weight.double(),
        mean=mean,
        var=2 * m.var(),
        **case.options,
    )
    slope = ((moved - wide) / step * dy).sum()  # <J dy, dy> = <dy, J^T dy> of an affine map
    assert abs(slope - (dx * dy).sum()) <= 1e-4 * (dx * dy).abs().sum()
    assert (
        abs((dweight * weight).sum() - (y * dy).sum()) <= 1e-4 * (y * dy).abs().sum()
    )  # y is linear in weight


@norms
def test_empty_batch(case: Case) -> None:
    shape = (0, *case.shape[1:])
    x = torch.zeros(shape, requires_grad=True)
    weight, bias = (torch.ones(case.weight_shape, requires_grad=True) for _ in range(2))
    y = sn.normalize(x, case.pattern, weight=weight, bias=bias, **case.options)
    assert y.shape == shape
    dx, dweight, dbias = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert dx.shape == shape
    assert dweight.eq(0).all()
    assert dbias.eq(0).all()


@pytest.mark.parametrize("layout", list(LAYOUTS))
@norms
def test_the_fast_kernel_takes(case: Case, layout: str) -> None:
    """Every norm and layout but the few whose axes alternate too often, or lie askew."""
    x = LAYOUTS[layout](draw(case.shape))
    name = choose(x, _slab(case, x))[0].NAME
    assert name == ("eager" if (case.name, layout) in EAGER else "cpu")


# Case and layout that no Layout describes.
EAGER = {("per-element-affine-4d", "channels_last")}


def _slab(case: Case, x: torch.Tensor) -> Slab:
    pattern = parse(case.pattern)
    return plan(pattern, pattern.affine(case.affine), tuple(x.shape), tuple(case.sizes.items()))


@pytest.mark.parametrize("how", ["tasks", "shared"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@norms
def test_threads_change_no_bit(case: Case, layout: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the work is shared out, also where it is too small to be."""
    x = LAYOUTS[layout](draw(case.shape))
    serial = laws.run(case, x)
    forget()
    monkeypatch.setattr(plans, "_GRAIN", 0)
    monkeypatch.setattr(
        Layout, "shared", lambda self, threads: how == "shared" and not (self.rows and self.mixed)
    )
    laws.same_bits(case, serial, laws.run(case, x))
    forget()


ROWS, COLUMNS = ("batch-4d", "contiguous"), ("batch-4d", "channels_last")
ROWS_MIXED, COLUMNS_MIXED = ("layer-token-4d", "contiguous"), ("channel-4d", "contiguous")


@pytest.mark.parametrize(
    ("where", "activation", "residual", "dtype"),
    [
        *((ROWS, name, False, torch.float32) for name in ACTIVATIONS),
        *((where, "silu", True, torch.float32) for where in (ROWS, COLUMNS, ROWS_MIXED, COLUMNS_MIXED)),
        (ROWS, "gelu", True, torch.bfloat16),
        (ROWS, "hardswish", True, torch.float64),
        (ROWS, "gelu", True, torch.float64),
        (COLUMNS, None, True, torch.float16),
    ],
    ids=str,
)
def test_activation_and_residual_are_exact(
    where: tuple[str, str], activation: str | None, residual: bool, dtype: torch.dtype
) -> None:
    """Every activation once, and one of them in every kind of layout."""
    case, layout = BY_NAME[where[0]], where[1]
    done = laws.run(
        case, LAYOUTS[layout](draw(case.shape, dtype=dtype)), activation=activation, residual=residual
    )
    exact = laws.oracle(
        case, done.x, done.weight, done.bias, done.dy, activation=activation, residual=done.residual
    )
    laws.output_is_exact(case, done, exact)
    if dtype in laws.GATES:
        laws.gradients_are_exact(case, done, exact)


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00001, 0x7FC00080], ids=hex)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_any_nan_stays_nan(activation: str, bits: int) -> None:
    """Not the usual one alone: a GPU's has all bits set, and so has memory that was filled with ones."""
    x = draw((4, 64)).requires_grad_()
    with torch.no_grad():
        x.view(torch.int32)[1, 3] = torch.tensor(bits, dtype=torch.int64).to(torch.int32)
    y = sn.normalize(x, "n c -> n", activation=activation)
    (dx,) = torch.autograd.grad(y.sum(), x)
    for t in (y, dx):
        assert t[1].isnan().all()
        assert t[[0, 2, 3]].isfinite().all()
    given = {"mean": torch.zeros(4), "var": torch.ones(4)}
    assert sn.normalize(x, "n c -> n", activation=activation, **given).isnan().sum() == 1
