"""The Triton kernels under the laws: on a GPU where there is one, elsewhere in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import slabnorm as sn
from slabnorm import slab as slabs
from slabnorm.kernels import eager, using
from slabnorm.kernels.activations import ACTIVATIONS
from slabnorm.kernels.backend import choose
from slabnorm.notation import parse
from slabnorm.prepare import forget
from tests import laws
from tests.cases import CONSTANTS, DISTRIBUTIONS, LAYOUTS, NORMS, Case, draw, of_rank

pytest.importorskip("triton", reason="the GPU kernels need Triton")
from slabnorm.kernels.gpu import tiling

# The interpreter computes with NumPy, which warns of what a GPU takes silently.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BY_NAME = {case.name: case for case in NORMS}
# The interpreter takes 0.2 ms an operation, however many elements that has: a quarter of the runs.
BY_NAME |= {case.name: case for case in of_rank(4, n=3, space=(5, 6))}
GATED = [name for name in DISTRIBUTIONS if name not in CONSTANTS]
# Tiles so small that every loop turns: one kernel in one tile, one kernel in many, reduce, merge and apply.
_TILES = {"SWEEP": 512, "SMALL": 64, "WHOLE": {False: 1, True: 1}}
MODES = {"one": {"FILL": 1}, "many": {"FILL": 1, **_TILES}, "split": {"FILL": 1 << 30, **_TILES}}
# A norm and an order of memory for each kind of tile (addressing.py), and of merge.
KINDS = {
    "rows": ("batch-4d", "contiguous"),
    "rows-of-runs": ("layer-sample-3d", "contiguous"),
    "rows-mixed": ("layer-token-2d", "contiguous"),
    "rows-mixed-whole": ("layer-full-4d", "contiguous"),
    "columns": ("batch-4d", "channels_last"),
    "columns-of-slabs": ("group-4d", "channels_last"),
    "columns-mixed": ("channel-4d", "contiguous"),
    "one-slab": ("everything-4d", "channels_last"),
}
kinds = pytest.mark.parametrize("kind", KINDS)
modes = pytest.mark.parametrize("mode", MODES, indirect=True)


@pytest.fixture(autouse=True)
def _through_triton() -> Iterator[None]:
    forget()  # what other tests have planned with other constants
    with using("gpu"):
        some = torch.ones(2, 8, device=DEVICE)
        assert choose(some, slabs.plan(parse("n c -> n"), (), (2, 8), ()))[0].NAME == "gpu"
        yield
    forget()


@pytest.fixture
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in MODES[request.param].items():
        monkeypatch.setattr(tiling, name, value)
    return request.param


def inputs(kind: str, distribution: str = "normal", dtype: torch.dtype = torch.float32, seed: int = 0):
    name, layout = KINDS[kind]
    case = BY_NAME[name]
    return case, LAYOUTS[layout](draw(case.shape, distribution, dtype, seed).to(DEVICE))


def exact(case: Case, done: laws.Run, activation: str | None = None) -> laws.Exact:
    return laws.oracle(
        case, done.x, done.weight, done.bias, done.dy, activation=activation, residual=done.residual
    )


@modes
@kinds
def test_gates_on_every_distribution(kind: str, mode: str) -> None:
    few = {"many": ("normal", "sorted"), "split": ("normal", "1e6 +- 1", "times 1e30")}
    # In one tile every kind sums as rows or columns do (moments.py), or merges pieces; the others see what is
    # hard.
    whole = ("rows", "columns", "rows-mixed", "columns-of-slabs")
    hard = GATED if kind in whole else ("1e6 +- 1", "times 1e30", "denormal")
    for name in few.get(mode, hard):
        case, x = inputs(kind, name)
        done = laws.run(case, x)
        truth = exact(case, done)
        if truth.kappa <= 2e6:
            laws.output_is_exact(case, done, truth)
        if truth.kappa <= 1e4:
            laws.gradients_are_exact(case, done, truth)


@pytest.mark.parametrize("mode", ["one"], indirect=True)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", [case for case in NORMS if not case.name.endswith("large")], ids=str)
def test_every_norm(case: Case, layout: str, mode: str) -> None:
    x = LAYOUTS[layout](draw(case.shape).to(DEVICE))
    done = laws.run(case, x)
    truth = exact(case, done)
    laws.output_is_exact(case, done, truth)
    laws.gradients_are_exact(case, done, truth)
    assert done.y.stride() == x.stride()


@pytest.mark.parametrize("mode", ["one", "split"], indirect=True)
@kinds
def test_half_precision_is_rounded_once(kind: str, mode: str) -> None:
    dtype = torch.bfloat16 if mode == "one" else torch.float16
    for name in ("100 +- 0.01", "cauchy") if mode == "one" else ("normal",):
        case, x = inputs(kind, name, dtype)
        done = laws.run(case, x)
        laws.output_is_exact(case, done, exact(case, done))
        assert done.dx.dtype == dtype
        assert done.dweight.dtype == torch.float32


@pytest.mark.parametrize("mode", ["one", "split"], indirect=True)
@kinds
def test_constant_slab_gives_bias(kind: str, mode: str) -> None:
    for name in CONSTANTS if mode == "one" else ("constant 3e38",):
        case, x = inputs(kind, name)
        laws.constant_gives_bias(case, laws.run(case, x))


@pytest.mark.parametrize("mode", ["one", "split"], indirect=True)
@kinds
def test_a_fault_stays_in_its_slab(kind: str, mode: str) -> None:
    case, clean = inputs(kind)
    where, fault = (0, float("nan")) if mode == "split" else (clean.numel() // 2, float("inf"))
    dirty = draw(case.shape)
    dirty.reshape(-1)[where] = fault
    dirty = LAYOUTS[KINDS[kind][1]](dirty.to(DEVICE))
    laws.only_its_slab(case, laws.run(case, clean), laws.run(case, dirty), where)


@pytest.mark.parametrize("mode", ["split"], indirect=True)
@kinds
def test_repeats_bit_for_bit(kind: str, mode: str) -> None:
    case, x = inputs(kind)
    laws.same_bits(case, laws.run(case, x), laws.run(case, x))


ACTIVATED = [("rows", name) for name in ACTIVATIONS] + [(kind, "silu") for kind in KINDS if kind != "rows"]
# Four elements to a weight: where silu's slope crosses 0 one term is all rounding, on the CPU as here.
ACTIVATED.remove(("rows-mixed-whole", "silu"))
ACTIVATED.append(("rows-mixed-whole", "leaky_relu"))


@pytest.mark.parametrize("mode", ["one", "split"], indirect=True)
@pytest.mark.parametrize(("kind", "activation"), ACTIVATED)
def test_activation_and_residual_are_exact(kind: str, activation: str, mode: str) -> None:
    case, x = inputs(kind)
    done = laws.run(case, x, activation=activation, residual=True)
    truth = exact(case, done, activation)
    laws.output_is_exact(case, done, truth)
    laws.gradients_are_exact(case, done, truth)


@kinds
def test_given_statistics_are_constants(kind: str) -> None:
    """Eval mode: as float64 has it, forward and backward."""
    case, x = inputs(kind)
    m = sn.moments(x, case.pattern, **case.sizes)
    weight, dy = (draw(shape, seed=3).to(DEVICE) for shape in (case.weight_shape, case.shape))

    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        tensors = [t.to(dtype).requires_grad_() for t in (x, weight)]
        options = {"mean": m.mean + 0.5 if case.center else None, "var": 2 * m.var(), **case.options}
        y = sn.normalize(tensors[0], case.pattern, weight=tensors[1], **options)
        return [y, *torch.autograd.grad(y, tensors, dy.to(dtype))]

    for got, want in zip(run(torch.float32), run(torch.float64), strict=True):
        assert (got - want).abs().max() <= 2e-6 * want.abs().max()


@kinds
def test_double_backward(kind: str) -> None:
    case, x = inputs(kind)

    def penalty(dtype: torch.dtype) -> list[torch.Tensor]:
        dy = draw(case.shape, seed=1).to(DEVICE, dtype).requires_grad_()
        weight = draw(case.weight_shape, seed=2).to(DEVICE, dtype).requires_grad_()
        at = x.to(dtype).requires_grad_()
        y = sn.normalize(at, case.pattern, weight=weight, **case.options)
        (dx,) = torch.autograd.grad(y, at, dy, create_graph=True)
        return list(torch.autograd.grad(dx.square().sum(), (at, weight, dy)))

    for got, want in zip(penalty(torch.float32), penalty(torch.float64), strict=True):
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()


def test_every_dtype_and_absence_of_weight_and_bias() -> None:
    case, x = inputs("rows")
    plain = sn.normalize(x, case.pattern)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        one = torch.ones(case.weight_shape, dtype=dtype, device=DEVICE, requires_grad=True)
        y = sn.normalize(x, case.pattern, weight=one)
        assert torch.equal(y, plain)
        (y * x.square()).sum().backward()
        assert one.grad.dtype == dtype
        want = (y.double() * x.double().square()).sum((0, 2, 3))
        assert torch.allclose(one.grad.double(), want, rtol=8e-3 if dtype == torch.bfloat16 else 1e-5)
    zero = torch.zeros(case.weight_shape, device=DEVICE, requires_grad=True)
    y = sn.normalize(x, case.pattern, bias=zero)
    assert torch.equal(y, plain)
    y.sum().backward()
    assert torch.equal(zero.grad, torch.full_like(zero, x.numel() // 6))


@pytest.mark.parametrize("mode", ["one", "split"], indirect=True)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_numbers_whose_differences_overflow(dtype: torch.dtype, layout: str, mode: str) -> None:
    """A filler at the end of the range, first in its slab or not. The interpreter cuts where a GPU rounds."""
    largest = torch.finfo(dtype).max
    for where, value in ((0, largest), (0, -largest), (77, largest)):
        x = draw((2, 6, 9, 10))
        x.view(-1)[where] = value
        x.view(-1)[where + 1] = -value
        x = LAYOUTS[layout](x.to(DEVICE, dtype))
        for pattern in ("n c h w -> n", "n c h w -> c"):
            y, want = (sn.normalize(t, pattern).double() for t in (x, x.double()))
            assert (y - want).abs().max() <= (1e-5 if dtype == torch.float32 else 8e-3) * want.abs().max()


@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_other_strides(layout: str) -> None:
    for name in ("batch-4d", "group-4d", "channel-4d"):
        case = BY_NAME[name]
        x = LAYOUTS[layout](draw(case.shape).to(DEVICE))
        done = laws.run(case, x)
        laws.output_is_exact(case, done, exact(case, done))


def test_offsets_beyond_31_bits() -> None:
    """Rows 2^31 elements apart: only the pages that are touched take memory."""
    apart = (1 << 31) + 64
    far = torch.empty(apart + 640, dtype=torch.bfloat16, device=DEVICE).as_strided(
        (2, 5, 128), (apart, 128, 1)
    )
    near = draw((2, 5, 128), dtype=torch.bfloat16).to(DEVICE)
    far.copy_(near)
    assert far.stride()[0] == apart
    for pattern in ("n t c -> n", "n t c -> c", "n t c -> n t"):
        assert torch.equal(sn.normalize(far, pattern), sn.normalize(near, pattern))


@modes
def test_runs_that_32_bits_cannot_number(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are cut, or left to torch."""
    monkeypatch.setattr(tiling, "LONG", 100)
    for name in ("everything-4d", "instance-4d", "layer-sample-4d"):
        case = BY_NAME[name]
        done = laws.run(case, draw(case.shape).to(DEVICE))
        laws.output_is_exact(case, done, exact(case, done))
        laws.gradients_are_exact(case, done, exact(case, done))
    for shape, why in (((2, 211), "a prime"), ((101, 2), "blocks"), ((101, 3), "slabs")):
        x = draw(shape, seed=1).to(DEVICE)
        assert choose(x, slabs.plan(parse("n c -> n"), (), shape, ()))[0] is eager, why


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_running_statistics(dtype: torch.dtype) -> None:
    """A step updates them as torch does; a batch with a NaN is counted, and changes nothing else."""
    ours, theirs = sn.BatchNorm(6).to(DEVICE), torch.nn.BatchNorm2d(6).to(DEVICE)
    x = 3 + draw((4, 6, 5, 7)).to(DEVICE, dtype)
    for step in (1, 2):
        ours(x * step)
        theirs(x.float() * step)
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-6, atol=1e-6)
    before = {name: t.clone() for name, t in ours.named_buffers()}
    x[1, 2, 3, 4] = float("nan")
    ours(x)
    skipped = before.pop("num_batches_skipped")
    assert ours.num_batches_skipped == skipped + 1
    for name, t in before.items():
        assert torch.equal(getattr(ours, name), t), name
    ours.eval()
    assert ours(torch.zeros_like(x)).isfinite().all()
