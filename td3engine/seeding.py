"""Randomness without state: every random draw belongs to a purpose and an index under one seed.

An outer step's generator depends on (seed, purpose, step) only, so a resumed run draws what an
uninterrupted one would have drawn and a checkpoint holds no generator state.
"""

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What is drawn. The numbers are part of what makes a summary's bytes; never re-use one."""

    TEACHER_INITIAL = 1
    TEACHER_EPOCH = 2
    SUMMARY_INITIAL = 3
    OUTER_STEP = 4
    VALIDATION_LEARNER = 5
    LEARNER = 6
    BASELINE_USERS = 7
    POOL = 8
    EXPORT = 9
    EXPORT_LEARNER = 10


def generator(seed: int, purpose: Purpose, index: int = 0, device: str = "cpu") -> torch.Generator:
    """A torch generator for one purpose."""
    return torch.Generator(device).manual_seed(_mixed(seed, purpose, index))


def numpy_generator(seed: int, purpose: Purpose, index: int = 0) -> np.random.Generator:
    """A numpy generator for one purpose."""
    return np.random.default_rng([seed, purpose, index])


def _mixed(seed: int, purpose: Purpose, index: int) -> int:
    words = np.random.SeedSequence([seed, purpose, index]).generate_state(1, np.uint64)
    return int(words[0]) >> 1  # torch takes a signed 64-bit seed
