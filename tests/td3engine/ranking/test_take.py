"""`HoldoutSet.take`: some cases of a set, against the set of a log that has only their users."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from td3engine.ranking.holdout import HoldoutSet, Role, holdout_set
from td3engine.ranking.protocols import asked, never_met
from tests.td3engine.oracles import make_split

N_ITEMS = 9
FIELDS = ("lengths", "targets", "seen_rows", "seen_items", "user_rows", "user_items")
LOGS = st.lists(
    st.lists(st.integers(0, N_ITEMS - 1), min_size=3, max_size=10), min_size=1, max_size=7
)


def fields(cases: HoldoutSet) -> dict[str, list[int]]:
    return {name: getattr(cases, name).tolist() for name in FIELDS}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), histories=LOGS, role=st.sampled_from(["validation", "test"]))
def test_what_is_taken_is_the_set_of_these_users(
    data: st.DataObject, histories: list[list[int]], role: Role
) -> None:
    whole = holdout_set(make_split(histories, N_ITEMS), role, 4, validate_by="all")
    # Read before, so that it would show if a part had kept its whole's.
    assert len(whole.new_target) == len(whole.seen_offsets) - 1 == len(whole.user_offsets) - 1
    users = sorted(data.draw(st.sets(st.integers(0, len(histories) - 1))))
    part = whole.take(torch.tensor(users, dtype=torch.int64))
    wanted = holdout_set(
        make_split([histories[user] for user in users], N_ITEMS), role, 4, validate_by="all"
    )
    assert fields(part) == fields(wanted)
    for row, length, user in zip(part.items, part.lengths, users, strict=True):
        assert row.tolist() == whole.items[user].tolist()
        assert not row[length:].any()
    assert (part.n_items, part.validate_by) == (N_ITEMS, "all")
    for name in ("seen_offsets", "user_offsets", "new_target"):
        assert torch.equal(getattr(part, name), getattr(wanted, name))
    assert torch.equal(asked(part, "unseen"), asked(whole, "unseen")[users])
    assert torch.equal(never_met(part), never_met(whole)[users])
    for tensor in (part.seen_rows, part.seen_items, part.user_rows, part.user_items):
        assert tensor.dtype == torch.int64


def test_taking_all_changes_nothing_and_none_leaves_nothing() -> None:
    whole = holdout_set(make_split([[1, 2, 1], [3, 4, 5, 3]], N_ITEMS), "test", 4)
    assert fields(whole.take(torch.arange(2))) == fields(whole)
    none = whole.take(torch.arange(0))
    assert not any(fields(none).values())


@pytest.mark.parametrize("first", [[0, 2, 3], [1, 3]])
def test_a_part_of_a_part(first: list[int]) -> None:
    histories = [[1, 2, 1], [3, 4, 5, 3], [6, 7, 8], [0, 0, 0, 0, 1]]
    whole = holdout_set(make_split(histories, N_ITEMS), "validation", 4)
    once = whole.take(torch.tensor(first[1:]))
    twice = whole.take(torch.tensor(first)).take(torch.arange(1, len(first)))
    assert fields(once) == fields(twice)
