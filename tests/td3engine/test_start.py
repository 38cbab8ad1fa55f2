"""The summary before distilling, against what its parts say they are."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from td3engine.config import SummaryConfig
from td3engine.start import factored, initial_summary, pointing_queries, real_histories
from td3engine.summary import Summary, query
from tests.td3engine.oracles import default_double, distance, make_split, normal, seeded
from tests.td3engine.small import small_config

USERS, LENGTH, ITEMS, WIDTH = 6, 5, 11, 4


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with default_double():
        yield


def noise(user_rank: int, time_rank: int) -> Summary:
    config = SummaryConfig(users=USERS, length=LENGTH, user_rank=user_rank, time_rank=time_rank)
    return Summary.initial(config, normal(0, ITEMS, WIDTH), seeded(1))


@pytest.mark.parametrize("ranks", [(6, 5), (9, 7)])
def test_enough_ranks_keep_the_queries(ranks: tuple[int, int]) -> None:
    C = normal(1, USERS, LENGTH, WIDTH, std=3.0)
    found = factored(C, noise(*ranks), 0.5)
    assert distance(query(*found.learned), C) < 1e-12
    assert [tuple(f.shape) for f in found.learned] == [
        (USERS, ranks[0]),
        (LENGTH, ranks[1]),
        (*ranks, WIDTH),
    ]
    # Every column has entries of the wanted size; those beyond the rank are noise's and can learn.
    root_mean_square = found.U[:, :USERS].square().mean(0).sqrt()
    assert distance(root_mean_square, torch.full_like(root_mean_square, 0.5)) < 1e-12
    assert found.U[:, USERS:].abs().sum() > 0 or ranks[0] == USERS
    assert found.G[USERS:].abs().sum() == 0


def test_a_low_rank_tensor_is_kept_by_its_own_rank() -> None:
    """C of rank (2, 3) by construction, so nothing is lost at those ranks, and something below."""
    U, T, G = normal(2, USERS, 2), normal(3, LENGTH, 3), normal(4, 2, 3, WIDTH)
    C = torch.einsum("ua,tb,abd->utd", U, T, G)
    assert distance(query(*factored(C, noise(2, 3), 0.5).learned), C) < 1e-12
    lost = distance(query(*factored(C, noise(1, 3), 0.5).learned), C)
    # Of one user direction the best keeps the largest singular value (numpy's, on the unfolding).
    values = np.linalg.svd(C.flatten(1).numpy(), compute_uv=False)
    assert lost == pytest.approx(values[1] / np.linalg.norm(values), rel=1e-9)


def test_queries_point_at_their_items() -> None:
    """At a large sharpness each position's likeliest item is its own; the margin is as said."""
    V = normal(5, ITEMS, 8)
    items = torch.randint(ITEMS, (USERS, LENGTH), generator=seeded(6))
    config = SummaryConfig(users=USERS, length=LENGTH, sharpness=20.0)
    C = pointing_queries(items, V, config)
    scores = C @ (V - V.mean(0)).T
    own = scores.gather(-1, items[..., None])
    assert float(own.mean()) == pytest.approx(math.log(ITEMS) + 20.0)
    # All queries have one length: a rare item with a short row is not shouted.
    assert distance(C.norm(dim=-1), C.norm(dim=-1).mean().expand(USERS, LENGTH)) < 1e-12
    cosines = torch.nn.functional.cosine_similarity(C, (V - V.mean(0))[items], dim=-1)
    assert distance(cosines, torch.ones_like(cosines)) < 1e-12


def test_real_histories_hold_the_last_training_events_and_repeat_short_ones() -> None:
    # The last two of a user with three or more are held out; the third user has no transition.
    split = make_split([[0, 1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 9, 1, 2], [3, 4, 5]], ITEMS)
    config = SummaryConfig(users=8, length=5, start="users")
    rows = real_histories(split, config, np.random.default_rng(0))
    assert {tuple(row) for row in rows.tolist()} == {(2, 3, 4, 5, 6), (10, 9, 9, 10, 9)}


def test_different_users_where_there_are_enough() -> None:
    split = make_split([[user, user + 1, 0, 0] for user in range(8)], ITEMS)
    rows = real_histories(split, SummaryConfig(users=8, length=4), np.random.default_rng(0))
    assert sorted(rows[:, 0].tolist()) == list(range(8))


def test_both_starts_are_the_seeds() -> None:
    split = make_split([[user, user + 1, user + 2, 0, 0] for user in range(8)], ITEMS)
    V = normal(7, ITEMS, 8)
    for start in ("users", "random"):
        one, same, other = (
            initial_summary(small_config(summary={"start": start}, seed=seed), split, V)
            for seed in (1, 1, 2)
        )
        for factor, again, different in zip(one.learned, same.learned, other.learned, strict=True):
            assert torch.equal(factor, again)
            assert not torch.equal(factor, different)
        assert torch.equal(one.V, V)
