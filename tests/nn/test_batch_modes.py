"""Layers with masks and segments, ghost batches, and batch renormalisation."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import slabnorm as sn
from slabnorm.errors import OptionError, PatternError, ShapeError, StatisticsError, StatisticsWarning
from tests.cases import draw
from tests.nn.trained import same, state

LENGTHS = torch.tensor([5, 2, 7, 4])
MASK = (torch.arange(7) < LENGTHS[:, None])[:, None]  # [n, 1, t]
X = 2 + 3 * draw((4, 6, 7))
LAYERS: dict[str, Any] = {
    "batch": lambda: sn.BatchNorm(6),
    "batch-average": lambda: sn.BatchNorm(6, momentum=None),
    "instance": lambda: sn.InstanceNorm(6, affine=True),
    "instance-tracking": lambda: sn.InstanceNorm(6, track_running_stats=True),
    "group": lambda: sn.GroupNorm(2, 6),
    "any": lambda: sn.SlabNorm("n c t -> c", c=6, center=False),
}


def near(got: Tensor, want: Tensor, gate: float = 2e-6) -> None:
    assert (got.double() - want.double()).abs().max() <= gate * max(1.0, want.abs().max().item())


def trim(x: Tensor) -> Tensor:
    """What counts of batch norm's input, as a batch of vectors: [elements, c]."""
    return x.transpose(1, 2)[MASK.squeeze(1)]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_takes_what_the_function_does(name: str) -> None:
    layer, residual = LAYERS[name](), draw(X.shape, seed=1)
    options = {"weight": layer.weight, "bias": layer.bias, "residual": residual, **layer.sizes}
    dirty = torch.where(MASK, X, math.nan)
    want = sn.normalize(X, layer.pattern.text, mask=MASK, center=layer.center, **options)
    assert torch.equal(layer(dirty, residual, mask=MASK), want)
    assert torch.equal(layer(dirty, residual, lengths=LENGTHS), want)
    kept = layer(dirty, residual, lengths=LENGTHS, masked="keep")
    assert torch.equal(kept.nan_to_num(9), torch.where(MASK, want, 9))


@pytest.mark.usefixtures("in_plain_torch")
def test_a_layer_that_lies_as_torchs_does() -> None:
    image, mask = draw((3, 6, 4, 5)).to(memory_format=torch.channels_last), draw((3, 1, 4, 5), seed=1) > 0
    for masked in ("zero", "keep"):
        y = sn.InstanceNorm(6)(image, mask=mask, masked=masked)
        assert y.is_contiguous()
        assert torch.equal(y, sn.InstanceNorm(6)(image.contiguous(), mask=mask, masked=masked))


def test_layer_norm_of_tokens() -> None:
    tokens = X.transpose(1, 2).contiguous()
    for layer, twin in ((sn.LayerNorm(6), nn.LayerNorm(6)), (sn.RMSNorm(6), nn.RMSNorm(6))):
        want = torch.where(MASK.transpose(1, 2), twin(tokens), 0)
        near(layer(tokens, lengths=LENGTHS), want)
        near(layer(tokens, mask=MASK.transpose(1, 2)), want)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_of_what_counts(momentum: float | None) -> None:
    """As torch's layer has them of vectors without padding; a batch of nothing has no weight."""
    layer, twin = sn.BatchNorm(6, momentum=momentum), nn.BatchNorm1d(6, momentum=momentum)
    for seed in range(1 if momentum is None else 3):  # torch's average gives every batch the same weight
        x = X + draw(X.shape, seed=seed)
        near(trim(layer(torch.where(MASK, x, math.nan), mask=MASK)), twin(trim(x)))
    for key, value in twin.state_dict().items():
        near(layer.state_dict()[key], value)
    before = state(layer)
    assert not layer(X, lengths=torch.zeros(4, dtype=torch.int64)).any()
    assert same(before, state(layer))
    layer.eval()
    twin.eval()
    near(trim(layer(torch.where(MASK, X, math.nan), mask=MASK)), twin(trim(X)))


