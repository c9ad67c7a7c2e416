"""A user's model as it is: its norms are exchanged, and nothing else."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import slabnorm as sn
from slabnorm.errors import LedgerError, ModelError
from slabnorm.study import compare
from slabnorm.study.data import from_arrays
from slabnorm.study.exchange import exchange
from slabnorm.study.ledger import RunLedger, shared_digest
from slabnorm.study.models import Derf, DyT, NormFactory, find_build, takes_norm
from slabnorm.study.scaling import fit_inputs
from slabnorm.study.train import Bench, Rules, start
from tests.study.small import table, tiny

pytestmark = pytest.mark.usefixtures("in_plain_torch")


def net():
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


class Pictures(nn.Module):
    """Every kind of norm, one of them in two places."""

    def __init__(self):
        super().__init__()
        shared = nn.GroupNorm(2, 4)
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), shared)
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), shared, nn.InstanceNorm2d(4))
        self.whole, self.own = nn.LayerNorm((4, 6, 6)), sn.SlabNorm("n (g c) h w -> n g", g=2, c=2)
        self.tokens, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.own(self.whole(self.second(self.first(x))))
        return self.head(self.tokens(x.flatten(2).transpose(1, 2)).mean(1))


X = torch.randn(5, 1, 6, 6)


def test_every_norm_is_exchanged_wherever_it_stands():
    build = exchange(Pictures, X)
    factory = NormFactory("dyt")
    model = build(factory)
    assert [(layer.names, layer.channels, layer.last) for layer in build.found] == [
        (("first.1",), 4, False),
        (("first.2", "second.1"), 4, False),
        (("second.2",), 4, False),
        (("whole",), 4, False),
        (("own",), 4, False),
        (("tokens",), 4, True),
    ]
    assert len(factory.made) == 6
    assert model.first[2] is model.second[1]
    assert [type(m) for m in (model.first[1], model.whole, model.own, model.tokens.layer)] == [DyT] * 4
    assert model(X).shape == (5, 2)


def test_exchanged_for_its_own_norm_a_model_computes_what_it_did():
    """Batch norm, and layer norm of tokens, whose channels are the last axis."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

        def forward(self, x):
            return self.body(x)

    build = exchange(Model, X)
    torch.manual_seed(0)
    wanted = Model()(X)
    torch.manual_seed(0)
    torch.testing.assert_close(build(NormFactory("batch"))(X), wanted)
    tokens = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))
    x = torch.randn(4, 5, 6)
    build = exchange(tokens, x)
    assert build.found[0].channels == 8
    build.redraw = False
    torch.testing.assert_close(build(NormFactory("n c t -> n t"))(x), tokens(x))


def test_looking_at_a_model_draws_no_random_numbers():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    exchange(Pictures, X)
    assert torch.equal(torch.rand(1), wanted)


def test_a_network_is_copied_and_its_weights_are_drawn_anew_for_each_seed():
    given = net()
    before = copy.deepcopy(given.state_dict())
    build = exchange(given, torch.randn(4, 3))
    first, second, other = (
        start(build, norm, seed)[0] for norm, seed in (("batch", 0), ("none", 0), ("none", 1))
    )
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), given.state_dict().values(), strict=True))
    assert "drawn anew for every seed" in build.notes()[1]


def test_weights_that_cannot_be_drawn_anew_stay_as_given():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))

        def forward(self, x):
            return x @ self.weight

    given = nn.Sequential(Own(), *net())
    build = exchange(given, torch.randn(4, 3))
    models = [start(build, "layer", seed)[0] for seed in (0, 1)]
    assert all(torch.equal(model[1].weight, given[1].weight) for model in models)
    assert models[0][1].weight is not given[1].weight
    assert "as they are" in build.notes()[1]


def test_the_fast_path_of_a_transformer_does_not_bypass_the_exchange():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = exchange(nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 2)), torch.randn(3, 5, 8))(
        NormFactory("none")
    )
    x = torch.randn(3, 5, 8)
    training = model(x)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), training)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: nn.Linear(3, 2), "no norm layer to exchange"),
        (lambda: 3, "does not return a torch.nn.Module"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), r"input of shape \(4, 3\)"),
        (
            lambda: nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.LayerNorm((1, 1)), nn.Flatten()),
            r"layer 1 \(LayerNorm\) cannot be exchanged\n(.|\n)*last 2 axes",
        ),
        (lambda: nn.Sequential(sn.SlabNorm("n t -> n", affine=""), nn.Linear(3, 2)), "not the channels"),
        (lambda: nn.ModuleDict({"a": nn.BatchNorm1d(3)}), "raises an error"),
    ],
)
def test_what_cannot_be_exchanged_is_refused_by_name(model, says):
    with pytest.raises(ModelError, match=says):
        exchange(model, torch.randn(4, 3))


