"""`Holdouts`: sets of the configured size, each made once."""

import numpy as np
import pytest
import torch

from td3engine.config import DataConfig, ValidationProtocol
from td3engine.data.split import Split
from td3engine.ranking import holdout
from td3engine.ranking.holdout import Holdouts, HoldoutSet, Role
from tests.td3engine.oracles import make_split

HISTORIES = [list(range(user % 4, user % 4 + 3 + user % 5)) for user in range(20)]
SPLIT = make_split(HISTORIES, 12)


def test_sets_are_of_their_role_history_and_size() -> None:
    holdouts = Holdouts(SPLIT, DataConfig(validation_users=7, test_users=1000))
    test = holdouts.test(3)
    assert test.targets.tolist() == [history[-1] for history in HISTORIES]
    assert test.lengths.tolist() == [min(3, len(history) - 1) for history in HISTORIES]
    validation = holdouts.validation(2)
    assert len(validation.targets) == 7
    pairs = {(history[-3], history[-2]) for history in HISTORIES}
    for row, length, target in zip(
        validation.items.tolist(),
        validation.lengths.tolist(),
        validation.targets.tolist(),
        strict=True,
    ):
        assert length <= 2
        assert (row[length - 1], target) in pairs
    few = Holdouts(SPLIT, DataConfig(validation_users=1000, test_users=4))
    assert len(few.test(3).targets) == 4
    assert len(few.validation(3).targets) == 20


def test_a_sample_has_the_same_users_whatever_the_history() -> None:
    holdouts = Holdouts(SPLIT, DataConfig(validation_users=6, test_users=6))
    short, long = holdouts.test(1), holdouts.test(9)
    assert torch.equal(short.targets, long.targets)
    assert torch.equal(long.lengths - 1, holdouts.validation(9).lengths)


def test_each_set_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int, int | None]] = []
    build = holdout.holdout_set

    def counted(
        split: Split, role: Role, history: int, at_most: int, by: ValidationProtocol
    ) -> HoldoutSet:
        made.append((role, history, at_most))
        return build(split, role, history, at_most, by)

    monkeypatch.setattr(holdout, "holdout_set", counted)
    holdouts = Holdouts(SPLIT, DataConfig(validation_users=6, test_users=5))
    sets = [holdouts.test(3), holdouts.validation(3), holdouts.test(4), holdouts.test(3)]
    sets += [holdouts.validation(np.int64(3)), holdouts.validation(3)]  # type: ignore[arg-type]
    assert made == [("test", 3, 5), ("validation", 3, 6), ("test", 4, 5)]
    assert sets[0] is sets[3]
    assert sets[1] is sets[4] is sets[5]
