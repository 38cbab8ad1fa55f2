"""Preset `auto`: a run sizes what the request left open by the log's statistics."""

import json
from pathlib import Path

import pytest

from td3engine.config import AUTO_KNOBS, DistillConfig
from td3engine.config.presets import build_config, merge, sized_by_data
from td3engine.data.reading import read_log
from td3engine.pipeline.run import Control, Run
from tests.td3engine.small import EVENTS, SMALL, USERS, write_small_log


def sized(config: DistillConfig, interactions: int, users: int) -> DistillConfig:
    return sized_by_data(
        config,
        users=users,
        interactions=interactions,
        training_interactions=interactions - 2 * users,
    )


def test_auto_lists_what_a_request_leaves_open() -> None:
    config = build_config("auto", {"summary": {"users": 7}, "outer": {"lr": 0.5}})
    assert set(config.auto) == set(AUTO_KNOBS) - {"summary.users"}
    assert build_config("balanced").auto == ()
    # A request that went through JSON keeps what it had left open.
    assert DistillConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("users", "interactions", "summary", "length", "batch", "steps"),
    [
        (943, 99_287, 30, 50, 15, 150),  # MovieLens-100k: histories of 105
        (665, 4_691, 20, 20, 10, 100),  # Magazine: short histories, at the lower bounds
        (6_040, 999_611, 53, 50, 27, 267),
        (280_000, 100_000_000, 100, 50, 50, 300),  # at the upper bounds
        (10_000, 120_000, 31, 30, 16, 157),
    ],
)
def test_sizes_follow_the_statistics(
    users: int, interactions: int, summary: int, length: int, batch: int, steps: int
) -> None:
    config = sized(build_config("auto"), interactions, users)
    assert config.auto == ()
    assert (config.summary.users, config.summary.length) == (summary, length)
    assert (config.learner.batch, config.outer.steps) == (batch, steps)


@pytest.mark.parametrize(
    ("users", "interactions", "batch", "epochs"),
    [
        (943, 99_287, 64, 200),  # its 45 steps an epoch never reach the bound
        (22_363, 198_502, 64, 41),  # 390 steps an epoch
        (279_865, 2_571_818, 315, 16),  # 1,000
        (5_000_000, 100_000_000, 1024, 2),  # 6,543: one look
    ],
)
def test_a_fast_teacher_takes_so_many_steps(
    users: int, interactions: int, batch: int, epochs: int
) -> None:
    teacher = sized(build_config("fast"), interactions, users).teacher
    assert (teacher.batch, teacher.max_epochs) == (batch, epochs)


def test_a_given_batch_of_a_fast_teacher_stays_and_counts() -> None:
    config = build_config("fast", {"teacher": {"batch": 32}})
    assert config.auto == ("teacher.max_epochs",)
    teacher = sized(config, 198_502, 22_363).teacher
    assert (teacher.batch, teacher.max_epochs) == (32, 20)


def test_what_is_given_stays() -> None:
    given = {"summary": {"length": 25}, "outer": {"steps": 7, "shared_steps": 0}}
    config = sized(build_config("auto", given), 999_611, 6_040)
    assert (config.summary.length, config.outer.steps) == (25, 7)
    assert config.summary.users == 53
    fixed = build_config("balanced")
    assert sized(fixed, 10, 1) is fixed


def test_a_short_history_bounds_the_length() -> None:
    config = sized(build_config("auto", {"data": {"max_history": 30}}), 99_287, 943)
    assert config.summary.length == 31


def test_from_scratch_keeps_steps_of_its_own_on_a_tiny_log() -> None:
    over = {"mode": "from-scratch", "outer": {"shared_steps": 80}}
    assert sized(build_config("auto", over), 300, 60).outer.steps == 160


def test_shared_steps_are_not_held_to_a_number_that_the_log_sets() -> None:
    config = build_config("auto", {"mode": "from-scratch", "outer": {"shared_steps": 200}})
    assert config.outer.shared_steps > config.outer.steps
    assert sized(config, 99_287, 943).outer.steps == 400


def test_the_shortest_history_is_enough_for_auto() -> None:
    config = build_config("auto", {"data": {"max_history": 3}})
    assert sized(config, 99_287, 943).summary.length == 4


def test_a_run_writes_what_it_settled_on(tmp_path: Path) -> None:
    log = read_log(write_small_log(tmp_path / "log.csv"))
    over = {key: value for key, value in SMALL.items() if key not in ("summary", "learner")}
    over |= {
        "summary": {"length": 8, "user_rank": 2, "time_rank": 2},
        "learner": {"steps": 8, "scratch_steps": 8, "augmented": 2},
    }
    config = build_config("auto", merge(over, {"outer": {"steps": 4}}))
    assert config.auto == ("summary.users", "learner.batch")
    Run(log, "print", config, tmp_path / "out", Control(listener=lambda _: None)).run()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    expected = sized(config, USERS * EVENTS, USERS)
    full = {
        part: getattr(expected, part).model_copy(update={"softmax": "full"})
        for part in ("teacher", "outer")
    }
    full["outer"] = full["outer"].model_copy(update={"support": "all"})
    full["teacher"] = full["teacher"].model_copy(update={"counting_share": 0.7})
    data = expected.data.model_copy(update={"validate_by": "unseen", "duplicates": "keep"})
    expected = expected.model_copy(update={**full, "data": data})
    assert manifest["config"] == expected.model_dump(mode="json")
    assert manifest["config"]["summary"]["users"] == 20
