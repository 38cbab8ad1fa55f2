"""Which real users the baselines take, and which users a look at validation asks."""

import numpy as np
import torch

from td3engine.evaluation import longest_histories, most_recent
from td3engine.sequences import questions
from tests.td3engine.oracles import make_split
from tests.td3engine.small import small_config

CONFIG = small_config(summary={"users": 2, "length": 4})


def test_longest_histories_give_their_last_training_events() -> None:
    # Training events (two are held out): 1, 5, 3, 5.
    split = make_split([[0, 1, 2], range(7), range(5), range(7)], 10)
    windows = longest_histories(split, CONFIG)
    assert windows.start.tolist() == [3 + 1, 15 + 1]
    assert windows.end.tolist() == [3 + 5, 15 + 5]


def test_most_recent_goes_by_the_last_training_event() -> None:
    split = make_split([range(6), range(6), range(6)], 10)
    # The second user's held-out events are latest, its training ended first.
    split.times[:] = np.array([1, 2, 3, 50, 51, 52, 1, 2, 3, 4, 90, 91, 1, 2, 3, 60, 61, 62])
    windows = most_recent(split, CONFIG)
    assert windows.end.tolist() == [12 + 4, 0 + 4]
    assert windows.start.tolist() == [12, 0]


def test_users_without_a_transition_are_no_baseline() -> None:
    split = make_split([range(3), range(5), range(3), range(4)], 10)
    assert sorted(longest_histories(split, CONFIG).end.tolist()) == [3 + 3, 11 + 2]


def test_a_look_at_validation_asks_a_fixed_sample() -> None:
    split = make_split([range(user % 3 + 3) for user in range(30)], 10)
    everyone = questions(split, "validation", 8)
    some = questions(split, "validation", 8, at_most=10)
    again = questions(split, "validation", 8, at_most=10)
    assert len(some.targets) == 10
    assert torch.equal(some.items, again.items)
    assert len(questions(split, "validation", 8, at_most=30).targets) == len(everyone.targets) == 30
    test = questions(split, "test", 8, at_most=10)
    # The same users, an event later.
    assert (test.lengths == some.lengths + 1).all()