@pytest.mark.parametrize("name", ["batch", "instance-tracking"])
def test_padding_moves_no_running_statistic(name: str) -> None:
    layer, other = LAYERS[name](), LAYERS[name]()
    layer(X, lengths=LENGTHS)
    dirty = nn.functional.pad(torch.where(MASK, X, math.nan), (0, 9), value=math.inf)
    other(torch.cat([dirty, dirty]), lengths=torch.cat([LENGTHS, 0 * LENGTHS]))
    assert same(state(layer), state(other))
    moments = [sn.moments(x, "n c t -> c", lengths=LENGTHS) for x in (X, dirty)]
    for field in ("count", "mean", "m2", "min", "max", "mean_low"):
        assert torch.equal(*(getattr(one, field) for one in moments))


def test_average_weighs_by_what_counts() -> None:
    layer = sn.BatchNorm(6, momentum=None)
    layer(X, mask=MASK)
    layer(X * 2)
    values = torch.cat([trim(X), (2 * X).transpose(1, 2).reshape(-1, 6)]).double()
    near(layer.running_mean, values.mean(0))
    assert layer.num_elements_tracked == 18 + 28
    with pytest.raises(OptionError, match="each running statistic its own"):
        layer(X, mask=draw((1, 6, 7)) > -1)


def test_running_statistics_where_a_channel_is_masked() -> None:
    layer = sn.BatchNorm(6)
    mask = torch.ones(4, 6, 7, dtype=torch.bool)
    mask[:, 2] = False
    layer(torch.where(mask, X, math.nan), mask=mask)
    plain = sn.BatchNorm(6)
    plain(X)
    others = [0, 1, 3, 4, 5]
    near(layer.running_var[others], plain.running_var[others])
    assert (layer.running_mean[2], layer.running_var[2]) == (0, 1)
    assert layer.num_batches_tracked == 1
    x = X.clone()
    x[0, 0, 0] = math.inf
    before = state(layer)
    with pytest.warns(StatisticsWarning, match="left out"):
        layer(x, mask=MASK)
    assert same(before, state(layer))
    assert layer.num_batches_skipped == 1


def test_instance_norm_averages_over_what_counts() -> None:
    """Samples weigh in the running statistics by what counts of them."""
    layer = sn.InstanceNorm(6, track_running_stats=True, momentum=1.0)
    layer(torch.where(MASK, X, math.nan), mask=MASK)
    pairs = [torch.var_mean(X[i, :, :n].double(), 1) for i, n in enumerate(LENGTHS.tolist())]
    shares = LENGTHS.double() / LENGTHS.sum()
    near(layer.running_mean, sum(share * mean for share, (_, mean) in zip(shares, pairs, strict=True)))
    near(layer.running_var, sum(share * var for share, (var, _) in zip(shares, pairs, strict=True)))
    layer.eval()
    std = (layer.running_var.double() + layer.eps).sqrt()[:, None]
    want = torch.where(MASK, (X - layer.running_mean.double()[:, None]) / std, 0)
    near(layer(X, mask=MASK), want)


def test_one_element_is_an_error() -> None:
    one = torch.zeros(4, 1, 7, dtype=torch.bool)
    one[2, 0, 3] = True
    layer = sn.BatchNorm(6)
    with pytest.raises(StatisticsError, match="one valid element"):
        layer(X, mask=one)
    layer.eval()
    layer._trained = True
    assert layer(X, mask=one).count_nonzero() == 6


def test_segments_of_layers() -> None:
    """Graph instance norm as a layer, and what cannot be."""
    nodes, batch = draw((7, 6)), torch.tensor([0, 0, 0, 2, 2, 2, 2])
    layer = sn.SlabNorm("n c -> c", c=6, track_running_stats=False)
    want = torch.cat([nn.BatchNorm1d(6)(part) for part in nodes.split([3, 4])])
    near(layer(nodes, segments=batch), want)
    near(layer.eval()(nodes, segments=[3, 4]), want)
    assert torch.equal(layer(nodes, segments=[7]), layer(nodes))
    with pytest.raises(OptionError, match="track_running_stats=False"):
        sn.BatchNorm(6)(nodes, segments=batch)
    with pytest.raises(OptionError, match="twice"):
        sn.SlabNorm("n c -> c", c=6, track_running_stats=False, ghost=2)(nodes, segments=batch)
    with pytest.raises(PatternError, match="does not pool over"):
        sn.LayerNorm(6)(nodes, segments=batch)


