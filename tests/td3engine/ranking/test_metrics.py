"""Ranks and metrics: by hand, against a slow loop, and the negatives of `sampled-100`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from td3engine.ranking import metrics as ranking
from td3engine.ranking.holdout import HoldoutSet, Role, holdout_set
from td3engine.ranking.metrics import evaluate, evaluate_all, metrics, rank_targets
from td3engine.ranking.protocols import (
    NEGATIVES,
    PROTOCOLS,
    Protocol,
    asked,
    available_protocols,
    protocol_notes,
    sample_negatives,
)
from tests.td3engine.oracles import make_split, normal
from tests.td3engine.ranking.dense import Dense


@dataclass(frozen=True)
class Fixed:
    """A model of a table and a function of histories."""

    table: Tensor
    states: Callable[[Tensor, Tensor], Tensor]


def ranks_of(scores: Tensor, holdout: HoldoutSet, protocol: Protocol, seed: int = 0) -> list[int]:
    """Rank of every case's target, whether the protocol asks about it or not."""
    found = rank_targets(Dense(scores).scorer(holdout), holdout, (protocol,), seed)
    return [int(rank) for rank in found[protocol]]


def ask(histories: Sequence[Sequence[int]], targets: Sequence[int], n_items: int) -> HoldoutSet:
    """One question a history; nothing comes after the targets."""
    seen = [(row, item) for row, history in enumerate(histories) for item in history]
    user = [
        (row, item)
        for row, (history, target) in enumerate(zip(histories, targets, strict=True))
        for item in [*history, target]
    ]
    return HoldoutSet(
        items=torch.tensor([[history[-1]] for history in histories]),
        lengths=torch.ones(len(targets), dtype=torch.int64),
        targets=torch.tensor(targets),
        seen_rows=torch.tensor([row for row, _ in seen]),
        seen_items=torch.tensor([item for _, item in seen]),
        user_rows=torch.tensor([row for row, _ in user]),
        user_items=torch.tensor([item for _, item in user]),
        n_items=n_items,
    )


SCORES = torch.tensor(
    [
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        [0.5, 0.5, 0.5, 0.1, 0.1, 0.1],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.9, 0.2, 0.8, 0.1, 0.0, 0.3],
        [0.9, 0.2, 0.8, 0.1, 0.0, -0.1],
        [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0],
    ]
)
HISTORIES = [[0], [5, 4], [3, 3], [0], [0, 5, 2], [0, 5, 2], [1, 2, 3, 4, 0]]
TARGETS = [2, 0, 1, 1, 5, 5, 5]
RANKS = [
    1,  # item 0 is seen; item 1 alone is better than item 2
    0,  # the best
    2,  # items 0 and 2 score the same as item 1: both count against it
    4,  # all alike: 2, 3, 4, 5 (0 is seen)
    None,  # the target was met before: no question
    None,
    0,  # the only candidate left
]
# Among all six items; ties count against the target here too.
RANKS_AMONG_ALL = [2, 0, 2, 5, 2, 5, 5]


def test_ranks_by_hand() -> None:
    holdout = ask(HISTORIES, TARGETS, 6)
    assert asked(holdout, "unseen").tolist() == [rank is not None for rank in RANKS]
    found = ranks_of(SCORES, holdout, "unseen")
    assert [rank for rank, wanted in zip(found, RANKS, strict=True) if wanted is not None] == [
        rank for rank in RANKS if rank is not None
    ]
    assert asked(holdout, "all").all()
    assert ranks_of(SCORES, holdout, "all") == RANKS_AMONG_ALL
    assert not asked(holdout, "sampled-100").any()


def test_a_model_of_states_and_one_of_scores_are_measured_alike() -> None:
    """With the identity as item table a question's state is its row of scores."""
    holdout = ask(HISTORIES, TARGETS, 6)
    states = Fixed(torch.eye(6), lambda *_: SCORES)
    both: list[Protocol] = ["all", "unseen"]
    found = evaluate_all(states, holdout, both)
    assert found == evaluate_all(Dense(SCORES), holdout, both)
    assert (found["all"]["questions"], found["unseen"]["questions"]) == (7, 5)


