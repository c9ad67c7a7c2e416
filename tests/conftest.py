"""What holds for all tests."""

from __future__ import annotations

import os
from zlib import crc32

# Read when torch is loaded. The pools of several test processes would else spin in each other's way on a few
# cores: 53 s of laws and models take 42.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch

from slabnorm import kernels, prepare
from slabnorm.kernels import eager

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the GPU kernels are loaded: they run on the CPU


@pytest.fixture
def in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run norms in plain torch, where kernels would be compiled for nothing that a test is about."""
    monkeypatch.setattr(prepare, "_prepared", {})
    monkeypatch.setattr(kernels, "backend", lambda *_: eager)


@pytest.fixture(autouse=True)
def _same_numbers(request: pytest.FixtureRequest) -> None:
    """Have a module's RNG draw the same for a test whichever others ran before it in this process."""
    random = getattr(request.module, "RNG", None)
    if isinstance(random, np.random.Generator):
        random.bit_generator.state = np.random.PCG64(crc32(request.node.nodeid.encode())).state
