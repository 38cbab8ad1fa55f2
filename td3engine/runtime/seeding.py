"""Randomness without state: every random draw belongs to a purpose and an index under one seed.

An outer step's generator depends on (seed, purpose, step, learner) only, so a resumed run draws
what an uninterrupted one would have drawn, a checkpoint holds no generator state, and a learner of
a step draws the same whichever process trains it.
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
    ITEM_SAMPLE = 11


def generator(
    seed: int, purpose: Purpose, index: int = 0, device: str = "cpu", *, learner: int = 0
) -> torch.Generator:
    """A torch generator for one purpose, and for one of a step's learners."""
    words = np.random.SeedSequence(_key(seed, purpose, index, learner)).generate_state(1, np.uint64)
    # Torch takes a signed 64-bit seed.
    return torch.Generator(device).manual_seed(int(words[0]) >> 1)


def numpy_generator(
    seed: int, purpose: Purpose, index: int = 0, *, learner: int = 0
) -> np.random.Generator:
    """A numpy generator for one purpose, and for one of a step's learners."""
    return np.random.default_rng(_key(seed, purpose, index, learner))


def _key(seed: int, purpose: Purpose, index: int, learner: int) -> list[int]:
    # Learner 0 draws what the only learner of a step draws: numpy pads keys with zeros anyway.
    return [seed, purpose, index, learner]
