"""Weights of mixtures: candidates against ranks among all items, and the search."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from td3engine.ranking import metrics as metrics_module
from td3engine.ranking.holdout import HoldoutSet
from td3engine.ranking.metrics import evaluate, metrics
from td3engine.teacher import mixing
from td3engine.teacher.mixing import ODDS, best_weights, candidates, fit_mixture, reduced_ndcg
from td3engine.teacher.mixture import FLOOR, HISTORY, Mixture, Part, Repeat, met_items
from tests.td3engine.counting.kit import ITEMS, all_scores, odd_log
from tests.td3engine.oracles import make_split
from tests.td3engine.teacher.kit import cases_of, make_parts

SOME_WEIGHTS = [
    [0.25, 0.25, 0.25, 0.25],
    [0.7, 0.1, 0.15, 0.05],
    [1e-6, 0.5, 0, 0.5],
    [1.0, 0, 0, 0],
    [0, 1.0, 0, 0],
    [0, 0, 1.0, 0],
    [0, 0, 0, 1.0],
]
MANY = 80  # items of a larger log


def busy_log(seed: int, n_items: int = ITEMS) -> list[list[int]]:
    """Some users met nearly every item, one all; about half repeat."""
    log = odd_log(seed, users=50)
    for user in range(9, 20):
        log[user] += [log[user][0]] * 2
    generator = torch.Generator().manual_seed(seed)
    for user in range(20, 40):
        length = int(torch.randint(3, n_items, (), generator=generator))
        log[user] = torch.randperm(n_items, generator=generator)[:length].tolist()
    log[8] = [*range(n_items), 2]
    return log


def exact_ndcg(parts: dict[str, Part], weights: Tensor, cases: HoldoutSet, new: bool) -> float:
    """NDCG@10 of new targets among new items, or of targets that were met among those."""
    mixed = Mixture(parts, weights, weights, Repeat(HISTORY, 0.5))
    asked = cases.new_target if new else ~cases.new_target
    scores = all_scores(mixed, cases)
    met = met_items(cases, slice(0, len(cases.targets)))
    rivals = ~met if new else met
    ahead = (scores >= scores.gather(1, cases.targets[:, None])) & rivals
    return metrics((ahead.sum(1) - 1)[asked])["ndcg@10"]


@pytest.mark.parametrize("weights", SOME_WEIGHTS)
@pytest.mark.parametrize("at_once", [1, 5 * ITEMS, 10**6])
def test_with_candidates_enough_ranks_are_those_among_all_items(
    monkeypatch: pytest.MonkeyPatch, weights: list[float], at_once: int
) -> None:
    monkeypatch.setattr(metrics_module, "SCORES_AT_ONCE", at_once)
    parts, cases, weights_K = make_parts(1), cases_of(busy_log(1)), torch.tensor(weights)
    new, met = candidates(list(parts.values()), cases)
    assert len(new) + len(met) == len(cases.targets)
    assert len(new) > 10
    assert len(met) > 10
    for reduced, are_new in ((new, True), (met, False)):
        wanted = exact_ndcg(parts, weights_K, cases, are_new)
        assert reduced_ndcg(reduced, weights_K) == pytest.approx(wanted, abs=1e-6)
    unseen = evaluate(Mixture(parts, weights_K, weights_K, Repeat(HISTORY, 0.5)), cases, "unseen")[
        "ndcg@10"
    ]
    assert reduced_ndcg(new, weights_K) == pytest.approx(unseen, abs=1e-6)


@pytest.mark.parametrize("weights", SOME_WEIGHTS)
@pytest.mark.parametrize("kept", [1, 3, 10, 25])
def test_fewer_candidates_never_hide_a_success(
    monkeypatch: pytest.MonkeyPatch, weights: list[float], kept: int
) -> None:
    """Some items that beat the target may be missing; of a part alone none is, down to ten."""
    monkeypatch.setattr(mixing, "CANDIDATES", kept)
    parts, weights_K = make_parts(2, MANY), torch.tensor(weights)
    cases = cases_of(busy_log(2, MANY), n_items=MANY)
    reduced = candidates(list(parts.values()), cases)
    for values, are_new in zip(reduced, (True, False), strict=True):
        assert values.shape[1:] == (1 + 4 * kept, 4)
        found = reduced_ndcg(values, weights_K)
        wanted = exact_ndcg(parts, weights_K, cases, are_new)
        assert found >= wanted - 1e-6
        if kept >= 10 and max(weights) == 1:
            assert found == pytest.approx(wanted, abs=1e-6)


def test_an_item_is_a_candidate_once() -> None:
    parts, cases = make_parts(3), cases_of(busy_log(3))
    met = met_items(cases, slice(0, len(cases.targets)))
    sides = (cases.new_target, ~met), (~cases.new_target, met)
    for values, (asked, rivals) in zip(candidates(list(parts.values()), cases), sides, strict=True):
        absent = values == -1
        assert torch.equal(absent.all(2), absent.any(2))
        # With as many candidates as items: the target, and each other item of its kind.
        assert (~absent.all(2)).sum(1).tolist() == rivals[asked].sum(1).tolist()


def test_a_log_with_one_kind_of_targets() -> None:
    parts = list(make_parts().values())
    new, met = candidates(parts, cases_of([[0, 1, 2, 3], [4, 5, 6]]))
    assert (len(new), len(met)) == (2, 0)
    new, met = candidates(parts, cases_of([[0, 0, 0, 0], [4, 5, 5]]))
    assert (len(new), len(met)) == (0, 2)


def test_ties_and_what_is_no_number_count_against() -> None:
    values = torch.full((1, 12, 2), 0.5)
    even = torch.tensor([0.5, 0.5])
    assert reduced_ndcg(values, even) == 0
    values[0, 1:] = -1.0
    assert reduced_ndcg(values, even) == 1
    values[0, 0] = torch.nan
    assert reduced_ndcg(values, even) == 0


# Far enough apart that the floor of the first part turns no order around.
GRID = st.integers(0, 16).map(lambda step: step / 16)


@st.composite
def reduced_questions(draw: st.DrawFn) -> Tensor:
    questions, items, parts = (draw(st.integers(1, most)) for most in (6, 14, 4))
    count = questions * items * parts
    flat = draw(st.lists(GRID, min_size=count, max_size=count))
    return torch.tensor(flat).reshape(questions, items, parts)


@settings(max_examples=40, deadline=None)
@given(values=reduced_questions())
def test_best_weights_are_no_worse_than_any_part(values: Tensor) -> None:
    n_parts = values.shape[2]
    found = best_weights(values)
    assert (found >= 0).all()
    assert float(found.sum()) == pytest.approx(1)
    assert found[0] >= 0.99 * FLOOR
    for weights in (*torch.eye(n_parts), torch.full((n_parts,), 1 / n_parts)):
        assert reduced_ndcg(values, found) >= reduced_ndcg(values, weights)
    assert torch.equal(best_weights(values), found)


def test_parts_that_only_win_together() -> None:
    """Each has the target second to another item; they disagree on which."""
    rng = torch.Generator().manual_seed(0)
    values = torch.rand(50, 20, 3, generator=rng) * 0.5
    values[:, 0] = 0.8
    for part in range(3):
        values[:, 1 + part, part] = 1.0
    assert max(reduced_ndcg(values, alone) for alone in torch.eye(3)) < 0.64
    assert reduced_ndcg(values, best_weights(values)) == 1


def test_the_first_part_can_enter_after_a_start_without_it() -> None:
    """Part 1 alone is the best start, and a little of part 0 puts its only rival behind."""
    target, rival, others = [0.1, 0.5], [0.0, 0.505], [[0.9, 0.0]] * 2
    values = torch.tensor([[target, rival, *others]])
    even, *alone = (reduced_ndcg(values, w) for w in (torch.tensor([0.5, 0.5]), *torch.eye(2)))
    assert even == alone[0] < alone[1] < 1
    assert reduced_ndcg(values, best_weights(values)) == 1


def test_the_floor_stays_where_the_first_part_only_harms() -> None:
    target, rivals = [0.0, 0.8, 0.8], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.5, 0.5]]
    values = torch.tensor([[target, *rivals]])
    assert reduced_ndcg(values, torch.full((3,), 1 / 3)) < 1
    found = best_weights(values)
    assert reduced_ndcg(values, found) == 1
    assert found.tolist() == pytest.approx([FLOOR, 0.5, 0.5], rel=1e-4)


def test_without_questions_the_first_part_is_all() -> None:
    assert best_weights(torch.empty(0, 5, 4)).tolist() == [1, 0, 0, 0]


def repeating(share: float) -> tuple[list[list[int]], dict[str, Part]]:
    """Users take an item of their own again with this chance."""
    generator = torch.Generator().manual_seed(3)
    histories: list[list[int]] = []
    for _ in range(120):
        history = [int(torch.randint(MANY, (), generator=generator))]
        for _ in range(9):
            again = float(torch.rand((), generator=generator)) < share
            known = history if again else list(range(MANY))
            history.append(known[int(torch.randint(len(known), (), generator=generator))])
        histories.append(history)
    return histories, make_parts(4, MANY)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_the_fitted_mixture(share: float) -> None:
    histories, parts = repeating(share)
    validation = cases_of(histories, "validation", MANY)
    split_share = make_split(histories, MANY).repeat_share
    found = fit_mixture(parts, validation, split_share)
    assert found.parts == parts
    new, met = candidates(list(parts.values()), validation)
    assert torch.equal(found.new_weights, best_weights(new))
    assert torch.equal(found.met_weights, best_weights(met))
    value = evaluate(found, validation, "all")["ndcg@10"]
    assert found.repeat.share == split_share
    if not split_share:
        assert found.repeat == Repeat(HISTORY, 0)
    for source in [HISTORY, *parts] if split_share else []:
        for odds in ODDS:
            other = replace(found, repeat=Repeat(source, split_share, odds))
            assert value >= evaluate(other, validation, "all")["ndcg@10"] - 1e-6
    again = fit_mixture(parts, validation, split_share)
    assert torch.equal(all_scores(again, validation), all_scores(found, validation))


def test_a_share_that_decides_nothing_stays() -> None:
    """One user repeats, and no order depends on how often."""
    validation = cases_of([[0, 0, 0, 0, 0], [1, 2, 2, 2, 2]], "validation")
    assert fit_mixture(make_parts(), validation, 0.6).repeat == Repeat(HISTORY, 0.6)


@pytest.mark.parametrize("repeat_share", [0.0, 1.0])
def test_the_ends_of_the_share_stay(repeat_share: float) -> None:
    validation = cases_of(odd_log(5), "validation")
    assert fit_mixture(make_parts(), validation, repeat_share).repeat.share == repeat_share


@pytest.mark.parametrize(("scores", "wanted"), [(0, 7), (11 * ITEMS, 11), (10**6, None)])
def test_weights_are_chosen_on_what_is_affordable(
    monkeypatch: pytest.MonkeyPatch, scores: int, wanted: int | None
) -> None:
    monkeypatch.setattr(mixing, "SCORED_AT_MOST", scores)
    monkeypatch.setattr(mixing, "FEWEST_CASES", 7)
    asked: list[int] = []
    reduce = mixing.candidates

    def counted(parts: list[Part], cases: HoldoutSet) -> tuple[Tensor, Tensor]:
        asked.append(len(cases.targets))
        return reduce(parts, cases)

    monkeypatch.setattr(mixing, "candidates", counted)
    validation = cases_of(odd_log(6, users=60), "validation")
    fit_mixture(make_parts(), validation, 0.3)
    assert asked == [wanted or len(validation.targets)]
