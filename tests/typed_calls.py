"""What calls return, checked by `mypy` and never run: `Any` would hide a user's own mistakes."""

from typing import assert_type

from torch import Tensor

import slabnorm as sn


def calls(x: Tensor) -> None:
    assert_type(sn.normalize(x, "n c -> c"), Tensor)
    assert_type(sn.moments(x, "n c -> c"), sn.Moments)
    assert_type(sn.SlabNorm("n c -> c", c=3)(x), Tensor)
    assert_type(sn.BatchNorm(3)(x), Tensor)
    assert_type(sn.BatchNorm(3, ghost=32)(x, mask=x > 0, masked="keep"), Tensor)
    assert_type(sn.InstanceNorm(3)(x), Tensor)
    assert_type(sn.GroupNorm(1, 3)(x, residual=x), Tensor)
    assert_type(sn.LayerNorm(3)(x), Tensor)
    assert_type(sn.RMSNorm(3)(x), Tensor)
    reversible = sn.Reversible("n t -> n", affine="")
    assert_type(reversible(x)[0], Tensor)
    with reversible.instance(x) as (y, inverse):
        assert_type(y, Tensor)
        assert_type(inverse(y), Tensor)
    norm = sn.fit(x, split="train")
    assert_type(norm(x), Tensor)
    assert_type(norm.inverse(x), Tensor)
    running = sn.RunningInputNorm("n c -> c", clip=10)
    assert_type(running(x), Tensor)
    assert_type(running.update(x), int)
    assert_type(running.freeze(), sn.InputNorm)
    assert_type(sn.ReturnScale(gamma=0.99)(x, x > 0), Tensor)
