"""Models by name, and what a user's own can get wrong."""

import sys

import pytest
import torch
from torch import nn

from slabnorm.errors import ModelError, PatternError, ShapeError
from slabnorm.study import compare
from slabnorm.study.data import from_arrays
from slabnorm.study.models import find_build, import_build
from tests.study.small import few_digits, table, tiny


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that can be imported, and forget it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / "users_own.py").write_text(text)
        sys.modules.pop("users_own", None)
        return "users_own"

    yield write
    sys.modules.pop("users_own", None)


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_named_models_fit_the_data(name):
    data = few_digits()
    label, build = find_build(name, data)
    assert label == name
    output = build(lambda channels: nn.Identity())(torch.as_tensor(data.x[:5]).float())
    assert output.shape == (5, 4)


def test_conv_takes_images_of_one_pixel():
    build = find_build("conv", from_arrays(torch.rand(20, 1, 1), torch.arange(20) % 2))[1]
    assert build(lambda channels: nn.Identity())(torch.rand(3, 1, 1, 1)).shape == (3, 2)


def test_a_function_is_a_model():
    assert find_build(tiny, from_arrays(*table())) == ("tiny", tiny)


def test_a_path_names_a_function(module):
    name = module("class A:\n    @staticmethod\n    def build(norm): return norm(3)\n")
    assert import_build(f"{name}:A.build")(lambda channels: channels) == 3


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("nosuchmodule:build", "", "No module named 'nosuchmodule'"),
        ("users_own:other", "def build(norm): pass", "no 'other' in users_own"),
        ("users_own:build.x", "def build(norm): pass", "no 'x'"),
        ("users_own:build", "build = 3", "of type int"),
        ("users_own:build", "import nosuchmodule", "No module named 'nosuchmodule'"),
        ("users_own:build", "1 / 0", "ZeroDivisionError"),
        ("users_own:build", "raise SystemExit(0)", "SystemExit"),
        ("users_own:build", "def build(norm:", "SyntaxError"),
        ("users_own", "", "package.module:build"),
        (":build", "", "package.module:build"),
        ("users_own:", "", "package.module:build"),
        ("../users_own:build", "", "package.module:build"),
        ("resnet", "", "package.module:build"),
    ],
)
def test_what_cannot_be_imported_says_why(path, text, says, module):
    module(text)
    with pytest.raises(ModelError, match=says):
        import_build(path)


def build_raises(norm):
    raise KeyError("width")


def build_nothing(norm):
    return None


def without_norm(norm):
    return nn.Linear(3, 2)


ONE = nn.Sequential(nn.Linear(3, 2))


def always_one(norm):
    norm(2)
    return ONE


BODY = nn.Linear(3, 2)


def shares_a_layer(norm):
    return nn.Sequential(BODY, norm(2))


def leaves_the_norm_out(norm):
    norm(2)
    return nn.Sequential(nn.Linear(3, 2))


def too_many_classes(norm):
    return nn.Sequential(nn.Linear(3, 5), norm(5))


def wrong_width(norm):
    return nn.Sequential(nn.Linear(4, 2), norm(2))


def gives_a_tuple(norm):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = tiny(norm)

        def forward(self, x):
            return self.body(x), x

    return Both()


def no_weights(norm):
    return nn.Sequential(norm(3).requires_grad_(False), nn.Flatten())


def breaks_in_training(norm):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = tiny(norm)

        def forward(self, x):
            return self.body(x) if not self.training else self.nosuch

    return Breaks()


BAD = {
    build_raises: "KeyError",
    build_nothing: "type NoneType",
    without_norm: "never called",
    always_one: "the same network twice",
    too_many_classes: r"got: \(2, 5\), not the shape \(2, 2\)",
    wrong_width: "input of shape .*\n.*RuntimeError",
    gives_a_tuple: "got: a tuple",
    no_weights: "parameters to train",
    shares_a_layer: "two that share weights",
    leaves_the_norm_out: "not in the network",
    breaks_in_training: "a batch of 8\n.*AttributeError",
}


@pytest.mark.parametrize("build", BAD, ids=lambda build: build.__name__)
def test_bad_models_are_refused_before_the_study(build):
    with pytest.raises(ModelError, match=BAD[build]):
        compare(build, table(), norms=["none", "batch"], batch_sizes=[8], seeds=1, epochs=1)


@pytest.mark.parametrize("model", ["conv", 3, ""])
def test_models_that_are_none_or_do_not_fit_are_refused(model):
    with pytest.raises(ModelError):
        compare(model, table(), batch_sizes=[8], seeds=1)


@pytest.mark.parametrize(("pattern", "error"), [("n c -> q", PatternError), ("n c h w -> c", ShapeError)])
def test_patterns_that_are_wrong_or_do_not_fit_are_refused(pattern, error):
    with pytest.raises(error):
        compare(tiny, table(), norms=[pattern], batch_sizes=[8], seeds=1, epochs=1)
