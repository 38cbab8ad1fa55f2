"""Which real users the baselines take, and which users a look at validation asks."""

import numpy as np
import pytest
import torch

from td3engine.evaluation.real_users import budget_in_epochs, longest_histories, most_recent
from td3engine.ranking.holdout import holdout_set
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


@pytest.mark.parametrize(("windows", "steps"), [(2, 8), (4, 8), (16, 8)])
def test_real_users_have_as_many_steps_as_a_summary(windows: int, steps: int) -> None:
    learner = small_config(learner={"batch": 4, "steps": 8}).learner
    budget = budget_in_epochs(learner, "shared-items", windows)
    assert budget.max_epochs * -(-windows // budget.batch) == steps
    assert (budget.lr, budget.beta2) == (learner.lr, learner.beta2)


def test_a_look_at_validation_asks_a_fixed_sample() -> None:
    split = make_split([range(user % 3 + 3) for user in range(30)], 10)
    everyone = holdout_set(split, "validation", 8)
    some = holdout_set(split, "validation", 8, at_most=10)
    again = holdout_set(split, "validation", 8, at_most=10)
    assert len(some.targets) == 10
    assert torch.equal(some.items, again.items)
    assert (
        len(holdout_set(split, "validation", 8, at_most=30).targets) == len(everyone.targets) == 30
    )
    test = holdout_set(split, "test", 8, at_most=10)
    # The same users, an event later.
    assert (test.lengths == some.lengths + 1).all()