def test_mistakes_name_the_layer() -> None:
    model = nn.ModuleDict({"norm": sn.BatchNorm(6)})
    with pytest.raises(ShapeError, match=r"BatchNorm cannot normalise its input: mask does not broadcast"):
        model["norm"](X, mask=MASK[:3])


def by_slices(layer: nn.BatchNorm1d, x: Tensor, sizes: list[int]) -> Tensor:
    return torch.cat([layer(part) for part in x.split(sizes)])


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [(12, [4, 4, 4]), (11, [4, 4, 3]), (13, [4, 4, 5]), (9, [4, 5]), (5, [5]), (3, [3]), (4, [4])],
    ids=str,
)  # fmt: skip
def test_ghost_batches_are_slices(samples: int, sizes: list[int]) -> None:
    layer, twin = sn.BatchNorm(6, ghost=4), nn.BatchNorm1d(6).double()
    with torch.no_grad():
        for norm in (layer, twin):
            norm.weight.copy_(1 + draw((6,), seed=1))
            norm.bias.copy_(draw((6,), seed=2))
    x, dy = 5 + draw((samples, 6, 3), seed=3), draw((samples, 6, 3), seed=4)
    mine, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    y, want = layer(mine), by_slices(twin, theirs, sizes)
    near(y, want)
    grads = torch.autograd.grad(y, [mine, layer.weight, layer.bias], dy, create_graph=True)
    exact = torch.autograd.grad(want, [theirs, twin.weight, twin.bias], dy.double(), create_graph=True)
    for got, sure in zip(grads, exact, strict=True):
        near(got, sure, 1e-5)
    twice = (torch.autograd.grad(g[0].square().sum(), t)[0] for g, t in ((grads, mine), (exact, theirs)))
    near(*twice, 1e-4)
    # Running statistics are those of the whole batch, once.
    whole = sn.BatchNorm(6)
    whole(x)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        near(layer.state_dict()[key], whole.state_dict()[key])
    assert layer.num_elements_tracked == 3 * samples


def test_ghost_batches_end_with_training() -> None:
    layer, plain = sn.BatchNorm(6, ghost=2, activation="relu"), sn.BatchNorm(6, activation="relu")
    layer(X)
    plain(X)
    near(layer.eval()(X), plain.eval()(X))
    assert layer(X[:1]).shape == (1, 6, 7)
    with pytest.raises(StatisticsError, match="one element"):
        sn.BatchNorm(6, ghost=2)(X[:1, :, 0])


def test_ghost_batches_of_what_counts() -> None:
    """Masks and ghosts together, of a remainder too; a mask that is the same for all samples."""
    x = draw((5, 6, 7), seed=2)
    lengths = torch.tensor([5, 2, 7, 4, 6])
    mask = (torch.arange(7) < lengths[:, None])[:, None]
    layer, whole = sn.BatchNorm(6, ghost=3), sn.BatchNorm(6)
    y = layer(torch.where(mask, x, math.nan), mask=mask)
    parts = [sn.BatchNorm(6)(x[part], mask=mask[part]) for part in (slice(3), slice(3, 5))]
    near(y, torch.cat(parts))
    whole(x, mask=mask)
    for key, value in whole.state_dict().items():
        near(layer.state_dict()[key], value)
    same_for_all = mask[1:2]
    want = torch.cat([sn.BatchNorm(6)(part, mask=same_for_all) for part in x.split([3, 2])])
    near(sn.BatchNorm(6, ghost=3)(x, mask=same_for_all), want)


