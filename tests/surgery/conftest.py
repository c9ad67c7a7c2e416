"""What holds for the tests of surgery."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _kernels_for_networks_alone(request: pytest.FixtureRequest) -> None:
    """Run norms in plain torch: what is fused where is the same, and no kernel is compiled for it.

    Whole networks run through the kernels, in test_models and test_crossover.
    """
    if request.module.__name__.rpartition(".")[2] not in ("test_models", "test_crossover"):
        request.getfixturevalue("in_plain_torch")
