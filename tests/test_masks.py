"""Masks, lengths and segments: each slab as if it were computed alone, without what does not count."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import slabnorm as sn
from slabnorm import packing
from slabnorm.errors import (
    DeviceError,
    DtypeError,
    OptionError,
    PatternError,
    ShapeError,
    StatisticsError,
)
from slabnorm.kernels import using
from slabnorm.kernels.backend import Name
from tests.cases import LAYOUTS, NORMS, Case, draw, of_rank

EPS = 1e-5
# Small ones of every norm; of the others those that spell their axes out.
CASES = [*of_rank(2, n=7), *of_rank(3, n=5, space=(7,)), *of_rank(4, n=4, space=(3, 5))]
CASES += [case for case in NORMS if case.shape == (4, 6, 5, 7) and case.name != "everything-4d"]
ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda p: p, "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "tanh": torch.tanh,
}  # fmt: skip


def indices(case: Case, dims: tuple[int, ...]) -> Tensor:
    """For every element the position along some dims of the split tensor, as one number, outermost first."""
    number = torch.zeros(case.split, dtype=torch.int64)
    for dim in dims:
        steps = torch.arange(case.split[dim]).reshape([-1 if d == dim else 1 for d in range(len(case.split))])
        number = number * case.split[dim] + steps
    return number.reshape(-1)


def alone(
    case: Case, x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None,
    activation: str | None = None, segments: Tensor | None = None, eps: float = EPS,
) -> Tensor:  # fmt: skip
    """Normalise each slab by itself, from the elements that count alone, in float64."""
    at = mask.expand(case.shape).reshape(-1).nonzero().squeeze(1)
    slab = indices(case, tuple(dim for dim in range(len(case.split)) if dim not in case.pooled))
    if segments is not None:
        slab = slab + (slab.max() + 1) * segments[indices(case, (0,))]
    found, slab = slab[at].unique(return_inverse=True)
    member = F.one_hot(slab, max(1, len(found))).T.double()  # [slab, element]
    count = member.sum(1)
    wide = x.double().reshape(-1)[at]
    if case.center:
        wide = wide - (member @ wide / count)[slab]
    var = member @ wide.square() / count
    cell = indices(case, case.varying)[at]
    p = wide / (var[slab] + eps).sqrt() * weight.double().reshape(-1)[cell] + bias.double().reshape(-1)[cell]
    if residual is not None:
        p = p + residual.double().reshape(-1)[at]
    y = torch.zeros(x.numel(), dtype=torch.float64).index_put((at,), ACTIVATIONS[activation](p))
    return y.reshape(case.shape)


def slab_counts(case: Case, mask: Tensor) -> Tensor:
    return mask.expand(case.shape).reshape(case.split).sum(case.pooled)


def draw_mask(case: Case, generator: torch.Generator) -> Tensor:
    """A mask of random axes; no slab that pools samples is left with one element, which is an error."""
    axes = len(case.shape)
    while True:
        varies = torch.rand(axes, generator=generator) < 0.5
        shape = [size if v else 1 for size, v in zip(case.shape, varies, strict=True)]
        mask = torch.rand(shape, generator=generator) < 0.3 + 0.6 * torch.rand((), generator=generator)
        if bool(varies.any()) and not (0 in case.pooled and bool((slab_counts(case, mask) == 1).any())):
            return mask


def parameters(case: Case, dtype: torch.dtype, seed: int = 1) -> tuple[Tensor, Tensor]:
    dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    weight, bias = (draw(case.weight_shape, dtype=dtype, seed=seed + i) for i in range(2))
    return (1 + 0.5 * weight).requires_grad_(), (0.5 * bias).requires_grad_()


def leaves(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def recorded(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call as torch.func records it: in plain operations, and by no value."""
    return lambda x, *given, **options: torch.func.vmap(lambda x: call(x, *given, **options))(x[None])[0]