def test_ghost_batches_of_any_pattern() -> None:
    x = draw((6, 4, 3, 5))
    layer = sn.SlabNorm("n (g c) h w -> g h", g=2, c=2, h=3, ghost=2, center=False)
    plain = [sn.SlabNorm("n (g c) h w -> g h", g=2, c=2, h=3, center=False) for _ in range(4)]
    near(layer(x), torch.cat([norm(part) for norm, part in zip(plain, x.split(2), strict=False)]))
    plain[3](x)
    near(layer.running_var, plain[3].running_var)


@pytest.mark.usefixtures("in_plain_torch")
def test_a_ghost_batch_lies_as_its_input() -> None:
    for x in (draw((5, 6, 4, 4)), draw((5, 6, 4, 4)).to(memory_format=torch.channels_last)):
        for ghost in (2, 3, 5):
            assert sn.BatchNorm(6, ghost=ghost)(x).stride() == x.stride()


def renormed(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float, rmax: float, dmax: float
) -> Tensor:
    """Ioffe's equations, in float64, with sigma as batch norm has it; x is [n, c, t]."""
    batch = x.mean((0, 2), keepdim=True), x.var((0, 2), correction=0, keepdim=True)
    sigma, of_running = (batch[1] + eps).sqrt(), (var[:, None] + eps).sqrt()
    r = (sigma / of_running).clamp(1 / rmax, rmax).detach()
    d = ((batch[0] - mean[:, None]) / of_running).clamp(-dmax, dmax).detach()
    return weight[:, None] * ((x - batch[0]) / sigma * r + d) + bias[:, None]


def test_renormalisation_over_several_steps() -> None:
    """CrossQ's limits from the second step on; a third that neither clips, where running statistics act."""
    layer = sn.BatchNorm(6, renorm=(1.0, 0.0), momentum=0.3)
    plain = sn.BatchNorm(6, momentum=0.3)
    with torch.no_grad():
        layer.weight.copy_(1 + draw((6,), seed=1))
        layer.bias.copy_(draw((6,), seed=2))
    mean, var = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    for step, limits in enumerate([(1.0, 0.0), (1.5, 0.5), (3.0, 5.0), (1e9, 1e9)]):
        layer.renorm = limits
        x = (1.5 + 4 * draw((8, 6, 5), seed=step)).requires_grad_()
        dy, again = draw(x.shape, seed=20 + step), draw(x.shape, seed=30 + step)
        leaves = [t.detach().double().requires_grad_() for t in (x, layer.weight, layer.bias)]
        want = renormed(leaves[0], mean, var, *leaves[1:], layer.eps, *limits)
        y = layer(x)
        near(y, want, 3e-6)
        grads = torch.autograd.grad(y, [x, layer.weight, layer.bias], dy, create_graph=True)
        exact = torch.autograd.grad(want, leaves, dy.double(), create_graph=True)
        for got, sure in zip(grads, exact, strict=True):
            near(got, sure, 1e-5)
        near(
            torch.autograd.grad((grads[0] * again).sum(), x)[0],
            torch.autograd.grad((exact[0] * again).sum(), leaves[0])[0],
            1e-5,
        )
        if limits == (1e9, 1e9):  # then it is what eval mode did before the step
            std = (var + layer.eps).sqrt()[:, None]
            still = (x - mean[:, None]) / std * leaves[1][:, None] + leaves[2][:, None]
            near(y, still, 1e-5)
        wide = x.detach().double()
        mean = 0.7 * mean + 0.3 * wide.mean((0, 2))
        var = 0.7 * var + 0.3 * wide.transpose(0, 1).reshape(6, -1).var(1)
        plain(x.detach())
        near(layer.running_mean, mean)
        near(layer.running_var, var)
        assert torch.equal(layer.running_var, plain.running_var)


def test_renormalisation_by_limits_of_one_and_zero_is_batch_norm() -> None:
    layer, twin = sn.BatchNorm(6, renorm=(1.0, 0.0), affine=False), nn.BatchNorm1d(6, affine=False)
    for seed in range(2):
        x = 3 + draw((8, 6, 5), seed=seed)
        near(layer(x), twin(x))
    near(layer.eval()(x), twin.eval()(x))


