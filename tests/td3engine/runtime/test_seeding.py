"""Keys of random draws: each its own, and the ones that made earlier summaries stay."""

from itertools import product

import numpy as np
import pytest

from td3engine.runtime.seeding import Purpose, generator, numpy_generator

KEYS = list(product((0, 7), (Purpose.OUTER_STEP, Purpose.POOL), (0, 3, 999_999), (0, 1, 12)))


@pytest.mark.parametrize("index", [0, 5, 1_000_000])
def test_the_first_learner_draws_what_a_key_without_learners_gives(index: int) -> None:
    """So a step of one learner makes the bytes that it made before there could be several."""
    key = [7, Purpose.POOL, index]
    words = np.random.SeedSequence(key).generate_state(1, np.uint64)
    assert generator(7, Purpose.POOL, index).initial_seed() == int(words[0]) >> 1
    drawn = numpy_generator(7, Purpose.POOL, index).integers(2**62, size=4)
    assert drawn.tolist() == np.random.default_rng(key).integers(2**62, size=4).tolist()


def test_every_key_has_draws_of_its_own() -> None:
    seeds = {
        generator(seed, purpose, index, learner=learner).initial_seed()
        for seed, purpose, index, learner in KEYS
    }
    firsts = {
        int(numpy_generator(seed, purpose, index, learner=learner).integers(2**62))
        for seed, purpose, index, learner in KEYS
    }
    assert len(seeds) == len(firsts) == len(KEYS)
