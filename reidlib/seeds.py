"""Randomness by name: every draw is a function of a seed and of what it is for, not of what was drawn before it.

So a run that is resumed, or moved to other loader workers, goes on with the same numbers and no stored state.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def generator_for(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A numpy generator for one purpose ("batches") at one place (epoch, step)."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *keys])


def torch_generator_for(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """The same as a CPU torch generator."""
    state = generator_for(seed, purpose, *keys).integers(2**62)
    return torch.Generator().manual_seed(int(state))


@contextmanager
def seeded(seed: int, purpose: str = "", *keys: int) -> Iterator[None]:
    """Torch's own randomness (initial weights, dropout) from `seed` inside the block, as it was before after it."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(generator_for(seed, purpose, *keys).integers(2**62)))
        yield