@pytest.mark.usefixtures("in_plain_torch")
def test_renormalisation_of_what_counts_and_of_any_pattern() -> None:
    layer, trimmed = (sn.BatchNorm(6, renorm=(2.0, 1.0)) for _ in range(2))
    for _ in range(2):
        y, want = layer(torch.where(MASK, X, math.nan), mask=MASK), trimmed(trim(X))
        near(trim(y), want)
    near(layer.running_var, trimmed.running_var)
    # Weight along c, statistics along h: weight * r + d varies along both.
    x = 2 + 3 * draw((4, 3, 5, 2))
    norm = sn.SlabNorm("n c h w -> h", c=3, h=5, renorm=(2.0, 1.0), center=False)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.bias.copy_(torch.tensor([4.0, 5.0, 6.0]))
    rms = (x.double().square().mean((0, 1, 3), keepdim=True) + norm.eps).sqrt()
    z = x / rms * (rms / math.sqrt(1 + norm.eps)).clamp(0.5, 2.0)
    near(norm(x), z * norm.weight[:, None, None] + norm.bias[:, None, None])


@pytest.mark.parametrize(
    ("kind", "says", "make"),
    [
        (OptionError, "ghost must be", lambda: sn.BatchNorm(6, ghost=1)),
        (OptionError, "ghost must be", lambda: sn.BatchNorm(6, ghost=True)),
        (OptionError, "ghost must be", lambda: sn.BatchNorm(6, ghost=2.5)),
        (PatternError, "does not pool over", lambda: sn.SlabNorm("n c t -> n c", c=6, ghost=2)),
        (PatternError, "does not pool over", lambda: sn.SlabNorm("(a n) c -> a c", a=2, c=6, ghost=2)),
        (
            PatternError,
            "does not pool over",
            lambda: sn.SlabNorm("n c -> c", affine="n", n=4, c=6, ghost=2),
        ),
        (OptionError, "renorm must be", lambda: sn.BatchNorm(6, renorm=3.0)),
        (OptionError, "renorm must be", lambda: sn.BatchNorm(6, renorm=(0.5, 1.0))),
        (OptionError, "renorm must be", lambda: sn.BatchNorm(6, renorm=(3.0, -1.0))),
        (OptionError, "renorm must be", lambda: sn.BatchNorm(6, renorm=(3.0, math.nan))),
        (OptionError, "needs running", lambda: sn.BatchNorm(6, renorm=(3.0, 5.0), track_running_stats=False)),
        (
            OptionError,
            "needs running",
            lambda: sn.SlabNorm("n c t -> n c", c=6, renorm=(3.0, 5.0), track_running_stats=True),
        ),
        (OptionError, "both given", lambda: sn.BatchNorm(6, renorm=(3.0, 5.0), ghost=2)),
    ],
)
def test_mistakes(kind: type[Exception], says: str, make: Any) -> None:
    with pytest.raises(kind, match=says):
        make()


def test_limits_set_later_are_checked() -> None:
    layer = sn.BatchNorm(6, renorm=(3.0, 5.0))
    layer.renorm = (0.0, 1.0)
    with pytest.raises(OptionError, match="renorm must be"):
        layer(X)


def test_options_are_shown_and_stored() -> None:
    ghost, renorm = sn.BatchNorm(6, ghost=2), sn.BatchNorm(6, renorm=(3.0, 5.0))
    assert repr(ghost).endswith("track_running_stats=True, ghost=2)")
    assert repr(renorm).endswith("renorm=(3.0, 5.0))")
    assert repr(sn.SlabNorm("n c -> c", c=6, ghost=2)) == (
        "SlabNorm('n c -> c', c=6, eps=1e-05, momentum=0.1, ghost=2)"
    )
    for layer in (ghost, renorm):
        assert layer.state_dict().keys() == nn.BatchNorm1d(6).state_dict().keys()
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(X), copy.deepcopy(layer)(X))


