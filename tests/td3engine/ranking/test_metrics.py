"""Ranks and metrics: by hand, against a slow loop, and the negatives of `sampled-100`."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from td3engine.ranking import metrics as ranking
from td3engine.ranking.holdout import HoldoutSet, Role, holdout_set
from td3engine.ranking.metrics import (
    NEGATIVES,
    available_protocols,
    evaluate,
    metrics,
    rank_among_sampled,
    rank_among_unseen,
    sample_negatives,
)
from tests.td3engine.oracles import make_split, normal


@dataclass(frozen=True)
class Fixed:
    """A model of a table and a function of histories."""

    table: Tensor
    states: Callable[[Tensor, Tensor], Tensor]


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


# With the identity as item table a question's hidden state is its row of scores.
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
    0,  # the target was met before, and is a candidate all the same: 1, 3, 4 are worse
    3,  # the same, but all three are better; it does not count against itself
    0,  # the only candidate left
]


def test_ranks_by_hand() -> None:
    holdout = ask(HISTORIES, TARGETS, 6)
    assert rank_among_unseen(SCORES, torch.eye(6), holdout).tolist() == RANKS


@pytest.mark.parametrize("at_once", [1, 6, 11, 12, 13, 6 * 6, 7 * 6, 1000])
def test_chunks_do_not_change_ranks(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """7 questions of 6 items: from one at a time (even where it does not fit) to all at once."""
    monkeypatch.setattr(ranking, "SCORES_AT_ONCE", at_once)
    holdout = ask(HISTORIES, TARGETS, 6)
    assert rank_among_unseen(SCORES, torch.eye(6), holdout).tolist() == RANKS


def test_metrics_by_hand() -> None:
    """TorchProcessGroup 0, 1, 4 | 5, 9 | 10, 19 | 20: hits at 5, 10, 20 are 3, 5 and 7 of 8."""
    found = metrics(torch.tensor([10, 0, 20, 4, 1, 19, 9, 5]))
    # 1/log2(rank + 2): 1, 1/log2(3) = 0.63093, 1/log2(6) = 0.38685 | 1/log2(7) = 0.35621,
    # 1/log2(11) = 0.28906 | 1/log2(12) = 0.27894, 1/log2(21) = 0.22767.
    # Sums: 2.01778, 2.66305, 3.16966.
    # 1/(rank + 1): 1, 1/2, 1/5 | 1/6, 1/10 | 1/11, 1/20. Sums: 1.7, 1.96667, 2.10758.
    assert found == {
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
        assert len(set(row)) == NEGATIVES
        assert set(row) <= set(range(120)) - set(history)


def test_negatives_avoid_validation_and_test_events_of_either_role() -> None:
    """104 items, a user with four different ones: the 100 others, whichever question is asked."""
    split = make_split([[3, 50, 103, 0]], 104)
    roles: tuple[Role, ...] = ("validation", "test")
    for role in roles:
        drawn = sample_negatives(holdout_set(split, role, 5), 0)
        assert sorted(drawn[0].tolist()) == sorted(set(range(104)) - {3, 50, 103, 0})


def test_too_few_negatives_are_an_error() -> None:
    """A repeated item counts once: with 102 items, two different ones leave 100, three 99."""
    assert len(sampled([[7, 7, 8]], 102)[0]) == NEGATIVES
    with pytest.raises(ValueError, match="99 items"):
        sampled([[7, 9, 8]], 102)


def test_protocols_that_a_catalogue_allows() -> None:
    """The user with most different items decides: 3 of 103 leave 100, 3 of 102 only 99."""
    histories, targets = [[1], [7, 9]], [2, 8]
    assert available_protocols(ask(histories, targets, 103)) == ("full", "sampled-100")
    assert available_protocols(ask(histories, targets, 102)) == ("full",)


def test_repeated_items_take_no_protocol_away() -> None:
    holdout = ask([[7, 7, 7]], [8], 102)
    assert sample_negatives(holdout, 0).shape == (1, NEGATIVES)
    assert available_protocols(holdout) == ("full", "sampled-100")


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
    assert rank_among_sampled(scores, torch.eye(102), holdout, 0).tolist() == [10, 0, 100]


@pytest.mark.parametrize("width", [4, 32, 33])
def test_a_model_that_scores_all_items_alike_is_last_in_full(width: int) -> None:
    """Equal item embeddings: exact ties, whatever the rounding of the products."""
    holdout = ask([[0]] * 64, [1] * 64, 150)
    hidden, table = normal(0, 64, width).float(), normal(1, width).float().repeat(150, 1)
    assert rank_among_unseen(hidden, table, holdout).tolist() == [148] * 64


def test_a_model_that_scores_all_items_alike_is_last_in_sampled() -> None:
    holdout = ask([[0]] * 64, [1] * 64, 150)
    for width in (4, 32, 33):
        hidden, table = normal(0, 64, width).float(), normal(1, width).float().repeat(150, 1)
        assert rank_among_sampled(hidden, table, holdout, 0).tolist() == [100] * 64


@pytest.mark.parametrize("protocol", ranking.PROTOCOLS)
@pytest.mark.parametrize("where", ["hidden", "table", "target's row"])
def test_a_model_that_diverged_is_not_perfect(protocol: ranking.Protocol, where: str) -> None:
    holdout = ask([[0]] * 3, [1] * 3, 150)
    hidden, table = normal(0, 3, 4), normal(1, 150, 4)
    {"hidden": hidden, "table": table, "target's row": table[1]}[where].fill_(torch.nan)
    found = evaluate(Fixed(table, lambda *_: hidden), holdout, protocol)
    assert found["hr@20"] == 0
    assert found["ndcg@10"] == 0


def slow_evaluate(
    histories: Sequence[Sequence[int]], role: Role, window: int, table: Tensor, seed: int | None
) -> dict[str, float]:
    """Every user in a loop. The "model" is the sum of the embeddings in reach."""
    held_out = 1 if role == "test" else 2
    users = [history for history in histories if len(history) >= 3]
    drawn = (
        sampled([[*history] for history in users], len(table), seed) if seed is not None else None
    )
    ranks = []
    for number, history in enumerate(users):
        past, target = history[: len(history) - held_out], history[len(history) - held_out]
        state = [
            sum(float(table[item, k]) for item in past[-window:]) for k in range(table.shape[1])
        ]
        score = [sum(h * float(e) for h, e in zip(state, row, strict=True)) for row in table]
        others = set(range(len(table))) - set(past) if drawn is None else set(drawn[number])
        ranks.append(sum(score[item] >= score[target] for item in others - {target}))
    found = {}
    for k in (5, 10, 20):
        hits = [rank for rank in ranks if rank < k]
        found[f"hr@{k}"] = len(hits) / len(ranks)
        found[f"ndcg@{k}"] = sum(1 / math.log2(rank + 2) for rank in hits) / len(ranks)
        found[f"mrr@{k}"] = sum(1 / (rank + 1) for rank in hits) / len(ranks)
    return found


@pytest.mark.parametrize("role", ["validation", "test"])
@pytest.mark.parametrize("protocol", ["full", "sampled-100"])
@pytest.mark.parametrize("at_once", [300, 4_000_000])
def test_evaluate_is_the_slow_loop(
    monkeypatch: pytest.MonkeyPatch, role: Role, protocol: ranking.Protocol, at_once: int
) -> None:
    monkeypatch.setattr(ranking, "SCORES_AT_ONCE", at_once)
    n_items, window = 130, 6
    draw = random.Random(4)
    histories = [[draw.randrange(n_items) for _ in range(draw.randint(1, 12))] for _ in range(60)]
    histories[7] = [5, 6, 5, 6, 5, 6]  # targets that were met before
    table = normal(8, n_items, 3)
    holdout = holdout_set(make_split(histories, n_items), role, window)

    def total(items: Tensor, lengths: Tensor) -> Tensor:
        real = torch.arange(items.shape[1]) < lengths[:, None]
        return (table[items] * real[:, :, None]).sum(1)

    seed = 3
    found = evaluate(Fixed(table, total), holdout, protocol, seed)
    wanted = slow_evaluate(
        histories, role, window, table, seed if protocol == "sampled-100" else None
    )
    assert 0 < found["hr@20"] < 1
    assert found == pytest.approx(wanted, rel=1e-12)