@pytest.mark.parametrize("at_once", [1, 6, 11, 12, 13, 6 * 6, 7 * 6, 1000])
def test_chunks_do_not_change_ranks(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """7 questions of 6 items: from one at a time (even where it does not fit) to all at once."""
    holdout = ask(HISTORIES, TARGETS, 6)
    for protocol in ("all", "unseen"):
        monkeypatch.setattr(ranking, "SCORES_AT_ONCE", 1000)
        whole = ranks_of(SCORES, holdout, protocol)
        monkeypatch.setattr(ranking, "SCORES_AT_ONCE", at_once)
        assert ranks_of(SCORES, holdout, protocol) == whole


def test_metrics_by_hand() -> None:
    """TorchProcessGroup 0, 1, 4 | 5, 9 | 10, 19 | 20: hits at 5, 10, 20 are 3, 5 and 7 of 8."""
    found = metrics(torch.tensor([10, 0, 20, 4, 1, 19, 9, 5]))
    # 1/log2(rank + 2): 1, 1/log2(3) = 0.63093, 1/log2(6) = 0.38685 | 1/log2(7) = 0.35621,
    # 1/log2(11) = 0.28906 | 1/log2(12) = 0.27894, 1/log2(21) = 0.22767.
    # Sums: 2.01778, 2.66305, 3.16966.
    # 1/(rank + 1): 1, 1/2, 1/5 | 1/6, 1/10 | 1/11, 1/20. Sums: 1.7, 1.96667, 2.10758.
    assert found == {
        "questions": 8,
        "hr@5": 3 / 8,
        "hr@10": 5 / 8,
        "hr@20": 7 / 8,
        "ndcg@5": pytest.approx(2.01778 / 8, abs=2e-6),
        "ndcg@10": pytest.approx(2.66305 / 8, abs=2e-6),
        "ndcg@20": pytest.approx(3.16966 / 8, abs=2e-6),
        "mrr@5": pytest.approx(1.7 / 8),
        "mrr@10": pytest.approx(1.96667 / 8, abs=2e-6),
        "mrr@20": pytest.approx(2.10758 / 8, abs=2e-6),
    }


@pytest.mark.parametrize(("rank", "value"), [(0, 1.0), (1, 0.6309297535714575), (20, 0.0)])
def test_ndcg_of_one_rank(rank: int, value: float) -> None:
    assert metrics(torch.tensor([rank]))["ndcg@20"] == pytest.approx(value, rel=1e-12)


def sampled(histories: Sequence[Sequence[int]], n_items: int, seed: int = 0) -> list[list[int]]:
    """Negatives of users with these histories (the last event of each is the target)."""
    holdout = ask([h[:-1] for h in histories], [h[-1] for h in histories], n_items)
    drawn = sample_negatives(holdout, seed)
    assert drawn.shape == (len(histories), NEGATIVES)
    return [[int(item) for item in row] for row in drawn]


@settings(max_examples=25, deadline=None)
@given(
    histories=st.lists(
        st.lists(st.integers(0, 119), min_size=2, max_size=20), min_size=1, max_size=4
    ),
    seed=st.integers(0, 2**31),
)
def test_negatives_are_distinct_and_new_to_the_user(histories: list[list[int]], seed: int) -> None:
    for history, row in zip(histories, sampled(histories, 120, seed), strict=True):
        if history[-1] in history[:-1]:
            continue  # no question
        assert len(set(row)) == NEGATIVES
        assert set(row) <= set(range(120)) - set(history)


def test_negatives_avoid_validation_and_test_events_of_either_role() -> None:
    """104 items, a user with four different ones: the 100 others, whichever question is asked."""
    split = make_split([[3, 50, 103, 0]], 104)
    roles: tuple[Role, ...] = ("validation", "test")
    for role in roles:
        drawn = sample_negatives(holdout_set(split, role, 5), 0)
        assert sorted(drawn[0].tolist()) == sorted(set(range(104)) - {3, 50, 103, 0})


def test_a_user_with_few_items_left_takes_no_negatives_from_others() -> None:
    """A repeated item counts once: with 102 items, two different ones leave 100, three 99."""
    left_out, asked_about = sampled([[7, 9, 8], [7, 7, 8]], 102)
    assert left_out == [0] * NEGATIVES
    assert sorted(asked_about) == [item for item in range(102) if item not in (7, 8)]


def test_protocols_that_have_a_question() -> None:
    """`sampled-100` asks where 100 items are left: of 103, two histories leave that, of 102 one."""
    histories, targets = [[1], [7, 9]], [2, 8]
    for n_items, counts in ((103, 2), (102, 1), (101, 0)):
        holdout = ask(histories, targets, n_items)
        assert int(asked(holdout, "sampled-100").sum()) == counts
        found = ("all", "unseen", "sampled-100") if counts else ("all", "unseen")
        assert available_protocols(holdout) == found
    assert protocol_notes(ask(histories, targets, 103)) == []
    (some,) = protocol_notes(ask(histories, targets, 102))
    assert "leaves out 1 of 2 questions" in some
    (none,) = protocol_notes(ask(histories, targets, 101))
    assert "no `sampled-100` figures" in none
    repeated = ask([[1, 2], [7, 9]], [1, 9], 200)
    assert available_protocols(repeated) == ("all",)
    (why,) = protocol_notes(repeated)
    assert "met before" in why
    assert "`unseen`" in why


def test_a_protocol_without_a_question_is_no_figure() -> None:
    with pytest.raises(ValueError, match="unseen has no question"):
        evaluate(Dense(torch.zeros(1, 4)), ask([[1]], [1], 4), "unseen")


def test_repeated_items_take_no_protocol_away() -> None:
    holdout = ask([[7, 7, 7]], [8], 102)
    assert sample_negatives(holdout, 0).shape == (1, NEGATIVES)
    assert available_protocols(holdout) == ("all", "unseen", "sampled-100")


def test_negatives_are_the_seeds() -> None:
    histories = [[1, 2, 3], [1, 2, 3], [4, 5, 150]]
    one, same, other = (sampled(histories, 200, seed) for seed in (5, 5, 6))
    assert one == same
    assert one != other
    assert one[0] != one[1]  # each question draws for itself


def test_negatives_are_uniform() -> None:
    """Chi-square over 300 draws of 100 from 391, with gaps at both ends and in the middle."""
    history = [0, 1, 2, 77, 199, 200, 201, 300, 399]
    n_items, randomness = 400, 300
    counts = torch.zeros(n_items, dtype=torch.int64)
    for row in sampled([history] * randomness, n_items, seed=1):
        counts += torch.bincount(torch.tensor(row), minlength=n_items)
    assert not counts[history].any()
    others = [item for item in range(n_items) if item not in history]
    share = NEGATIVES / len(others)
    expected = randomness * share
    statistic = sum((int(counts[item]) - expected) ** 2 for item in others) / (
        expected * (1 - share)
    )
    # Mean 391 (less one), standard deviation sqrt(2 * 391) = 28: five of them either way.
    assert abs(statistic - len(others)) < 5 * math.sqrt(2 * len(others))
    # And no trend along the catalogue: the mean item drawn is the mean item left.
    mean = sum(item * int(counts[item]) for item in others) / (randomness * NEGATIVES)
    assert abs(mean - sum(others) / len(others)) < 5 * 115 / math.sqrt(randomness * NEGATIVES)


def test_rank_among_sampled_by_hand() -> None:
    """102 items, history [0], target 1: the negatives are the other hundred, 2 to 101."""
    holdout = ask([[0], [0], [0]], [1, 1, 1], 102)
    scores = torch.zeros(3, 102)
    scores[:, 0] = 9.0  # seen: no candidate, however good
    scores[0, 1], scores[0, 2:12] = 1.0, 2.0  # ten are better
    scores[1, 1] = 1.0  # the best
    # Question 2: all alike, every tie counts against it.
    assert ranks_of(scores, holdout, "sampled-100") == [10, 0, 100]


@pytest.mark.parametrize("cases", [1, 2, 3, 64])
@pytest.mark.parametrize("width", [4, 32, 33, 64])
def test_a_model_that_scores_all_items_alike_is_last(width: int, cases: int) -> None:
    """Equal item embeddings: exact ties, whatever the rounding of the products."""
    holdout = ask([[0]] * cases, [1] * cases, 150)
    hidden, table = normal(0, cases, width).float(), normal(1, width).float().repeat(150, 1)
    scorer = ranking.scorer_of(Fixed(table, lambda *_: hidden), holdout)
    ranks = rank_targets(scorer, holdout, PROTOCOLS)
    last = {"all": 149, "unseen": 148, "sampled-100": 100}
    assert {protocol: set(rank.tolist()) for protocol, rank in ranks.items()} == {
        protocol: {place} for protocol, place in last.items()
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("where", ["hidden", "table", "target's row"])
def test_a_model_that_diverged_is_not_perfect(protocol: Protocol, where: str) -> None:
    holdout = ask([[0]] * 3, [1] * 3, 150)
    hidden, table = normal(0, 3, 4), normal(1, 150, 4)
    {"hidden": hidden, "table": table, "target's row": table[1]}[where].fill_(torch.nan)
    found = evaluate(Fixed(table, lambda *_: hidden), holdout, protocol)
    assert found["hr@20"] == 0
    assert found["ndcg@10"] == 0