def test_a_norm_that_is_never_run_is_refused_by_name():
    model = net()
    model[0].unused = nn.BatchNorm1d(3)
    with pytest.raises(ModelError, match=r"0\.unused \(BatchNorm1d\)(.|\n)*does not run it"):
        exchange(model, torch.randn(4, 3))


def test_a_function_is_given_norm_if_it_needs_an_argument_or_calls_one_so():
    assert takes_norm(tiny)
    assert takes_norm(lambda norm=None: 0)
    assert not takes_norm(lambda width=8: 0)
    assert not takes_norm(net)


@pytest.mark.parametrize("model", [net, net()], ids=["function", "network"])
def test_a_study_of_a_model_as_it_is(model):
    study = compare(
        model, table(), norms=["none", "batch", "derf"], batch_sizes=[8], seeds=2, epochs=1, schemes=()
    )
    assert all(run.status == "done" for run in study.runs)
    for seed in study.seeds:
        assert len({run.weights for run in study.runs if run.seed == seed}) == 1
    assert len({run.weights for run in study.runs}) == 3
    assert any(note.startswith("Exchanged for each norm: BatchNorm1d 1.") for note in study.notes)
    assert study.model == ("net" if model is net else "Sequential")


def test_a_name_may_mean_either_kind(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def build(): return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))\n"
        "net = build()\n"
        "def with_norm(norm): return nn.Sequential(nn.Linear(3, 8), norm(8), nn.Linear(8, 2))\n"
    )
    for name in ("build", "net", "with_norm"):
        build = find_build(f"own_nets:{name}", from_arrays(*table()))[1]
        assert isinstance(build(NormFactory("group"))[1], sn.GroupNorm)


@pytest.mark.parametrize(("layer", "squash"), [(DyT, torch.tanh), (Derf, torch.erf)])
def test_norm_free_layers_follow_their_papers(layer, squash):
    module = layer(4)
    x = torch.randn(3, 4, 5)
    assert torch.equal(module(x), squash(0.5 * x))
    with torch.no_grad():
        module.weight.copy_(torch.arange(4.0))
        module.bias.fill_(2.0)
    want = torch.arange(4.0)[:, None] * squash(0.5 * x) + 2
    torch.testing.assert_close(module(x), want)
    assert {name for name, _ in module.named_parameters()} >= {"alpha", "weight", "bias"}
    assert ("shift" in dict(module.named_parameters())) == (layer is Derf)


class KeptInAList(nn.Module):
    """Runs its norm from a plain list, where an exchange does not reach."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.steps = [self.first, self.norm, self.last]

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


class TimeFirst(nn.Module):
    """Gives its norm (time, samples, channels)."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.norm(torch.stack([x, -x, x, x, 2 * x])).mean(0))


@pytest.mark.parametrize(
    ("model", "says"),
    [(KeptInAList, "from another place, such as a list"), (TimeFirst, "first axis is not the samples")],
)
def test_a_norm_whose_exchange_would_change_nothing_or_mix_samples_is_refused(model, says):
    with pytest.raises(ModelError, match=says):
        exchange(model, torch.randn(3, 3))


def test_a_network_of_another_dtype_is_told_what_to_do():
    with pytest.raises(ModelError, match=r"model\.float\(\)"):
        exchange(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double(), torch.randn(3, 3))


def widened(width=4, norm=None):
    return nn.Sequential(nn.Linear(3, width), norm(width), nn.Linear(width, 2))


def by_keyword(*, norm):
    return widened(norm=norm)


@pytest.mark.parametrize("build", [widened, by_keyword])
def test_a_function_may_have_norm_as_any_argument(build):
    _, made = find_build(build, from_arrays(*table()))
    assert isinstance(made(lambda channels: nn.Dropout(0.0))[1], nn.Dropout)


class Keeper(nn.Module):
    """A layer whose state is no tensor."""

    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass

    def forward(self, x):
        return x


def squashed(norm, act=torch.relu, layer=nn.Identity):
    return nn.Sequential(nn.Linear(3, 8), norm(8), layer(), nn.Linear(8, 2))


def test_a_ledger_tells_models_apart_by_arguments_and_takes_any_state():
    data = from_arrays(*table())

    def digest(build):
        layers = {"zscore": fit_inputs(data, "zscore")[0]}
        return shared_digest(Bench(build, data, layers, Rules()), "none")

    plain = digest(squashed)
    assert plain == digest(squashed)
    assert plain != digest(partial(squashed, act=torch.tanh)) != digest(partial(squashed, act=torch.relu))
    assert digest(partial(squashed, layer=Keeper)) == digest(partial(squashed, layer=Keeper)) != plain


def test_a_folder_is_no_ledger(tmp_path):
    with pytest.raises(LedgerError, match="cannot be read"):
        RunLedger(tmp_path, resume=True)
