"""From blocks of whatever length to chunks whose length only the samples' shape decides.

Every chunk but a shard's last holds the same number of samples, about 2^20 values. So an array, a file and a
loader with the same samples in the same order give the same chunks, and the same bits in the end;
memory stays bounded; and a loader with a batch size of 1 costs no more than one with 1024.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from slabnorm.inputs.sources.base import Block


def chunks(blocks: Iterator[Block], rows: int) -> Iterator[Block]:
    """Yield the samples of all blocks, in order, `rows` at a time; each valid until the next is asked for."""
    buffer: Block | None = None
    filled = 0
    for block in blocks:
        done = 0
        while done < len(block):
            step = min(rows - filled, len(block) - done)
            part = block[done : done + step]
            done += step
            if step == rows:
                yield part
                continue
            if buffer is None:
                buffer = _like(block, rows)
            _copy(buffer[filled : filled + step], part)
            filled += step
            if filled == rows:
                yield buffer
                filled = 0
    if buffer is not None and filled:
        yield buffer[:filled]


def _like(block: Block, rows: int) -> Block:
    shape = (rows, *block.shape[1:])
    if isinstance(block, Tensor):
        return torch.empty(shape, dtype=block.dtype, device="cpu")
    return np.empty(shape, block.dtype)


def _copy(into: Block, block: Block) -> None:
    if isinstance(into, Tensor):
        into.copy_(block if isinstance(block, Tensor) else torch.from_numpy(np.ascontiguousarray(block)))
    elif isinstance(block, Tensor):
        into[...] = block.detach().cpu().numpy()
    else:
        into[...] = block
