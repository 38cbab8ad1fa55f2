"""Logs of which it is known how well their test events can be predicted at all.

The mixture here is of counting models alone, fitted as the teacher's is.
"""

from dataclasses import dataclass
from math import log2, sqrt

import numpy as np
import pyarrow as pa
import pytest

from td3engine.config import DataConfig
from td3engine.counting.fitting import POPULARITY, fit_counting_models
from td3engine.data.reading import read_log
from td3engine.data.split import Split, split_log
from td3engine.ranking.holdout import Holdouts
from td3engine.ranking.metrics import Metrics, evaluate_all
from td3engine.ranking.protocols import Protocol, available_protocols
from td3engine.teacher.mixing import fit_mixture

CONFIG = DataConfig(min_user_interactions=1, min_item_interactions=1)
Row = tuple[str, str, int]


@dataclass(frozen=True)
class Outcome:
    """Figures on test."""

    mixture: dict[Protocol, Metrics]
    popularity: dict[Protocol, Metrics]


def split_of(rows: list[Row]) -> Split:
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    table = pa.table({"user_id": users, "item_id": items, "timestamp": times})
    return split_log(read_log(table), CONFIG)


def outcome(split: Split) -> Outcome:
    holdouts = Holdouts(split, CONFIG)
    validation, test = holdouts.validation(50), holdouts.test(50)
    counting = fit_counting_models(split, validation, ease_items=1000)
    models = {each.name: each.model for each in counting}
    mixture = fit_mixture(dict(models), validation, split.repeat_share)
    protocols = available_protocols(test)
    return Outcome(
        evaluate_all(mixture, test, protocols),
        evaluate_all(models[POPULARITY], test, protocols),
    )


def loops(seed: int) -> list[Row]:
    """200 users, each in one of 40 lists of 5 tracks; the next is any of the list's other 4."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(200):
        first, place = 5 * int(rng.integers(40)), int(rng.integers(5))
        for time in range(20):
            rows.append((f"u{user}", f"t{first + place}", time))
            place = (place + int(rng.integers(1, 5))) % 5
    return rows


@pytest.mark.parametrize("seed", [7, 8])
def test_loops_come_out_at_their_ceiling(seed: int) -> None:
    """All that can be known is the list: the target has rank 0, 1, 2 or 3 with equal chance."""
    found = outcome(split_of(loops(seed)))
    gains = np.array([1 / log2(rank + 2) for rank in range(4)])
    ceiling, error = gains.mean(), gains.std() / sqrt(200)
    assert ceiling == pytest.approx(0.640, abs=5e-4)
    ndcg = found.mixture["all"]["ndcg@10"]
    assert found.mixture["all"]["questions"] == 200
    assert ceiling - 4 * error < ndcg < ceiling + 4 * error
    assert found.popularity["all"]["ndcg@10"] < 0.2


def noise(seed: int, times_each: int) -> list[Row]:
    """150 users, each with 10 of 60 items, none twice; each row so many times."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{user}", f"i{item}", time)
        for user in range(150)
        for time, item in enumerate(rng.choice(60, 10, replace=False).tolist())
    ]
    return [row for row in rows for _ in range(times_each)]


@pytest.mark.parametrize("times_each", [1, 2])
@pytest.mark.parametrize("seed", [5, 6])
def test_noise_comes_out_as_noise(seed: int, times_each: int) -> None:
    """Each of the 51 items that a user did not meet is as probable, whatever the scores: hits
    are binomial, with a chance of k / 51 under both protocols (ties only take from it)."""
    split = split_of(noise(seed, times_each))
    assert split.duplicates == 1500 * (times_each - 1)
    found = outcome(split).mixture
    assert set(found) == {"all", "unseen"}
    for figures in found.values():
        assert figures["questions"] == 150
        for k in (5, 10, 20):
            chance = k / 51
            error = sqrt(chance * (1 - chance) / 150)
            assert abs(figures[f"hr@{k}"] - chance) < 4 * error


def test_every_row_twice_is_the_same_log() -> None:
    once, twice = (outcome(split_of(noise(5, count))) for count in (1, 2))
    assert once == twice
