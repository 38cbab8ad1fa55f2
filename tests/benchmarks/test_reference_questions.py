"""The questions of the references, on hand-made cases."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.reference import questions as reference


def test_the_split_by_hand(tmp_path: Path) -> None:
    # User a meets x twice; of user b five events at one time keep their order in the file; c and z
    # have too few events.
    lines = ["user_id,item_id,timestamp"]
    lines += [f"a,{item},{10 - n}" for n, item in enumerate("xywvux")]
    lines += [f"b,{item},7" for item in "yxwvu"]
    lines += [f"d,{item},{n}" for n, item in enumerate("uvwxyz")]
    lines += [f"e,{item},{n}" for n, item in enumerate("uvwxy")]
    lines += [f"f,{item},{n}" for n, item in enumerate("uvwxy")]
    lines += ["c,x,1"]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines) + "\n")

    histories = reference.read_log(path)
    cut = reference.split(histories)

    u, v, w, x, y = range(5)
    assert [u, v, w, x, y] in histories
    assert [x, u, v, w, y, x] in histories  # a: backwards in the file, so forwards in time
    assert [y, x, w, v, u] in histories
    assert len(histories) == 5
    assert cut.items == 5
    assert ([x, u, v, w], y) in cut.validation
    assert ([x, u, v, w, y], x) in cut.test
    assert cut.repeats == 0
    assert cut.protocol == "unseen"


def test_users_with_two_events_are_only_trained_on_and_the_test_event_is_no_repeat() -> None:
    cut = reference.split([[0, 0], [1, 1, 1]])
    assert cut.training == [[0, 0], [1]]
    assert cut.test == [([1, 1], 1)]
    assert cut.repeats == pytest.approx(2 / 4)
    assert cut.protocol == "all"


def test_every_transition_is_in_one_piece() -> None:
    for events in range(2, 12):
        items = list(range(events))
        cut = reference.pieces(items, 3)
        assert all(2 <= len(piece) <= 4 for piece in cut)
        steps = sorted(pair for piece in cut for pair in pairwise(piece))
        assert steps == list(pairwise(items))
        assert cut[0] == items[-4:]


def test_ranks_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.1], [0.9, 0.5, 0.5, 0.1], [1.0, 2.0, -torch.inf, 0.0]])
    questions = [([0], 1), ([1, 0], 1), ([3], 2)]
    # The tie counts against the target; an item that was never trained on is behind all.
    assert reference.ranks(scores, questions, "all") == [3, 3, 4]
    assert reference.ranks(scores, questions, "unseen") == [2, 3]


def test_metrics_by_hand() -> None:
    found = reference.metrics([1, 3, 11])
    assert found["questions"] == 3
    assert found["hr@10"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["mrr@10"] == pytest.approx((1 + 1 / 3) / 3, abs=1e-6)
    assert found["ndcg@10"] == pytest.approx((1 + 0.5) / 3, abs=1e-6)
    assert found["hr@20"] == 1


def test_a_log_without_its_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n")
    with pytest.raises(ValueError, match="columns"):
        reference.read_log(path)
