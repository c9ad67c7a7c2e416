"""The sketch of hashes: the smallest distinct ones, whatever comes, in whatever order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slabnorm.inputs.sketch import Bounds, Collector, Sketch


@given(
    st.integers(0, 2**32), st.integers(1, 40), st.lists(st.integers(0, 300), max_size=12), st.integers(1, 8)
)
def test_the_smallest_distinct_hashes(seed, size, lengths, repeats):
    random = np.random.default_rng(seed)
    # Few distinct hashes, which come often, and many, which come once: what is guessed must not matter.
    pool = random.integers(0, 1 << 64, 1 + sum(lengths) // repeats, np.uint64)
    parts = [random.choice(pool, length) for length in lengths]
    collector, merged, bounds = Collector(size, Bounds()), Sketch(size=size), Bounds()
    for part in parts:
        collector.add(part)
        merged = merged.merge(Sketch(size=size).add(part))
        shared = Collector(size, bounds)
        shared.add(part[part <= np.uint64(bounds.hash - 1)])
        bounds.lower(hash=shared.sketch().bound)
    wanted = np.unique(np.concatenate([*parts, np.empty(0, np.uint64)]))[:size]
    assert collector.sketch().hashes.tolist() == wanted.tolist()
    assert merged.hashes.tolist() == wanted.tolist()
    assert len(wanted) < size or bounds.hash > int(wanted[-1])