def recorded_moments(x: Tensor, pattern: str, **options: Any) -> sn.Moments:
    fields = "count", "mean", "m2", "min", "max", "mean_low"

    def call(x: Tensor) -> tuple[Tensor, ...]:
        moments = sn.moments(x, pattern, **options)
        return tuple(getattr(moments, name) for name in fields)

    found = torch.func.vmap(call)(x[None])
    return sn.Moments(**{name: values[0] for name, values in zip(fields, found, strict=True)})


def near(got: Tensor, want: Tensor, gate: float, scale: float = 1.0) -> None:
    error = (got.double() - want).abs().max().item() if want.numel() else 0.0
    bound = gate * max(scale, want.abs().max().item() if want.numel() else 0.0)
    assert error <= bound, f"{error / bound:.3g} times the gate"


GATES = {torch.float32: 3e-6, torch.float64: 1e-12, torch.bfloat16: 2**-8}
# Kernels are compiled for float32 without an activation, which laws need too. All else runs in plain torch.
COMPILED = 100


@pytest.mark.parametrize("seed", range(200))
def test_each_slab_as_if_alone(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 3:  # groups of one length by a call each, however small they are
        monkeypatch.setattr(packing, "_WORTH_A_CALL", 0)
    generator = torch.Generator().manual_seed(seed)
    pick = lambda options: options[int(torch.randint(len(options), (), generator=generator))]  # noqa: E731
    case, layout, compiled = pick(CASES), pick(list(LAYOUTS)), seed < COMPILED
    dtype = torch.float32 if compiled else pick(list(GATES))
    activation = None if compiled else pick(list(ACTIVATIONS))
    mask = draw_mask(case, generator)
    x = LAYOUTS[layout](draw(case.shape, dtype=dtype, seed=seed)).requires_grad_()
    residual = None if compiled or seed % 2 else draw(case.shape, dtype=dtype, seed=9).requires_grad_()
    weight, bias = parameters(case, dtype)
    dy, again = draw(case.shape, seed=7), draw(case.shape, seed=8)

    def run(inputs: list[Any], normalise: Callable[..., Tensor]) -> list[Tensor]:
        y = normalise(*inputs)
        wanted = [t for t in inputs if t is not None]
        first = torch.autograd.grad(y, wanted, dy.to(y), create_graph=True)
        second = torch.autograd.grad((first[0] * again.to(y)).sum(), wanted[:2], allow_unused=True)
        twice = zip(wanted[:2], second, strict=True)
        return [y, *first, *(torch.zeros_like(t) if g is None else g for t, g in twice)]

    with using("cpu" if compiled else "eager"):
        done = run(
            [x, weight, bias, residual],
            lambda x, w, b, r: sn.normalize(
                x, case.pattern, weight=w, bias=b, residual=r, activation=activation, mask=mask,
                **case.options,
            ),
        )  # fmt: skip
    exact = run(
        leaves(x, weight, bias, residual),
        lambda x, w, b, r: alone(case, x, mask, w, b, r, activation),
    )
    assert done[0].dtype == dtype
    for place, (got, want) in enumerate(zip(done, exact, strict=True)):
        # Derivatives of few elements are large, and so is what rounding x to the dtype makes of them.
        scale = 1.0 if place == 0 else 10.0
        near(got, want, GATES[dtype] * (1 if place == 0 else 10), scale)
    valid = mask.expand(case.shape)
    assert not done[0][~valid].any()
    assert not done[1][~valid].any()


SEQUENCES = {
    "batch": ("n c t -> c", {}),
    "batch, channels last": ("n t c -> c", {}),
    "instance": ("n c t -> n c", {}),
    "layer of samples": ("n c t -> n", {}),
    "group": ("n (g c) t -> n g", {"g": 2}),
    "layer of tokens": ("n t c -> n t", {}),
    "RMS of tokens": ("n t c -> n t", {"center": False}),
    "places": ("n c t -> t", {}),
}
LENGTHS = torch.tensor([5, 2, 7, 5, 3])


def sequences(pattern: str, seed: int = 0, size: int = 7) -> Tensor:
    x = draw((5, 6, 7), seed=seed)
    x = F.pad(x, (0, size - 7), value=3.0)
    return x.transpose(1, 2).contiguous() if pattern.startswith("n t c") else x


def time_mask(pattern: str, lengths: Tensor, size: int) -> Tensor:
    valid = torch.arange(size) < lengths[:, None]
    return valid[:, :, None] if pattern.startswith("n t c") else valid[:, None, :]


def valid_bits(
    pattern: str, options: dict[str, Any], x: Tensor, dy: Tensor, lengths: Tensor, residual: Tensor | None
) -> list[Tensor]:
    """Output and gradients where it counts, one after another; padding is to have gradients of 0."""
    mask = time_mask(pattern, lengths, x.shape[1 if pattern.startswith("n t c") else 2])
    weight, bias = (draw((6,), seed=i).requires_grad_() for i in (1, 2))
    whole, x = mask.expand(x.shape), x.clone().requires_grad_()
    if residual is not None:
        residual = residual.clone().requires_grad_()
        options = {"activation": "silu", "residual": residual, **options}
    y = sn.normalize(x, pattern, weight=weight, bias=bias, mask=mask, **options)
    wanted = [t for t in (x, residual) if t is not None]
    *grads, dweight, dbias = torch.autograd.grad(y, [*wanted, weight, bias], dy)
    for t in (y, *grads):
        assert not t[~whole].any()
    return [*(t[whole] for t in (y, *grads)), dweight, dbias]


@pytest.mark.parametrize("calls", [False, True], ids=["formula", "calls"])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_padding_changes_no_bit(
    name: str, backend: Name, calls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if calls:
        monkeypatch.setattr(packing, "_WORTH_A_CALL", 0)
    pattern, options = SEQUENCES[name]
    clean = [sequences(pattern, seed) for seed in (0, 5, 6)]  # x, dy and a residual
    mask = time_mask(pattern, LENGTHS, 7)
    faults = math.nan, 1e30, math.inf
    dirty = [t.masked_fill(~mask, value) for t, value in zip(clean, faults, strict=True)]
    longer = [sequences(pattern, seed, size=12) for seed in (0, 5, 6)]
    crowd = [torch.cat([t, t[:2]]) for t in clean]  # samples of which nothing counts
    more = torch.cat([LENGTHS, torch.tensor([0, 0])])
    found = []
    with using(backend):
        for (x, dy, added), lengths in (
            (clean, LENGTHS),
            (dirty, LENGTHS),
            (longer, LENGTHS),
            (crowd, more),
        ):
            residual = added if backend == "eager" else None
            found.append(valid_bits(pattern, options, x, dy, lengths, residual))
    for got in found[1:]:
        for a, b in zip(got, found[0], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", SEQUENCES)
def test_lengths_are_a_mask(name: str) -> None:
    pattern, options = SEQUENCES[name]
    x, mask = sequences(pattern), time_mask(pattern, LENGTHS, 7)
    want = sn.normalize(x, pattern, mask=mask, **options)
    for lengths in (LENGTHS, LENGTHS.int(), LENGTHS.tolist(), {"t": LENGTHS}):
        assert torch.equal(sn.normalize(x, pattern, lengths=lengths, **options), want)


def test_lengths_along_several_axes() -> None:
    x, high, wide = draw((3, 2, 4, 5)), torch.tensor([4, 2, 1]), torch.tensor([3, 5, 2])
    rows, columns = torch.arange(4) < high[:, None], torch.arange(5) < wide[:, None]
    mask = (rows[:, :, None] & columns[:, None, :])[:, None]
    got = sn.normalize(x, "n c h w -> n c", lengths={"h": high, "w": wide})
    assert torch.equal(got, sn.normalize(x, "n c h w -> n c", mask=mask))


@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("shape", [(), (1,), (7,), (6, 1), (1, 6, 7), (5, 1, 1)], ids=str)
def test_masks_broadcast_as_elsewhere(shape: tuple[int, ...]) -> None:
    case = of_rank(3, n=5, space=(7,))[0]
    x, mask = draw((5, 6, 7)), draw(shape, seed=3) > -1
    ones, zeros = torch.ones(6), torch.zeros(6)
    near(sn.normalize(x, "n c t -> c", mask=mask), alone(case, x, mask, ones, zeros), 1e-6)


def test_what_does_not_count_is_kept() -> None:
    x = sequences("n c t -> c").requires_grad_()
    mask = time_mask("n c t", LENGTHS, 7)
    zero, kept = (
        sn.normalize(x, "n c t -> n c", mask=mask, activation="relu", masked=masked)
        for masked in ("zero", "keep")
    )
    assert torch.equal(kept, torch.where(mask, zero, x))
    dy = draw(x.shape, seed=3)
    grads = [torch.autograd.grad(y, x, dy, create_graph=True)[0] for y in (zero, kept)]
    assert torch.equal(*grads)
    assert not grads[1].masked_select(~mask).any()
    assert torch.equal(*(torch.autograd.grad(grad.square().sum(), x)[0] for grad in grads))


@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_output_lies_as_the_input_does(layout: str) -> None:
    x = LAYOUTS[layout](draw((4, 6, 5, 7)))
    mask = draw((4, 1, 5, 7), seed=2) > 0
    for masked in ("zero", "keep"):
        y = sn.normalize(x, "n c h w -> c", mask=mask, masked=masked)
        assert y.stride() == sn.normalize(x, "n c h w -> c").stride()


@pytest.mark.parametrize("pattern", ["n c t -> c", "n c t -> n c", "n c t -> n t", "n c t -> n"])
@pytest.mark.parametrize("eps", [0.0, EPS], ids=["eps=0", "eps"])
def test_empty_slabs(pattern: str, eps: float) -> None:
    """Nothing counts of the last samples, or of all."""
    x = sequences(pattern).requires_grad_()
    weight = torch.ones(6, requires_grad=True)
    for lengths in (torch.tensor([5, 7, 7, 0, 0]), torch.zeros(5, dtype=torch.int64)):
        for call in (sn.normalize, recorded(sn.normalize)):
            y = call(x, pattern, weight=weight, eps=eps, lengths=lengths)
            dx, dweight = torch.autograd.grad(y.square().sum(), (x, weight))
            assert not y[lengths == 0].any()
            assert not dx[lengths == 0].any()
            assert dx.isfinite().all()
            assert dweight.isfinite().all()
            assert bool(y.any()) == bool(lengths.any())


def test_given_statistics() -> None:
    x, mask = draw((5, 6, 7)), time_mask("n c t", LENGTHS, 7)
    x = torch.where(mask, x, math.nan).requires_grad_()
    dy = draw(x.shape, seed=4)
    for pattern, shape in (("n c t -> c", (6,)), ("n c t -> n c", (5, 6)), ("n c t -> t", (7,))):
        mean, var = draw(shape, seed=1), draw(shape, seed=2).square()
        dims = [{"n": 0, "c": 1, "t": 2}[axis] for axis in pattern.partition("->")[2].split()]
        whole = [size if dim in dims else 1 for dim, size in enumerate(x.shape)]
        slope = (var.double() + EPS).rsqrt().reshape(whole)
        want = torch.where(mask, (x.detach().double() - mean.double().reshape(whole)) * slope, 0.0)
        y = sn.normalize(x, pattern, mean=mean, var=var, mask=mask)
        near(y, want, 1e-6)
        near(torch.autograd.grad(y, x, dy)[0], torch.where(mask, dy * slope, 0.0), 1e-6)
        near(recorded(sn.normalize)(x, pattern, mean=mean, var=var, mask=mask), want, 1e-6)


def test_eps_of_zero() -> None:
    x = draw((3, 2, 5))
    x[1, 0] = torch.tensor([2.0, 2.0, 2.0, 5.0, 7.0])
    assert sn.normalize(x, "n c t -> n c", eps=0, lengths=[5, 5, 5]).isfinite().all()
    with pytest.raises(StatisticsError, match=r"of \"n c t -> n c\" is constant where it counts"):
        sn.normalize(x, "n c t -> n c", eps=0, lengths=[5, 3, 5])


@pytest.mark.parametrize("name", SEQUENCES)
def test_moments_of_what_counts(name: str) -> None:
    pattern, options = SEQUENCES[name]
    options = {key: value for key, value in options.items() if key != "center"}
    x = 1e6 + sequences(pattern).double()
    lengths = torch.tensor([5, 2, 0, 5, 3])
    mask = time_mask(pattern, lengths, 7).expand(x.shape)
    dirty = torch.where(mask, x, math.nan)
    moments = sn.moments(dirty, pattern, lengths=lengths, **options)
    again = recorded_moments(dirty, pattern, mask=mask, **options)
    left, right = (side.split() for side in pattern.replace("(g c)", "g c").split("->"))
    split = (5, 2, 3, 7) if "g" in left else x.shape
    order = [left.index(axis) for axis in right] + [i for i, axis in enumerate(left) if axis not in right]
    shape = [*(split[i] for i in order[: len(right)]), -1]
    values, some = (t.reshape(split).permute(order).reshape(shape).numpy() for t in (x, mask))
    for at in np.ndindex(values.shape[:-1]):
        of = values[at][some[at]].astype(np.longdouble)
        for got in (moments, again):
            assert got.count[at] == len(of)
            assert got.min[at] == min(of, default=math.inf)
            assert got.max[at] == max(of, default=-math.inf)
            assert abs(got.mean[at] - (of.mean() if len(of) else 0)) <= 1e-9
            assert abs(got.m2[at] - (((of - of.mean()) ** 2).sum() if len(of) else 0)) <= 1e-9


BATCH = torch.tensor(
    [2, 0, 2, 0, 0, 4, 4]
)  # graphs of nodes, as PyTorch Geometric has them; 1 and 3 are empty


@pytest.mark.parametrize("calls", [False, True], ids=["formula", "calls"])
@pytest.mark.parametrize("masks", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(
    "name", ["batch-2d", "batch-3d", "row-3d", "layer-graph-2d", "group-graph-2d"], ids=str
)
def test_segments_are_computed_alone(
    name: str, masks: bool, calls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graph instance norm and graph layer norm, in float32 by kernels; backwards twice."""
    if calls:
        monkeypatch.setattr(packing, "_WORTH_A_CALL", 0)
    case = {
        "batch-2d": Case("", "n c -> c", (7, 6), (7, 6), (0,), (1,), {}),
        "batch-3d": Case("", "n c t -> c", (7, 6, 3), (7, 6, 3), (0, 2), (1,), {}),
        "row-3d": Case("", "n c t -> t", (7, 6, 3), (7, 6, 3), (0, 1), (1,), {}),
        "layer-graph-2d": Case("", "n c ->", (7, 6), (7, 6), (0, 1), (1,), {}),
        "group-graph-2d": Case("", "n (g c) -> g", (7, 6), (7, 2, 3), (0, 2), (1, 2), {"g": 2}),
    }[name]
    x = draw(case.shape).requires_grad_()
    mask = draw(case.shape, seed=3) > -0.7 if masks else torch.ones(case.shape, dtype=torch.bool)
    weight, bias = parameters(case, torch.float32)
    dy, again = draw(case.shape, seed=7), draw(case.shape, seed=8)

    def run(inputs: list[Any], normalise: Callable[..., Tensor]) -> list[Tensor]:
        y = normalise(*inputs)
        first = torch.autograd.grad(y, inputs, dy.to(y), create_graph=True)
        return [y, *first, *torch.autograd.grad((first[0] * again.to(y)).sum(), inputs[:2])]

    some = {"mask": mask} if masks else {}
    exact = run(leaves(x, weight, bias), lambda x, w, b: alone(case, x, mask, w, b, segments=BATCH))
    ordered, back = BATCH.sort(stable=True)[1], BATCH.sort(stable=True)[1].argsort()
    calls_of = [
        lambda x, w, b: sn.normalize(
            x, case.pattern, weight=w, bias=b, segments=BATCH, **some, **case.options
        ),
        lambda x, w, b: sn.normalize(
            x[ordered], case.pattern, weight=w, bias=b, segments=[3, 0, 2, 0, 2],
            **{key: value[ordered] for key, value in some.items()}, **case.options,
        )[back],
        lambda x, w, b: recorded(sn.normalize)(
            x, case.pattern, weight=w, bias=b, segments=BATCH, **some, **case.options
        ),
    ]  # fmt: skip
    for normalise in calls_of:
        for place, (got, want) in enumerate(zip(run([x, weight, bias], normalise), exact, strict=True)):
            near(got, want, 3e-6 * (1 if place == 0 else 10), 1.0 if place == 0 else 10.0)


def test_moments_of_segments() -> None:
    x = draw((7, 3, 2))
    moments = sn.moments(x, "n c t -> c", segments=BATCH)
    again = recorded_moments(x, "n c t -> c", segments=BATCH)
    assert moments.shape == (5, 3)
    for segment in range(5):
        of = x[segment == BATCH].double().transpose(0, 1).reshape(3, -1)
        for got in (moments, again):
            assert got.count[segment].tolist() == [of.shape[1]] * 3
            if of.shape[1]:
                near(got.mean[segment], of.mean(1), 1e-15)
                near(got.var()[segment], of.var(1, correction=0), 1e-14)
                assert torch.equal(got.min[segment], of.amin(1))
                assert torch.equal(got.max[segment], of.amax(1))
    merged = sum(sn.moments(x[segment == BATCH], "n c t -> c") for segment in (0, 2, 4))
    near(merged.var(), sn.moments(x, "n c t -> c").var(), 1e-14)


def test_segments_with_given_statistics() -> None:
    x, mean, var = draw((7, 3)), draw((5, 3), seed=1), draw((5, 3), seed=2).square()
    want = (x.double() - mean.double()[BATCH]) / (var.double()[BATCH] + EPS).sqrt()
    near(sn.normalize(x, "n c -> c", mean=mean, var=var, segments=BATCH), want, 1e-6)


def test_a_segment_of_one_sample_gives_its_bias() -> None:
    """Batches of graphs have graphs of one node, as images have one pixel to instance norm."""
    bias = torch.tensor([1.0, 2.0])
    y = sn.normalize(draw((4, 2)), "n c -> c", bias=bias, segments=[1, 3])
    assert torch.equal(y[0], bias)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
def test_transforms() -> None:
    x, mask = draw((5, 6, 7)), time_mask("n c t", LENGTHS, 7)

    def call(x: Tensor, mask: Tensor = mask) -> Tensor:
        return sn.normalize(x, "n c t -> n c", mask=mask, activation="silu")

    want = call(x)
    stacked = torch.func.vmap(call)(torch.stack([x, 2 * x]), torch.stack([mask, mask]))
    near(stacked[0], want.double(), 1e-6)
    near(stacked[1], call(2 * x).double(), 1e-6)
    tangent = draw(x.shape, seed=3)
    value, slope = torch.func.jvp(call, (x.double(),), (tangent.double(),))
    step = 1e-6
    ends = [call(x.double() + sign * step * tangent.double()) for sign in (1, -1)]
    near(value, call(x.double()), 1e-12)
    near(slope, (ends[0] - ends[1]) / (2 * step), 1e-7)
    assert (
        call(
            torch.empty(x.shape, device="meta"), torch.empty(mask.shape, device="meta", dtype=torch.bool)
        ).shape
        == x.shape
    )
    leaf = x[:2, :2, :3].double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: sn.normalize(x, "n c t -> n c", lengths=[3, 2]), leaf, check_batched_grad=True
    )


X, MASK = draw((5, 6, 7)), torch.ones((5, 1, 7), dtype=torch.bool)


@pytest.mark.parametrize(
    ("kind", "says", "options"),
    [
        (DtypeError, "booleans", {"mask": MASK.float()}),
        (DtypeError, "booleans", {"mask": [True]}),
        (ShapeError, "does not broadcast", {"mask": MASK[:4]}),
        (ShapeError, "does not broadcast", {"mask": MASK[None]}),
        (ShapeError, "fits the first axes of x, but not the last", {"mask": MASK[:, 0, :1]}),
        (DeviceError, "mask is on meta", {"mask": MASK.to("meta")}),
        (OptionError, "both given", {"mask": MASK, "lengths": LENGTHS}),
        (OptionError, "'zero' or 'keep'", {"mask": MASK, "masked": "drop"}),
        (OptionError, "between 0 and 7", {"lengths": LENGTHS + 1}),
        (OptionError, "between 0 and 7", {"lengths": [-1, 2, 3, 4, 5]}),
        (OptionError, "'s'", {"lengths": {"s": LENGTHS}}),
        (OptionError, "'n'", {"lengths": {"n": LENGTHS}}),
        (OptionError, "no axis", {"lengths": {}}),
        (ShapeError, "one number a sample", {"lengths": LENGTHS[:4]}),
        (DtypeError, "integers", {"lengths": LENGTHS.float()}),
        (ShapeError, "one number a sample", {"segments": LENGTHS[:4]}),
        (DtypeError, "integers", {"segments": LENGTHS.float()}),
        (OptionError, "0 or more", {"segments": LENGTHS - 3}),
        (DeviceError, "segments are on meta", {"segments": LENGTHS.to("meta")}),
        (ShapeError, "cover all samples", {"segments": [3, 3]}),
        (DtypeError, "list of the segments' lengths", {"segments": [2.5, 2.5]}),
    ],
)  # fmt: skip
def test_mistakes(kind: type[Exception], says: str, options: dict[str, Any]) -> None:
    with pytest.raises(kind, match=says):
        sn.normalize(X, "n c t -> c", **options)
    if "masked" not in options:
        with pytest.raises(kind, match=says):
            sn.moments(X, "n c t -> c", **options)


def test_mistakes_that_a_pattern_decides() -> None:
    square = draw((4, 4, 4))
    with pytest.raises(ShapeError, match="as well as the last"):
        sn.normalize(square, "n t c -> c", mask=torch.ones((4, 4), dtype=torch.bool))
    with pytest.raises(OptionError, match="several axes"):
        sn.normalize(draw((4, 2, 3, 3)), "n c h w -> c", lengths=[1, 2, 3, 3])
    with pytest.raises(OptionError, match="no axis that lengths could count along"):
        sn.normalize(draw((4, 2)), "n c -> c", lengths=[1, 2, 1, 1])
    for pattern in ("n c t -> n c", "... c -> ...", "(a n) c t -> a c"):
        with pytest.raises(PatternError, match="does not pool over"):
            sn.normalize(square, pattern, segments=[4], **({"a": 2} if "a" in pattern else {}))
    one = torch.tensor([[True, False, False, False]]).T[:, :, None]
    with pytest.raises(StatisticsError, match=r"\"n c t -> c\" pools samples.*one valid element"):
        sn.normalize(square[:, :, :1], "n c t -> c", mask=one)
    assert not sn.normalize(square[:, :, :1], "n c t -> n c", mask=one).any()
