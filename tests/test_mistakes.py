"""A user's mistakes: each gets a typed error that says what is wrong, what was found, and what to do."""

from __future__ import annotations

import pickle

import pytest
import torch

import slabnorm as sn
from slabnorm import errors
from slabnorm.errors import (
    DeviceError,
    DtypeError,
    OptionError,
    PatternError,
    ShapeError,
    SlabError,
    StatisticsError,
)
from tests.cases import draw

X = draw((2, 6, 4))


def _nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)


@pytest.mark.parametrize(
    ("kind", "says", "call"),
    [
        (DtypeError, "int64", lambda: sn.normalize(torch.ones(2, 3, dtype=torch.int64), "n c -> c")),
        (DtypeError, "complex64", lambda: sn.normalize(torch.ones(2, 3, dtype=torch.complex64), "n c -> c")),
        (DtypeError, "sparse", lambda: sn.normalize(torch.ones(2, 3).to_sparse(), "n c -> c")),
        (DtypeError, "ndarray", lambda: sn.normalize(X.numpy(), "n c t -> c")),
        (
            DtypeError,
            "weight",
            lambda: sn.normalize(X, "n c t -> c", weight=torch.ones(6, dtype=torch.int32)),
        ),
        (
            DeviceError,
            "weight is on meta, but x is on cpu",
            lambda: sn.normalize(X, "n c t -> c", weight=torch.ones(6, device="meta")),
        ),
        (DeviceError, "meta", lambda: sn.BatchNorm(6, device="meta")(X)),
        (OptionError, "eps", lambda: sn.normalize(X, "n c t -> c", eps=-1e-5)),
        (OptionError, "eps", lambda: sn.BatchNorm(6, eps=float("nan"))),
        (OptionError, "'relux'", lambda: sn.normalize(X, "n c t -> c", activation="relux")),
        (OptionError, "'swish'", lambda: sn.GroupNorm(2, 6, activation="swish")),
        (OptionError, "var", lambda: sn.normalize(X, "n c t -> c", mean=torch.zeros(6))),
        (OptionError, "mean", lambda: sn.normalize(X, "n c t -> c", var=torch.ones(6))),
        (
            StatisticsError,
            "-1.0",
            lambda: sn.normalize(X, "n c t -> c", mean=torch.zeros(6), var=-torch.ones(6)),
        ),
        (StatisticsError, r"\(0,\)", lambda: sn.normalize(torch.ones(3, 2), "n c -> c", eps=0)),
        (StatisticsError, "one element per slab", lambda: sn.normalize(draw((1, 6)), "n c -> c")),
        (ShapeError, r"\(5,\)", lambda: sn.normalize(X, "n c t -> c", weight=torch.ones(5))),
        (ShapeError, "residual", lambda: sn.normalize(X, "n c t -> c", residual=X[:1])),
        (ShapeError, "mean", lambda: sn.normalize(X, "n c t -> n c", mean=torch.zeros(6), var=torch.ones(6))),
        (ShapeError, "no axis `c`", lambda: sn.normalize(X, "n d t -> d", weight=torch.ones(6))),
        (ShapeError, "cannot be split with g=4", lambda: sn.normalize(X, "n (g c) t -> n g", g=4)),
        (PatternError, "did you mean 'c'", lambda: sn.normalize(X, "n c t -> C")),
        (PatternError, "q=3", lambda: sn.normalize(X, "n c t -> c", q=3)),
        (PatternError, "size of 'c'", lambda: sn.SlabNorm("n c t -> c")),
        (PatternError, "size of 'g'", lambda: sn.SlabNorm("n (g c) t -> n g", c=3)),
        (PatternError, 'affine=""', lambda: sn.SlabNorm("n d t -> n")),
        (OptionError, "6 channels cannot be divided into 4 groups", lambda: sn.GroupNorm(4, 6)),
        (OptionError, "0 groups", lambda: sn.GroupNorm(0, 6)),
        (OptionError, "sizes of the last axes", lambda: sn.LayerNorm(())),
        (OptionError, "sizes of the last axes", lambda: sn.LayerNorm(6.0)),
        (OptionError, "'2' groups", lambda: sn.GroupNorm("2", 6)),
        (OptionError, "positive integers", lambda: sn.GroupNorm(2, -6)),
        (OptionError, "momentum", lambda: sn.BatchNorm(6, momentum="0.1")),
        (OptionError, "activation", lambda: sn.normalize(X, "n c t -> c", activation=["relu"])),
        (PatternError, "x=6", lambda: sn.normalize(X, "n c t -> c", x=6)),
        (DtypeError, "nested", lambda: sn.normalize(_nested(), "n c t -> c")),
        (PatternError, "positive integer", lambda: sn.BatchNorm(0)),
        (ShapeError, "at least 2 axes", lambda: sn.BatchNorm(6)(draw((6,)))),
        (ShapeError, "has size 5, but .*=6 was given", lambda: sn.LayerNorm(6)(draw((2, 5)))),
    ],
)
def test_mistakes(kind: type[SlabError], says: str, call: object) -> None:
    with pytest.raises(kind, match=says) as caught:
        call()  # type: ignore[operator]
    assert "\n  fix: " in str(caught.value)
    assert not caught.value.problem.endswith(".")


def test_half_precision_eps_and_squares() -> None:
    """eps=1e-8 is nothing in float16, and 300^2 overflows it: neither matters."""
    x = (300 * draw((64, 3))).half()
    y = sn.normalize(x, "n c -> c", eps=1e-8)
    want = sn.normalize(x.double(), "n c -> c", eps=1e-8)
    assert (y.double() - want).abs().max() <= 2**-10
    assert sn.normalize(torch.full((4, 3), 5.0).half(), "n c -> c", eps=1e-8).eq(0).all()


def test_errors_are_what_python_users_catch() -> None:
    assert issubclass(PatternError, ValueError)
    assert issubclass(DtypeError, TypeError)
    assert issubclass(errors.ExtraError, ImportError)
    for name in dir(errors):
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, (errors.SlabError, errors.SlabWarning)):
            assert name in (errors.__doc__ or "")


def test_errors_travel_between_processes() -> None:
    error = ShapeError("problem", "got", "fix")
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is ShapeError
    assert str(twin) == str(error) == "problem\n  got: got\n  fix: fix"
