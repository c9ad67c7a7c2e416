"""What holds for all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from zlib import crc32

# Read when torch is loaded. The pools of several test processes would else spin in each other's way on a few
# cores: 53 s of laws and models take 42.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch

from slabnorm.kernels import using


def _quicken_the_interpreter() -> None:
    """Have Triton's interpreter make triton.language its own once a launch and module.

    It does so at each call of one kernel function by another, which took a third of the GPU tests.
    """
    from triton.runtime import interpreter

    launch, made = interpreter.GridExecutor.__call__, set()

    def launched(self, *args, **options):
        made.clear()
        launch(self, *args, **options)

    def called(self, *args, **options):
        if self.fn.__module__ not in made:
            made.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **options)

    interpreter.GridExecutor.__call__, interpreter.InterpretedFunction.__call__ = launched, called


if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the GPU kernels are loaded: they run on the CPU
    with suppress(ImportError):
        _quicken_the_interpreter()


def pytest_collection_finish() -> None:
    """Have the garbage collector leave alone what is imported: it would look through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries complain of what is never collected


@pytest.fixture
def in_plain_torch() -> Iterator[None]:
    """Run norms in plain torch, where kernels would be compiled for nothing that a test is about."""
    with using("eager"):
        yield


@pytest.fixture(autouse=True)
def _same_numbers(request: pytest.FixtureRequest) -> None:
    """Have a module's RNG draw the same for a test whichever others ran before it in this process."""
    random = getattr(request.module, "RNG", None)
    if isinstance(random, np.random.Generator):
        random.bit_generator.state = np.random.PCG64(crc32(request.node.nodeid.encode())).state