def test_layers_of_an_older_version_run() -> None:
    layer = sn.BatchNorm(6)
    want = copy.deepcopy(layer)(X)
    for name in ("ghost", "renorm"):
        layer.__dict__.pop(name)
    twin = pickle.loads(pickle.dumps(layer))
    assert torch.equal(twin(X), want)
    assert twin(X, mask=MASK).shape == X.shape
    assert "ghost" not in repr(twin)


COMPILED = {
    "average": (lambda: sn.BatchNorm(6, momentum=None), {"lengths": LENGTHS}),
    "segments": (lambda: sn.SlabNorm("n c t -> c", c=6, track_running_stats=False), {"segments": [1, 3]}),
    "ghost": (lambda: sn.BatchNorm(6, ghost=3), {"mask": MASK}),
    "renorm": (lambda: sn.BatchNorm(6, renorm=(2.0, 1.0)), {}),
}


@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("name", COMPILED)
def test_compile_whole_graph(name: str) -> None:
    torch._dynamo.reset()
    make, options = COMPILED[name]
    layer, twin = make(), make()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
        got, want = compiled(x, **options), twin(y, **options)
        near(got, want)
        got.pow(3).sum().backward()
        want.pow(3).sum().backward()
        near(x.grad, y.grad, 1e-5)
        for key, value in twin.state_dict().items():
            near(layer.state_dict()[key], value)


@pytest.mark.usefixtures("in_plain_torch")
def test_compile_ghost_batches_of_unknown_number() -> None:
    torch._dynamo.reset()
    layer = sn.BatchNorm(6, ghost=3)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for samples in (6, 7, 8):
        x = draw((samples, 6, 2), seed=samples)
        near(compiled(x), layer(x))


def test_against_flax() -> None:
    """flax's masked norms give the statistics of what counts, and normalise all places by them."""
    linen = pytest.importorskip("flax.linen")
    tokens, mask = X.transpose(1, 2).contiguous(), MASK.transpose(1, 2)
    rows = tokens.numpy(), mask.numpy()
    norm = linen.BatchNorm(use_running_average=False, epsilon=1e-5, momentum=0.9)
    shapes = {"params": {"scale": torch.ones(6).numpy(), "bias": torch.zeros(6).numpy()},
              "batch_stats": {"mean": torch.zeros(6).numpy(), "var": torch.ones(6).numpy()}}  # fmt: skip
    theirs, moved = norm.apply(shapes, rows[0], mask=rows[1], mutable=["batch_stats"])
    layer = sn.SlabNorm("n t c -> c", c=6)
    ours = layer(tokens, mask=mask)
    whole = mask.expand(tokens.shape)
    near(ours[whole], torch.tensor(theirs.tolist())[whole], 1e-5)
    near(layer.running_mean, torch.tensor(moved["batch_stats"]["mean"].tolist()), 1e-5)
    # LayerNorm's mask is of features.
    some = (draw((4, 7, 6), seed=5) > -1) & mask
    params = {"params": shapes["params"]}
    theirs = linen.LayerNorm(epsilon=1e-5).apply(params, rows[0], mask=some.numpy())
    near(sn.LayerNorm(6)(tokens, mask=some)[some], torch.tensor(theirs.tolist())[some], 1e-5)


def test_renorm_is_not_computed_again() -> None:
    norm = sn.BatchNorm(4, renorm=(3.0, 5.0))
    y = checkpoint(norm, torch.randn(8, 4, requires_grad=True), use_reentrant=False)
    with pytest.raises(OptionError, match="is computed again"):
        y.sum().backward()


def test_renorm_may_be_set_where_it_can_run() -> None:
    for norm in (sn.BatchNorm(4, track_running_stats=False), sn.BatchNorm(4, ghost=2)):
        norm.renorm = (3.0, 5.0)
        with pytest.raises(OptionError):
            norm(torch.randn(8, 4))


def test_ghosts_lie_in_memory_as_the_input() -> None:
    x = torch.randn(18, 5, 6).transpose(1, 2)
    assert sn.SlabNorm("n c t -> c", ghost=4, c=6)(x).stride() == x.stride()
