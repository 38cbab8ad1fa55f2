"""Mixtures against a loop over parts and items, and what they answer to peculiar users."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from td3engine.counting.models import KernelModel, Popularity, Reading
from td3engine.ranking.metrics import evaluate, evaluate_all, rank_targets, validation_ndcg
from td3engine.ranking.protocols import available_protocols
from td3engine.teacher.mixture import (
    HISTORY,
    SMALLEST,
    Mixture,
    Repeat,
    met_items,
    normalised,
    repeat_share_of_users,
)
from tests.td3engine.counting.kit import ITEMS, all_scores, odd_log
from tests.td3engine.models.model_kit import make_model
from tests.td3engine.oracles import make_split
from tests.td3engine.teacher.kit import cases_of, make_parts, pasts_of, slow_mixture

EVEN = [0.25] * 4


def mixture(
    new: list[float] = EVEN,
    met: list[float] = EVEN,
    share: float = 0.3,
    seed: int = 0,
    source: str = HISTORY,
    odds: float = 1.0,
) -> Mixture:
    return Mixture(
        make_parts(seed), torch.tensor(new), torch.tensor(met), Repeat(source, share, odds)
    )


def walks(users: int = 40) -> list[list[int]]:
    """Histories without a repeat."""
    return [[(user + 5 * step) % ITEMS for step in range(3 + user % 9)] for user in range(users)]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("new", "met"),
    [
        (EVEN, EVEN),
        ([1.0, 0, 0, 0], [0, 0, 1.0, 0]),
        ([0.1, 0.2, 0.3, 0.4], [1e-6, 0.6, 0, 0.4]),
        ([0, 0, 0, 1.0], [0, 1.0, 0, 0]),
    ],
)
def test_probabilities(share: float, new: list[float], met: list[float]) -> None:
    cases = cases_of(odd_log(1))
    mixed = mixture(new, met, share)
    wanted = torch.tensor(slow_mixture(mixed.parts, new, met, mixed.repeat, cases))
    for at_once in (1, 7, 1000):
        found = all_scores(mixed, cases, at_once)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("odds", [1.0, 0.1, 4.0])
@pytest.mark.parametrize("part", range(4))
def test_a_part_says_how_probable_a_repeat_is(part: int, odds: float) -> None:
    cases, source = cases_of(odd_log(4)), list(make_parts())[part]
    mixed = mixture(source=source, odds=odds)
    wanted = torch.tensor(slow_mixture(mixed.parts, EVEN, EVEN, mixed.repeat, cases))
    # One minus a share near one has few digits in float32.
    torch.testing.assert_close(all_scores(mixed, cases, 7), wanted, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_a_part_that_is_sure_of_repeats_or_of_none_leaves_the_other_kind_in_order(
    certain: float,
) -> None:
    """A kernel that puts all or none of its weight on met items."""
    cases = cases_of(odd_log(4))
    kernel = np.eye(ITEMS, dtype=np.float32) if certain else np.zeros((ITEMS, ITEMS), np.float32)
    parts = {**make_parts(), "neighbours": KernelModel(kernel, Reading(50, 1.0))}
    weights = torch.tensor([0.5, 0.2, 0.3, 0])
    sure = Mixture(parts, weights, weights, Repeat("neighbours", 0.5))
    unsure = replace(sure, repeat=Repeat(HISTORY, 0.5))
    assert evaluate(sure, cases, "unseen") == evaluate(unsure, cases, "unseen")
    met = ~cases.new_target
    rows = met.nonzero()[:, 0].tolist()
    kinds = met_items(cases, slice(0, len(cases.targets)))
    for row in rows:
        scores = [all_scores(each, cases)[row][kinds[row]] for each in (sure, unsure)]
        assert scores[0].argsort().tolist() == scores[1].argsort().tolist()


def test_a_part_alone_ranks_as_it_does_by_itself() -> None:
    """It says where repeats are, too."""
    cases = cases_of(odd_log(3))
    alone = mixture([1.0, 0, 0, 0], [1.0, 0, 0, 0], source="network")
    assert evaluate(alone, cases, "all") == evaluate(make_parts()["network"], cases, "all")


def test_probabilities_sum_to_one() -> None:
    """Also where a part has no weight for any item of a kind."""
    found = all_scores(mixture(), cases_of(walks(30)))
    torch.testing.assert_close(found.sum(1), torch.ones(30), rtol=1e-5, atol=0)


def test_met_items_and_repeat_share_of_users() -> None:
    cases = cases_of(odd_log(2))
    pasts = pasts_of(cases)
    met = torch.cat([met_items(cases, slice(0, 3)), met_items(cases, slice(3, len(pasts)))])
    assert met.tolist() == [[item in past for item in range(ITEMS)] for past in pasts]
    wanted = [
        (sum(item in past[:place] for place, item in enumerate(past)) + 10 * 0.4)
        / (len(past) - 1 + 10)
        for past in pasts
    ]
    assert repeat_share_of_users(cases, 0.4).tolist() == pytest.approx(wanted)


def test_a_user_with_one_event_repeats_as_the_log_does() -> None:
    cases = cases_of([[3, 1, 2], [4, 4, 4]], "validation")
    assert [len(past) for past in pasts_of(cases)] == [1, 1]
    assert repeat_share_of_users(cases, 0.25).tolist() == [0.25, 0.25]
    scores = all_scores(mixture([0.5, 0, 0.5, 0], [0, 0, 1.0, 0], 0.25), cases)
    assert scores[range(2), [3, 4]].tolist() == pytest.approx([0.25, 0.25])


def test_without_repeats_all_is_unseen() -> None:
    """What the user met is last, since it is never the answer."""
    histories = walks()
    share = make_split(histories, ITEMS).repeat_share
    assert share == 0
    cases = cases_of(histories)
    mixed = mixture([0.4, 0.2, 0.2, 0.2], share=share)
    scores, met = all_scores(mixed, cases), met_items(cases, slice(0, len(cases.targets)))
    assert not scores[met].any()
    assert (scores[~met] > 0).all()
    found = evaluate_all(mixed, cases, ("all", "unseen"))
    assert found["all"] == found["unseen"]


def test_where_all_repeat_what_was_met_is_first() -> None:
    """Users who take three items of their own again and again."""
    histories = [[user % 7, user % 7 + 2, user % 7 + 4] * (3 + user % 4) for user in range(30)]
    split = make_split(histories, ITEMS)
    cases = cases_of(histories)
    assert available_protocols(cases) == ("all",)
    mixed = mixture(share=split.repeat_share)
    ranks = rank_targets(mixed.scorer(cases), cases, ("all",))["all"]
    assert (ranks < 3).all()


def test_one_item_again_and_again_is_all_but_certain() -> None:
    histories = [[user % ITEMS] * 5 for user in range(20)]
    assert make_split(histories, ITEMS).repeat_share == 1
    cases = cases_of(histories)
    scores = all_scores(mixture(share=1.0), cases)
    assert scores[range(20), cases.targets].tolist() == pytest.approx([1.0] * 20)
    assert (scores > SMALLEST).sum() == 20
    # The others keep their order.
    assert (scores > 0).all()
    assert evaluate(mixture(share=1.0), cases, "all")["ndcg@10"] == 1


def test_a_user_who_met_every_item() -> None:
    histories = [[*range(ITEMS), 3], [1, 2, 3]]
    cases = cases_of(histories)
    scores = all_scores(mixture([1.0, 0, 0, 0], [1.0, 0, 0, 0]), cases)[0]
    assert torch.isfinite(scores).all()
    # All that is expected of it are repeats.
    assert float(scores.sum()) == pytest.approx(10 * 0.3 / (ITEMS - 1 + 10))
    network = all_scores(make_parts()["network"], cases)[0]
    assert torch.equal(scores.argsort(), network.argsort())


def test_the_floor_scores_every_item() -> None:
    """A target that only the first part knows still ranks by it."""
    parts = {
        "first": Popularity(torch.arange(1.0, ITEMS + 1)),
        "none": Popularity(torch.zeros(ITEMS)),
    }
    floor = torch.tensor([1e-6, 1 - 1e-6])
    scores = all_scores(
        Mixture(dict(parts), floor, floor, Repeat(HISTORY, 0.0)), cases_of([[2, 1, 0, 5]])
    )[0]
    assert (scores > 0).tolist() == [item > 2 for item in range(ITEMS)]
    assert all(one < other for one, other in pairwise(scores[3:].tolist()))


def test_ties_and_scores_that_are_not_numbers_count_against() -> None:
    cases = cases_of(odd_log(3))
    nothing = Popularity(torch.zeros(ITEMS))
    tied = Mixture({"none": nothing}, torch.ones(1), torch.ones(1), Repeat(HISTORY, 0.3))
    assert (rank_targets(tied.scorer(cases), cases, ("all",))["all"] == ITEMS - 1).all()
    network = make_model("sasrec", n_items=ITEMS)
    broken = replace(network, table=torch.full_like(network.table, torch.nan))
    mixed = Mixture({"network": broken}, torch.ones(1), torch.ones(1), Repeat(HISTORY, 0.3))
    assert (rank_targets(mixed.scorer(cases), cases, ("all",))["all"] == ITEMS - 1).all()


def test_a_part_without_weight_does_not_matter() -> None:
    cases = cases_of(odd_log(4))
    parts = make_parts()
    parts["neighbours"] = KernelModel(
        torch.full((ITEMS, ITEMS), torch.nan).numpy(), Reading(2, 1.0)
    )
    weights = torch.tensor([0.5, 0.25, 0.25, 0])
    with_it = Mixture(parts, weights, weights, Repeat(HISTORY, 0.2))
    without = Mixture(
        {name: parts[name] for name in ("network", "popularity", "had")},
        weights[:3],
        weights[:3],
        Repeat(HISTORY, 0.2),
    )
    assert torch.equal(all_scores(with_it, cases), all_scores(without, cases))
    assert validation_ndcg(with_it, cases) == validation_ndcg(without, cases)


def test_small_totals_are_normalised_too() -> None:
    weights = torch.tensor([[1e-20, 3e-20], [0, 0], [1.0, 0]])
    assert normalised(weights).tolist() == [pytest.approx([0.25, 0.75]), [0, 0], [1, 0]]


def test_stored_bytes_are_those_of_parts_with_a_weight() -> None:
    """The floor of the first part is none."""
    network = make_model("sasrec", n_items=ITEMS)
    size = 4 * (network.parameters.numel() + network.table.numel())
    floor = [1e-6, 1 - 1e-6, 0, 0]
    assert mixture([1.0, 0, 0, 0], floor).stored_bytes == size + 4 * ITEMS
    assert mixture(floor, [0, 0, 0, 1.0]).stored_bytes == 4 * ITEMS + 4 * ITEMS**2
