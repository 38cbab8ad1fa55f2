"""Knobs that a run sets itself: by the log's statistics, by a budget, by what a summary takes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from td3engine.config import AUTO_KNOBS, DistillConfig
from td3engine.config.presets import (
    MOST_BY_BYTES,
    PRESETS,
    LogSize,
    build_config,
    merge,
    sized_by_data,
)
from td3engine.config.sizes import (
    COARSEST_TABLE,
    LABELS_SUFFICE,
    LARGEST_SHARE,
    LONG_STEPS,
    MANIFEST_BYTES,
    MOST_USERS,
    Sizes,
    fitted,
    outer_step_seconds,
)
from td3engine.data.reading import read_log
from td3engine.errors import ConfigError
from td3engine.pipeline.run import Control, Run
from td3engine.summary.bundle import Manifest, save_bundle
from td3engine.summary.labelled import LabelledSummary
from td3engine.summary.packing import rounded
from tests.td3engine.oracles import seeded
from tests.td3engine.small import EVENTS, ITEMS, SMALL, USERS, write_small_log

MOVIELENS = LogSize(users=943, items=1_349, interactions=99_287, training_interactions=97_401)
SHORT = LogSize(users=665, items=559, interactions=4_691, training_interactions=3_361)
LARGE = LogSize(
    users=280_000, items=40_000, interactions=100_000_000, training_interactions=99_440_000
)
# The length that a long history gives, by the table of `sized_by_data`.
LENGTH = 50


def sized(log: LogSize, over: dict[str, Any] | None = None) -> DistillConfig:
    return sized_by_data(build_config("balanced", over), log)


def sizes_of(config: DistillConfig, log: LogSize) -> Sizes:
    return Sizes(
        items=log.items,
        users=config.summary.users,
        length=config.summary.length,
        width=config.backbone.hidden,
        table_step=config.summary.table_step,
        label_step=config.summary.label_step,
        id_bytes=log.id_bytes,
    )


# --- what is left open --------------------------------------------------------------------------


def test_a_preset_lists_what_a_request_leaves_open() -> None:
    config = build_config("balanced", {"summary": {"users": 7}, "outer": {"lr": 0.5}})
    assert set(config.auto) == set(AUTO_KNOBS) - {"summary.users"}
    # A request that went through JSON keeps what it had left open.
    assert DistillConfig.model_validate_json(config.model_dump_json()) == config


def test_auto_is_the_balanced_preset() -> None:
    assert build_config("auto") == build_config("balanced")


@pytest.mark.parametrize("preset", ["fast", "quality"])
def test_other_presets_have_outer_steps_of_their_own(preset: Any) -> None:
    config = build_config(preset)
    assert set(config.auto) == set(AUTO_KNOBS) - {"outer.steps"}
    for log in (MOVIELENS, SHORT, LARGE):
        assert sized_by_data(config, log).outer.steps == PRESETS[preset]["outer"]["steps"]


def test_without_auto_knobs_nothing_changes() -> None:
    config = DistillConfig()
    assert config.auto == ()
    assert sized_by_data(config, LogSize(1, 10, 10, 8)) is config


# --- by the log ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("log", "length"), [(MOVIELENS, 50), (SHORT, 20), (LARGE, 50)])
def test_sizes_follow_the_statistics(log: LogSize, length: int) -> None:
    config = sized(log)
    assert config.auto == ()
    assert (config.summary.length, config.summary.users) == (length, MOST_USERS)
    assert config.learner.batch == DistillConfig().learner.batch
    assert config.outer.steps == 0


def test_the_length_is_three_mean_histories_between_its_bounds() -> None:
    assert sized(LogSize(10_000, 500, 120_000, 100_000)).summary.length == 30


def test_no_more_sequences_than_users() -> None:
    config = sized(LogSize(users=12, items=50, interactions=300, training_interactions=276))
    assert config.summary.users == 12
    assert config.learner.batch == 12
    assert config.outer.steps == LONG_STEPS


@pytest.mark.parametrize(
    ("users", "training", "batch", "epochs"),
    [
        (943, 97_401, 64, 200),  # its 45 steps an epoch never reach the bound
        (22_363, 153_776, 64, 41),  # 390 steps an epoch
        (279_865, 2_012_088, 315, 16),  # 1,000
        (5_000_000, 90_000_000, 1024, 2),  # 6,543: one look
    ],
)
def test_a_teacher_takes_so_many_steps(users: int, training: int, batch: int, epochs: int) -> None:
    config = sized(LogSize(users, 1000, training + 2 * users, training))
    assert (config.teacher.batch, config.teacher.max_epochs) == (batch, epochs)


def test_a_given_batch_of_a_teacher_stays_and_counts() -> None:
    log = LogSize(22_363, 1000, 198_502, 153_776)
    teacher = sized(log, {"teacher": {"batch": 32}}).teacher
    assert (teacher.batch, teacher.max_epochs) == (32, 20)


def test_what_is_given_stays() -> None:
    given: dict[str, dict[str, Any]] = {
        "summary": {"users": 21, "length": 25, "table_step": 0.3},
        "learner": {"batch": 40},
        "outer": {"steps": 7},
        "teacher": {"batch": 33, "max_epochs": 3},
    }
    config = sized(MOVIELENS, merge(given, {"budget": {"bytes": 1}}))
    for part, settings in given.items():
        for name, value in settings.items():
            assert getattr(getattr(config, part), name) == value


def test_a_short_history_bounds_the_length() -> None:
    for longest in (3, 30):
        config = sized(MOVIELENS, {"data": {"max_history": longest}})
        assert config.summary.length == longest + 1


@pytest.mark.parametrize(("users", "steps"), [(20, 0), (19, LONG_STEPS)])
def test_distilling_is_for_few_positions(users: int, steps: int) -> None:
    assert LENGTH * 20 == LABELS_SUFFICE
    assert sized(MOVIELENS, {"summary": {"users": users}}).outer.steps == steps
    assert sized(MOVIELENS, {"budget": {"sequences": users}}).outer.steps == steps


def test_soft_inputs_are_always_distilled() -> None:
    assert sized(MOVIELENS, {"summary": {"inputs": "soft"}}).outer.steps == LONG_STEPS


@pytest.mark.parametrize(
    ("shared", "users", "steps"), [(200, 100, 400), (20, 100, 40), (20, 5, LONG_STEPS)]
)
def test_shared_steps_are_half_of_the_steps_at_most(shared: int, users: int, steps: int) -> None:
    over = {"mode": "from-scratch", "outer": {"shared_steps": shared}}
    assert sized(MOVIELENS, over | {"summary": {"users": users}}).outer.steps == steps


# --- without a budget: a share of the log -------------------------------------------------------


@pytest.mark.parametrize("log", [MOVIELENS, SHORT])
def test_a_log_with_room_has_the_most_users(log: LogSize) -> None:
    room = sizes_of(sized(log), log).total / LARGEST_SHARE
    for stored, full in ((room + 10, True), (room - 3000, False)):
        config = sized(replace(log, stored_bytes=round(stored)))
        assert (config.summary.users == MOST_USERS) == full
        assert sizes_of(config, log).total <= LARGEST_SHARE * stored + 1


def test_a_summary_is_no_larger_than_its_share_of_the_log() -> None:
    log = replace(MOVIELENS, stored_bytes=300_000, id_bytes=2_000)
    config = sized(log)
    mine = sizes_of(config, log)
    assert 20 <= mine.users < MOST_USERS
    # One sequence more would be too many.
    largest = LARGEST_SHARE * 300_000
    assert mine.total <= largest < replace(mine, users=mine.users + 1).total


def test_items_that_take_more_than_the_share_have_the_fewest_sequences_that_suffice() -> None:
    config = sized(replace(MOVIELENS, stored_bytes=10_000))
    assert config.summary.users == LABELS_SUFFICE // LENGTH
    assert config.summary.table_step == COARSEST_TABLE
    assert config.outer.steps == 0


# --- budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"bytes": 1000, "seconds": 3},
        {"sequences": 5, "bytes": 1000},
        {"sequences": 5, "bytes": 1000, "seconds": 3},
    ],
)
def test_a_budget_is_one_of_three(budget: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="give one of sequences, bytes and seconds"):
        build_config("balanced", {"budget": budget})


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", ["sequences", "bytes", "seconds"])
def test_a_budget_is_positive(name: str, value: int) -> None:
    with pytest.raises(ValidationError, match=rf"budget\.{name}"):
        build_config("balanced", {"budget": {name: value}})


@pytest.mark.parametrize("sequences", [7, 400])
def test_a_budget_of_sequences_is_their_number(sequences: int) -> None:
    config = sized(replace(MOVIELENS, stored_bytes=1), {"budget": {"sequences": sequences}})
    assert config.summary.users == sequences
    assert config.summary.table_step == DistillConfig().summary.table_step
    assert config.learner.batch == min(DistillConfig().learner.batch, sequences)


@pytest.mark.parametrize("most", [45_000, 60_000, 100_000, 300_000])
def test_a_budget_of_bytes_is_used_up(most: int) -> None:
    config = sized(replace(MOVIELENS, id_bytes=4_000), {"budget": {"bytes": most}})
    mine = sizes_of(config, replace(MOVIELENS, id_bytes=4_000))
    assert mine.total <= most < replace(mine, users=mine.users + 1).total


def test_a_budget_of_bytes_buys_only_so_many_sequences() -> None:
    assert sized(LARGE, {"budget": {"bytes": 10**9}}).summary.users == MOST_BY_BYTES
    assert sized(SHORT, {"budget": {"bytes": 10**9}}).summary.users == SHORT.users


def test_the_table_gets_coarser_before_there_are_few_positions() -> None:
    """As budgets shrink: fewer sequences, then a coarser table, then few sequences."""
    finest = DistillConfig().summary.table_step
    seen = set()
    for most in range(37_000, 80_000, 500):
        config = sized(MOVIELENS, {"budget": {"bytes": most}})
        summary = config.summary
        positions = summary.users * summary.length
        assert finest <= summary.table_step <= COARSEST_TABLE
        if positions < LABELS_SUFFICE:
            assert summary.table_step == COARSEST_TABLE
        if summary.table_step > finest:  # a step less would have left too few
            finer = replace(sizes_of(config, MOVIELENS), table_step=summary.table_step - 0.05)
            few = LABELS_SUFFICE // summary.length
            assert replace(finer, users=few).total > most
        assert config.outer.steps == (0 if positions >= LABELS_SUFFICE else LONG_STEPS)
        seen.add((summary.table_step, positions >= LABELS_SUFFICE))
    assert {step for step, _ in seen} == {0.2, 0.25, 0.3, 0.35, 0.4}
    assert {(0.4, True), (0.4, False)} <= seen


@pytest.mark.parametrize("step", [0, 0.1])
def test_a_given_table_step_stays_within_the_budget(step: float) -> None:
    most = replace(
        sizes_of(build_config("balanced", {"summary": {"table_step": step}}), MOVIELENS),
        users=3,
    ).total
    config = sized(MOVIELENS, {"summary": {"table_step": step}, "budget": {"bytes": most}})
    assert config.summary.table_step == step
    assert config.summary.users == 3
    assert sizes_of(config, MOVIELENS).total <= most


def test_too_few_bytes_are_refused_with_the_least_that_do() -> None:
    with pytest.raises(ConfigError, match=r"^20,000 bytes cannot hold .* 1,349 items") as refused:
        sized(MOVIELENS, {"budget": {"bytes": 20_000}})
    assert refused.value.code == "invalid_config"  # what a job fails with
    least = int(str(refused.value).split("about ")[1].split(";")[0].replace(",", ""))
    with pytest.raises(ConfigError):
        sized(MOVIELENS, {"budget": {"bytes": least - 2}})
    config = sized(MOVIELENS, {"budget": {"bytes": least + 1}})
    assert (config.summary.users, config.summary.table_step) == (1, COARSEST_TABLE)


def test_a_budget_of_seconds_is_a_number_of_steps() -> None:
    def steps(seconds: float, **over: Any) -> int:
        return sized(MOVIELENS, merge({"budget": {"seconds": seconds}}, over)).outer.steps

    config = sized(MOVIELENS)
    each = outer_step_seconds(
        sizes_of(config, MOVIELENS),
        batch=config.learner.batch,
        window=config.outer.window,
        learners=1,
        trains_table=False,
    )
    assert steps(100 * each) == 100
    assert steps(0.1 * each) == 0
    assert steps(100 * each, outer={"window": config.outer.window // 2}) == 200
    assert steps(100 * each, outer={"learners": 4}) == 25
    assert steps(100 * each, mode="from-scratch") < 100  # learners train a table too
    assert steps(100 * each, outer={"steps": 3}) == 3
    assert config.summary == sized(MOVIELENS, {"budget": {"seconds": 1}}).summary


# --- how large a summary is ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "users", "length", "width", "table_step", "label_step"),
    [
        (3_000, 100, 50, 32, 0.2, 0.25),
        (3_000, 100, 50, 32, 0.4, 0.5),
        (500, 400, 20, 16, 0.1, 0.25),
        (10_000, 20, 50, 64, 0.4, 0.25),
        (1_000, 60, 30, 32, 0, 0.25),
        (100_000, 300, 50, 8, 0.2, 0.25),
    ],
)
def test_sizes_are_those_of_files(
    items: int,
    users: int,
    length: int,
    width: int,
    table_step: float,
    label_step: float,
    tmp_path: Path,
) -> None:
    sizes = Sizes(items, users, length, width, table_step, label_step, id_bytes=0)
    draw = seeded(1)
    summary = LabelledSummary(
        torch.randint(items, (users, length), generator=draw),
        rounded(torch.randn(users, length - 1, width, generator=draw), label_step),
        rounded(torch.randn(items, width, generator=draw), table_step),
        sharpness=1.5,
    )
    manifest = Manifest(
        config=DistillConfig(),
        fingerprint="f" * 64,
        statistics={},
        validation={},
        results=[],
        numbers_stored={},
    )
    save_bundle(tmp_path, summary, ["i"] * items, manifest)
    # The coder is no ideal one, and steps are a little finer than asked for.
    found = (tmp_path / "summary.safetensors").stat().st_size
    assert sizes.total - MANIFEST_BYTES == pytest.approx(found, rel=0.1)


def test_fitted_takes_no_more_than_it_is_given() -> None:
    sizes = Sizes(1_000, 30, 50, 32, 0.2, 0.25, id_bytes=3_000)
    assert fitted(sizes, 10**9) == sizes
    assert fitted(sizes, sizes.total + 1) == sizes


# --- in a run -----------------------------------------------------------------------------------


def test_a_run_writes_what_it_settled_on(tmp_path: Path) -> None:
    log = read_log(write_small_log(tmp_path / "log.csv"))
    over = {key: value for key, value in SMALL.items() if key not in ("summary", "learner")}
    over |= {
        "summary": {"length": 8},
        "learner": {"steps": 8, "scratch_steps": 8, "augmented": 2},
    }
    config = build_config("balanced", merge(over, {"outer": {"steps": 4}}))
    assert config.auto == ("summary.users", "summary.table_step", "learner.batch")
    Run(log, "print", config, tmp_path / "out", Control(listener=lambda _: None)).run()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    events = USERS * EVENTS
    # This log's Parquet is smaller than its items: the fewest sequences that suffice.
    small = LogSize(USERS, ITEMS, events, events - 2 * USERS, stored_bytes=1)
    expected = sized_by_data(config, small)
    full = {
        part: getattr(expected, part).model_copy(update={"softmax": "full"})
        for part in ("teacher", "outer")
    }
    full["outer"] = full["outer"].model_copy(update={"support": "all"})
    full["teacher"] = full["teacher"].model_copy(update={"counting_share": 0.7})
    data = expected.data.model_copy(update={"validate_by": "unseen", "duplicates": "keep"})
    expected = expected.model_copy(update={**full, "data": data})
    assert manifest["config"] == expected.model_dump(mode="json")
    assert manifest["config"]["summary"]["users"] == USERS
    assert manifest["config"]["auto"] == []
    # What sizes allow for a manifest is about what one takes.
    written = (tmp_path / "out" / "manifest.json").stat().st_size
    assert written == pytest.approx(MANIFEST_BYTES, rel=0.25)
