"""Questions and ranks of all protocols against a loop over users, where items come again."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from td3engine.config import DataConfig
from td3engine.ranking import metrics as ranking
from td3engine.ranking.holdout import Holdouts, Role, holdout_set, validation_protocol
from td3engine.ranking.metrics import evaluate_all, scorer_of, validation_ndcg
from td3engine.ranking.protocols import (
    PROTOCOLS,
    Protocol,
    asked,
    available_protocols,
    sample_negatives,
)
from tests.td3engine.oracles import make_split, normal
from tests.td3engine.ranking.dense import Dense

ROLES: tuple[Role, ...] = ("validation", "test")


def repeating_log(seed: int, users: int, n_items: int, repeats: float) -> list[list[int]]:
    """Users who take an item of their own again with this chance."""
    draw = random.Random(seed)
    histories = []
    for _ in range(users):
        history = [draw.randrange(n_items)]
        for _ in range(draw.randint(0, 14)):
            again = draw.random() < repeats
            history.append(draw.choice(history) if again else draw.randrange(n_items))
        histories.append(history)
    return histories


def peculiar_log(seed: int, n_items: int) -> list[list[int]]:
    """One of about 47% repeats, with a user who met every item, and one who met most."""
    histories = repeating_log(seed, 60, n_items, 0.45)
    draw = random.Random(seed + 100)
    histories[7] = draw.sample(range(n_items), n_items)
    histories[11] = draw.sample(range(n_items), n_items - 60)
    histories[13] = [*draw.sample(range(n_items), n_items), 3, 3]
    return histories


@dataclass(frozen=True)
class Case:
    """What is asked of one user, in plain lists."""

    past: list[int]
    target: int
    whole: list[int]


def cases_of(histories: Sequence[list[int]], role: Role) -> list[Case]:
    held_out = 1 if role == "test" else 2
    return [
        Case(history[: len(history) - held_out], history[len(history) - held_out], history)
        for history in histories
        if len(history) >= 3
    ]


def slow_rank(
    case: Case, protocol: Protocol, scores: Sequence[float], negatives: Sequence[int]
) -> int | None:
    """The target's rank, or None where nothing is asked."""
    items = set(range(len(scores)))
    rivals = items
    if protocol != "all":
        if case.target in case.past:
            return None
        rivals = items - set(case.past)
    if protocol == "sampled-100":
        left = items - set(case.whole)
        if len(left) < 100:
            return None
        assert set(negatives) <= left
        assert len(set(negatives)) == len(negatives) == 100
        rivals = set(negatives)
    return sum(
        not scores[item] < scores[case.target]  # NaN counts against the target
        for item in rivals - {case.target}
    )


def slow_metrics(ranks: Sequence[int]) -> dict[str, float]:
    found: dict[str, float] = {"questions": len(ranks)}
    for k in (5, 10, 20):
        hits = [rank for rank in ranks if rank < k]
        found[f"hr@{k}"] = len(hits) / len(ranks)
        found[f"ndcg@{k}"] = sum(1 / math.log2(rank + 2) for rank in hits) / len(ranks)
        found[f"mrr@{k}"] = sum(1 / (rank + 1) for rank in hits) / len(ranks)
    return found


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("at_once", [1, 500, 4_000_000])
def test_every_protocol_is_the_slow_loop(
    monkeypatch: pytest.MonkeyPatch, role: Role, seed: int, at_once: int
) -> None:
    monkeypatch.setattr(ranking, "SCORES_AT_ONCE", at_once)
    n_items = 150
    histories = peculiar_log(seed, n_items)
    cases = cases_of(histories, role)
    holdout = holdout_set(make_split(histories, n_items), role, 6)
    # Few different values, so that many are equal; and some that are no numbers.
    scores = (normal(seed, len(cases), n_items) * 4).round()
    scores[range(len(cases)), [case.target for case in cases]] += 4
    scores[torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed)) < 0.03] = (
        torch.nan
    )
    scores[5, cases[5].target] = torch.nan
    negatives = sample_negatives(holdout, seed).tolist()
    found = evaluate_all(Dense(scores), holdout, PROTOCOLS, seed)
    for protocol in PROTOCOLS:
        ranks = [
            slow_rank(case, protocol, row, drawn)
            for case, row, drawn in zip(cases, scores.tolist(), negatives, strict=True)
        ]
        assert asked(holdout, protocol).tolist() == [rank is not None for rank in ranks]
        wanted = slow_metrics([rank for rank in ranks if rank is not None])
        assert found[protocol] == pytest.approx(wanted, rel=1e-12)
        assert 0 < wanted["hr@20"] < 1
    counts = [found[protocol]["questions"] for protocol in PROTOCOLS]
    assert counts[0] == len(cases)
    assert 0.3 < 1 - counts[1] / counts[0] < 0.7  # repeats
    assert 0 < counts[2] < counts[1]


def test_states_times_a_table_are_the_same_scores() -> None:
    histories = repeating_log(1, 40, 130, 0.47)
    holdout = holdout_set(make_split(histories, 130), "test", 6)
    table = normal(8, 130, 3)

    @dataclass(frozen=True)
    class Sums:
        table: Tensor

        def states(self, items_BL: Tensor, lengths_B: Tensor) -> Tensor:
            real = torch.arange(items_BL.shape[1]) < lengths_B[:, None]
            return (self.table[items_BL] * real[:, :, None]).sum(1)

    sums = [table[case.past[-6:]].sum(0) for case in cases_of(histories, "test")]
    dense = torch.stack(sums) @ table.T
    assert torch.allclose(scorer_of(Sums(table), holdout)(slice(0, len(dense))), dense)
    found, wanted = (evaluate_all(x, holdout, PROTOCOLS) for x in (Sums(table), Dense(dense)))
    for protocol in PROTOCOLS:
        assert found[protocol] == pytest.approx(wanted[protocol])


