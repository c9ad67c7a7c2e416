"""What holds for the tests of surgery."""

from __future__ import annotations

import pytest

from slabnorm import kernels, prepare
from slabnorm.kernels import eager


@pytest.fixture(autouse=True)
def _without_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run norms in plain torch: what is fused where is the same, and no kernel is compiled for it.

    Whole networks run through the kernels, in test_models and test_crossover.
    """
    if request.module.__name__.rpartition(".")[2] not in ("test_models", "test_crossover"):
        monkeypatch.setattr(prepare, "_prepared", {})
        monkeypatch.setattr(kernels, "backend", lambda *_: eager)
