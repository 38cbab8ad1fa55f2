"""Rows of models of the whole log: figures and costs against hand counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from td3engine.counting.fitting import FittedCounting, fit_counting_models
from td3engine.counting.models import KernelModel, Popularity, Reading
from td3engine.data.split import Split
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.full_data import (
    Teacher,
    counting_notes,
    counting_rows,
    full_data_note,
    full_data_rows,
    make_teacher,
    teacher_rows,
)
from td3engine.evaluation.table import Row
from td3engine.models.registry import build_backbone
from td3engine.models.trained_model import TrainedModel
from td3engine.teacher.mixture import HISTORY, Mixture, Part, Repeat
from td3engine.teacher.training import TrainedOnLog
from tests.td3engine.evaluation.rows import made_up_row
from tests.td3engine.oracles import make_split, seeded
from tests.td3engine.small import LOG_ROWS, small_config

CONFIG = small_config()
WIDTH = CONFIG.backbone.hidden
# Counted in training: item 0 three times, 1 twice, 2 and 5 once, 3 and 4 never.
HISTORIES = [[0, 1, 3, 4], [0, 1, 4, 3], [0, 2, 3, 5], [5, 1, 0]]
ITEMS = 6


def benchmark_on(split: Split) -> Benchmark:
    return Benchmark.prepare(split, CONFIG, torch.device("cpu"))


@pytest.fixture
def benchmark() -> Benchmark:
    return benchmark_on(make_split(HISTORIES, ITEMS))


@pytest.fixture
def counting(benchmark: Benchmark) -> list[FittedCounting]:
    return fit_counting_models(benchmark.split, benchmark.validation, ease_items=ITEMS)


def network(seed: int, seconds: float) -> TrainedOnLog:
    backbone = build_backbone(CONFIG.backbone, CONFIG.data.max_history)
    parameters = torch.randn(backbone.n_parameters, generator=seeded(seed)) * 0.3
    table = torch.randn(ITEMS, WIDTH, generator=seeded(seed + 1))
    model = TrainedModel(backbone, parameters, table)
    return TrainedOnLog(model, parameters[None], validation=0.1, seconds=seconds)


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row["name"]: row for row in rows if row["protocol"] == "all"}


def test_popularity_ranks_by_training_interactions_alone(
    benchmark: Benchmark, counting: list[FittedCounting]
) -> None:
    rows = [row for row in counting_rows(benchmark, counting) if row["name"] == "popularity"]
    everything, unseen = rows
    # Asked for: 4 (unseen 2 and 5 before it), 3 (the same), 5 (unseen 1 before it), 0 (first).
    places = [3, 3, 2, 1]
    assert unseen["hr@5"] == 1.0
    assert unseen["mrr@10"] == pytest.approx(np.mean([1 / place for place in places]))
    # Among all items, ties against them: 4 and 3 are last, 5 is fourth, 0 is first.
    places = [6, 6, 4, 1]
    assert everything["mrr@10"] == pytest.approx(np.mean([1 / place for place in places]))
    named = [(row["name"], row["protocol"], row["questions"]) for row in rows]
    assert named == [("popularity", "all", 4), ("popularity", "unseen", 4)]
    assert unseen["numbers_stored"] == 6


def test_counting_models_cost_what_they_store(
    benchmark: Benchmark, counting: list[FittedCounting]
) -> None:
    """4 bytes a number; a sparse kernel 8 an entry and 4 a row's begin, where that is less."""
    rows = by_name(counting_rows(benchmark, counting))
    assert tuple(rows) == LOG_ROWS[2:]
    transitions = {(0, 1), (0, 2)}  # of two training events each: the others have one
    together = {(0, 1), (1, 0), (0, 2), (2, 0)}
    row_begins = 4 * (ITEMS + 1)
    sizes = {
        "popularity": 4 * ITEMS,
        "repeat rule": 4 * ITEMS,
        "Markov": 8 * len(transitions) + row_begins,
        "windowed Markov": 8 * len(transitions) + row_begins,
        "item-kNN": 8 * len(together) + row_begins,
        # 1 and 2 depend on each other through 0.
        "EASE": 8 * (len(together) + 2) + row_begins,
    }
    for name, size in sizes.items():
        assert (rows[name]["bytes"], rows[name]["numbers_stored"]) == (size, size // 4), name
    for fitted in counting:
        row = rows[fitted.name]
        assert row["train_seconds"] == fitted.seconds > 0
        assert (row["making_seconds"], row["sequences"], row["seeds"]) == (0.0, 0, 1)


def test_the_whole_log_costs_16_bytes_an_interaction(benchmark: Benchmark) -> None:
    networks = [network(1, 2.0), network(2, 5.0)]
    rows = full_data_rows(benchmark, networks)
    interactions = sum(map(len, HISTORIES))
    for row in rows:
        assert (row["name"], row["mode"], row["seeds"]) == ("full data", "from-scratch", 2)
        assert (row["bytes"], row["numbers_stored"]) == (16 * interactions, interactions)
        assert (row["sequences"], row["train_seconds"]) == (len(HISTORIES), 3.5)
    alone = [full_data_rows(benchmark, [each]) for each in networks]
    for row, one, other in zip(rows, *alone, strict=True):
        assert row["ndcg@10"] == pytest.approx((one["ndcg@10"] + other["ndcg@10"]) / 2)


def test_a_teacher_costs_the_parts_that_have_a_weight(benchmark: Benchmark) -> None:
    trained = network(1, 2.0)
    counts = Popularity(torch.arange(ITEMS).float())
    kernel = np.zeros((ITEMS, ITEMS), np.float32)
    kernel[0, 1] = kernel[2, 3] = 1.0
    parts: dict[str, Part] = {
        "network": trained.model,
        "popularity": counts,
        "Markov": KernelModel(kernel, Reading(1, 1.0)),
    }
    size = 4 * (trained.model.parameters.numel() + ITEMS * WIDTH)
    for new, met, expected in (
        ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], size),
        ([0.5, 0.5, 0.0], [1.0, 0.0, 0.0], size + 4 * ITEMS),
        ([0.5, 0.5, 0.0], [0.0, 0.0, 1.0], size + 4 * ITEMS + 2 * 8 + 4 * (ITEMS + 1)),
        ([1e-6, 1.0, 0.0], [1e-6, 1.0, 0.0], 4 * ITEMS),  # the floor is no weight
    ):
        mixture = Mixture(parts, torch.tensor(new), torch.tensor(met), Repeat(HISTORY, 0.2))
        (row, *_) = teacher_rows(benchmark, [Teacher(mixture, 7.0)])
        assert (row["name"], row["mode"], row["seeds"]) == ("teacher", "from-scratch", 1)
        assert (row["bytes"], row["numbers_stored"]) == (expected, expected // 4)
        assert (row["train_seconds"], row["making_seconds"]) == (7.0, 0.0)


def test_a_teacher_s_seconds_are_those_of_all_its_parts(
    benchmark: Benchmark, counting: list[FittedCounting]
) -> None:
    counting = [replace(each, seconds=10.0 + nth) for nth, each in enumerate(counting)]
    teacher = make_teacher(network(1, 100.0), counting, benchmark.validation, repeat_share=0.0)
    assert list(teacher.mixture.parts) == ["network", *LOG_ROWS[2:]]
    parts = 100.0 + sum(10.0 + nth for nth in range(len(counting)))
    assert parts < teacher.seconds < parts + 60  # and of choosing weights


def note_of(**ndcg: float) -> str | None:
    return full_data_note([made_up_row(name.replace("_", " "), ndcg[name]) for name in ndcg])


def test_a_user_hears_where_counting_is_enough() -> None:
    note = note_of(teacher=0.3, full_data=0.1, popularity=0.05, EASE=0.12)
    assert note is not None
    for fact in ("EASE", "0.1200", "0.1000", "protocol `all`", "may be all that this log needs"):
        assert fact in note
    assert note_of(teacher=0.3, full_data=0.1, EASE=0.1) is not None  # as good is enough
    assert note_of(teacher=0.3, full_data=0.1, popularity=0.05, EASE=0.09) is None


def test_only_protocol_all_is_what_users_see() -> None:
    rows = [made_up_row("full data", 0.1), made_up_row("EASE", 0.05)]
    others = [made_up_row(row["name"], 0.3 - row["ndcg@10"], protocol="unseen") for row in rows]
    assert full_data_note([*rows, *others]) is None


def test_without_a_network_there_is_nothing_to_say() -> None:
    assert note_of(popularity=0.05, EASE=0.12) is None


def test_a_user_hears_which_settings_were_chosen_and_what_is_absent(
    counting: list[FittedCounting],
) -> None:
    (said,) = counting_notes(counting, ITEMS)
    for each in counting:
        assert (f"{each.name} ({each.settings})" in said) == bool(each.settings)
    without_ease = [each for each in counting if each.name != "EASE"]
    assert counting_notes(without_ease, 12_345)[1:] == [
        "no EASE: the log has 12,345 items, more than teacher.ease_items"
    ]
