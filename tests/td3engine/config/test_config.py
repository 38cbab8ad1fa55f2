"""What a configuration refuses, and in which words; which steps a mode takes."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from td3engine.config import BACKBONES, MODES, DistillConfig, Preset
from td3engine.config.presets import PRESETS, build_config
from td3engine.config.retired import RetiredSetting, retired_note
from td3engine.errors import UnusableError
from tests.td3engine.small import small_config

WINDOWS = {"steps": 20, "scratch_steps": 60}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"summary": {"length": 10}}, r"summary.length \(10\) .* data.max_history \+ 1 \(9\)"),
        ({"backbone": {"heads": 3}}, r"hidden \(8\) must be a multiple of heads \(3\)"),
        ({"outer": {"windows": 3}}, "windows"),
        ({"mode": "scratch"}, "'shared-items' or 'from-scratch'"),
        ({"backbone": {"name": "lstm"}}, ".*".join(f"'{name}'" for name in BACKBONES)),
        ({"learner": {"scratch_steps": 1}}, "learner.scratch_steps"),
        (
            {"outer": {"window": 9}},
            r"outer.window \(9\) must not exceed learner.steps \(8\)",
        ),
        (
            {"outer": {"window": 21}, "learner": WINDOWS},
            r"outer.window \(21\) must not exceed learner.steps \(20\)",
        ),
        (
            {"mode": "from-scratch", "outer": {"window": 61}, "learner": WINDOWS},
            r"outer.window \(61\) must not exceed learner.scratch_steps \(60\)",
        ),
        (
            {"mode": "from-scratch", "outer": {"start": "teacher"}},
            "outer.start 'teacher' .* a learner from scratch does not have",
        ),
        (
            {"mode": "from-scratch", "outer": {"shared_steps": 6}},
            r"outer.shared_steps \(6\) must be less than outer.steps \(6\)",
        ),
        (  # Its first steps distil for the other mode.
            {"mode": "from-scratch", "outer": {"window": 21}, "learner": WINDOWS},
            r"outer.window \(21\) must not exceed learner.steps \(20\)",
        ),
    ],
)
def test_configurations_that_cannot_work_are_refused(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        small_config(**over)


@pytest.mark.parametrize(
    "over",
    [
        {"outer": {"window": 20}, "learner": WINDOWS},
        {"mode": "from-scratch", "outer": {"window": 60, "shared_steps": 0}, "learner": WINDOWS},
        {"mode": "from-scratch", "outer": {"window": 20, "shared_steps": 5}, "learner": WINDOWS},
        {"mode": "shared-items", "outer": {"shared_steps": 100}},  # is of no meaning there
        # The knob of the other mode bounds nothing.
        {
            "mode": "from-scratch",
            "outer": {"window": 60, "shared_steps": 0},
            "learner": WINDOWS | {"steps": 2},
        },
        {"outer": {"window": 20}, "learner": WINDOWS | {"scratch_steps": 2}},
        {"mode": "shared-items", "outer": {"start": "teacher"}},
        {"summary": {"length": 9}},
    ],
)
def test_configurations_at_their_limits_are_taken(over: dict[str, Any]) -> None:
    config = small_config(**over)
    assert DistillConfig.model_validate_json(config.model_dump_json()) == config


def numbers(config: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a configuration has floats."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from numbers(value, (*above, name))
        elif isinstance(value, float):
            yield (*above, name)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", [*numbers(small_config().model_dump())], ids=".".join)
def test_what_is_no_number_is_refused(path: tuple[str, ...], value: float) -> None:
    part, name = path
    with pytest.raises(ValidationError, match=name):
        small_config(**{part: {name: value}})


def test_each_mode_has_its_own_number_of_steps() -> None:
    learner = small_config(learner=WINDOWS).learner
    assert learner.steps_in("shared-items") == 20
    assert learner.steps_in("from-scratch") == 60


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_presets_work_in_every_mode_with_every_backbone(
    preset: Preset, mode: str, backbone: str
) -> None:
    config = build_config(preset, {"mode": mode, "backbone": {"name": backbone}})
    assert (config.mode, config.backbone.name) == (mode, backbone)


def test_outer_steps_from_scratch_have_the_rate_of_others_unless_one_of_their_own() -> None:
    like = build_config("balanced", {"outer": {"lr": 0.01}}).outer
    own = build_config("balanced", {"outer": {"lr": 0.01, "scratch_lr": 0.05}}).outer
    assert [like.lr_in(mode) for mode in MODES] == [0.01, 0.01]
    assert [own.lr_in(mode) for mode in MODES] == [0.01, 0.05]


@pytest.mark.parametrize(
    ("outer", "ignored"),
    [
        ({"compiled": False, "vectorised": False}, ()),  # an earlier release's defaults
        ({"compiled": True}, ("outer.compiled",)),
        ({"vectorised": True, "compiled": True}, ("outer.compiled", "outer.vectorised")),
    ],
)
def test_retired_settings_are_read_and_named(
    outer: dict[str, Any], ignored: tuple[RetiredSetting, ...]
) -> None:
    """Through the text that a job is stored with, and over a preset that a user lays them on."""
    settings = small_config().model_dump()
    stored = {**settings, "outer": settings["outer"] | outer}
    config = DistillConfig.model_validate_json(json.dumps(stored))
    assert config.ignored == ignored
    assert config.outer == small_config().outer
    assert small_config(outer=outer) == config
    assert DistillConfig.model_validate_json(config.model_dump_json()) == config
    for setting in ignored:
        assert retired_note(setting).startswith(f"{setting} is ignored: ")


def test_a_retired_setting_is_no_setting_of_another_part() -> None:
    with pytest.raises(ValidationError, match=r"learner\.compiled"):
        small_config(learner={"compiled": True})
    with pytest.raises(ValidationError, match="ignored"):
        small_config(ignored=["outer.window"])


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnusableError, match="fast, balanced, quality, auto, not 'turbo'"):
        build_config("turbo")  # type: ignore[arg-type]