def test_the_history_of_a_case_is_in_time_order() -> None:
    histories = repeating_log(2, 30, 40, 0.47)
    cases = cases_of(histories, "validation")
    holdout = holdout_set(make_split(histories, 40), "validation", 3)
    for offsets, items, wanted in (
        (holdout.seen_offsets, holdout.seen_items, [case.past for case in cases]),
        (holdout.user_offsets, holdout.user_items, [case.whole for case in cases]),
    ):
        assert offsets.dtype == torch.int64
        bounds = offsets.tolist()
        parts = [items[a:b].tolist() for a, b in pairwise(bounds)]
        assert parts == wanted


def test_met_before_then_popular_gains_nothing_where_nothing_is_asked() -> None:
    """The rule that had 1.0 on repeated targets: it ranks among all items, or is not asked."""
    histories = repeating_log(3, 80, 150, 0.9)
    cases = cases_of(histories, "test")
    holdout = holdout_set(make_split(histories, 150), "test", 6)
    scores = torch.zeros(len(cases), 150)
    for row, case in enumerate(cases):
        scores[row, case.past] = 1.0
    found = evaluate_all(Dense(scores), holdout, available_protocols(holdout))
    fresh = [case for case in cases if case.target not in case.past]
    assert found["unseen"]["questions"] == len(fresh) < len(cases) / 2
    assert found["unseen"]["hr@20"] == 0
    # All items that were met tie.
    places = [len(set(case.past)) for case in cases if case.target in case.past]
    wanted = sum(place <= 5 for place in places) / len(cases)
    assert found["all"]["hr@5"] == pytest.approx(wanted)


def test_one_user_with_a_huge_history_costs_one_question() -> None:
    histories = [[(user + step) % 150 for step in range(8)] for user in range(50)]
    whole = holdout_set(make_split(histories, 150), "test", 6)
    with_one = holdout_set(make_split([*histories, list(range(120))], 150), "test", 6)
    assert available_protocols(with_one) == PROTOCOLS
    assert [int(asked(with_one, protocol).sum()) for protocol in PROTOCOLS] == [51, 51, 50]
    # The others are asked what they were asked without it.
    assert torch.equal(sample_negatives(with_one, 3)[:50], sample_negatives(whole, 3))


def share_of_repeats(histories: Sequence[list[int]]) -> float:
    """By hand: events but the first and, of users with three events, the test event."""
    counted = repeated = 0
    for history in histories:
        end = len(history) - (1 if len(history) >= 3 else 0)
        for place in range(1, end):
            counted += 1
            repeated += history[place] in history[:place]
    return repeated / counted


@pytest.mark.parametrize("seed", range(5))
def test_the_share_of_repeats_by_hand(seed: int) -> None:
    histories = repeating_log(seed, 50, 60, 0.47)
    split = make_split(histories, 60)
    assert split.statistics().repeat_share == pytest.approx(share_of_repeats(histories), rel=1e-12)


def ten_events(repeats: int) -> list[list[int]]:
    """A user of twelve events, ten of which count; this many repeat."""
    new = list(range(11 - repeats))
    return [[*new, *new[:1] * repeats, 20]]


@pytest.mark.parametrize(("repeats", "protocol"), [(0, "unseen"), (1, "all"), (5, "all")])
def test_the_share_of_repeats_chooses_from_a_tenth_on(repeats: int, protocol: Protocol) -> None:
    split = make_split(ten_events(repeats), 21)
    assert split.repeat_share == repeats / 10
    chosen, notes = validation_protocol(split, DataConfig())
    assert chosen == protocol
    assert len(notes) == (protocol == "all")
    assert Holdouts(split, DataConfig()).validation(5).validate_by == protocol


def test_test_events_do_not_choose() -> None:
    """Only the test events repeat, all of them."""
    histories = [[*range(user, user + 9), user] for user in range(10)]
    split = make_split(histories, 30)
    assert split.repeat_share == 0.0
    assert validation_protocol(split, DataConfig()) == ("unseen", [])


def test_a_protocol_without_a_validation_question_gives_way() -> None:
    """One repeat in twenty events, where all the validation events are."""
    histories = [[*range(22), 3, 25]]
    split = make_split(histories, 30)
    assert 0 < split.repeat_share < 0.1
    for setting in ("auto", "unseen"):
        chosen, notes = validation_protocol(split, DataConfig(validate_by=setting))
        assert chosen == "all"
        assert "every validation target" in notes[-1]
    holdout = Holdouts(split, DataConfig()).validation(5)
    assert validation_ndcg(Dense(torch.zeros(1, 30)), holdout) == 0.0


def test_a_setting_is_taken_and_the_old_name_is_understood() -> None:
    split = make_split(repeating_log(1, 40, 40, 0.5), 40)
    wanted = {"all": "all", "unseen": "unseen", "full": "unseen", "auto": "all"}
    for setting, protocol in wanted.items():
        config = DataConfig.model_validate({"validate_by": setting})
        assert validation_protocol(split, config)[0] == protocol


def test_repeats_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    histories = repeating_log(5, 30, 20, 0.5)
    wanted = [item in history[:at] for history in histories for at, item in enumerate(history)]
    for rows in (1, 7, 64, 10_000):
        monkeypatch.setattr("td3engine.data.repeats.ROWS_AT_ONCE", rows)
        found = make_split(histories, 20).repeats
        assert found.dtype == np.bool_
        assert found.tolist() == wanted
