"""How a configuration comes about: a preset, a request over it, the log's size.

Imports no torch, as `td3engine.config.schema` does not.
"""

from typing import Any

from td3engine.config import AUTO_KNOBS, AutoKnob, DistillConfig, Preset

TEACHER_STEPS = 16_000  # of a teacher whose epochs are set by the log

PRESETS: dict[Preset, dict[str, Any]] = {
    "fast": {
        "auto": ["teacher.batch", "teacher.max_epochs"],
        "outer": {"steps": 60, "validate_every": 20},
    },
    "balanced": {},
    "quality": {
        "outer": {"steps": 500, "window": 40, "validation_learners": 3},
    },
    "auto": {"auto": AUTO_KNOBS},
}


def build_config(
    preset: Preset = "balanced", overrides: dict[str, Any] | None = None
) -> DistillConfig:
    """Preset with overrides (nested dictionaries) laid over it.

    Raises:
        pydantic.ValidationError: an unknown key or a value outside its limits, with its path.
    """
    asked = overrides or {}
    left = [knob for knob in PRESETS[preset].get("auto", ()) if not _has(asked, knob)]
    given = merge(PRESETS[preset], {"auto": left} | asked)
    return DistillConfig.model_validate(given)


def sized_by_data(
    config: DistillConfig, *, users: int, interactions: int, training_interactions: int
) -> DistillConfig:
    """The configuration with its `auto` knobs set for a log of this size (after the filter).

    Sequences grow with the fourth root of the interactions, from 30 at 100 thousand; a sequence
    is three times as long as a training history is on average, within 20 and what a model reads;
    a learner's step takes half of the sequences; larger logs get more outer steps. A teacher's
    epoch is at most about a thousand steps long, until a step takes 1,024 windows, and it takes
    no more than some 16 thousand steps in all.
    """
    if not config.auto:
        return config
    growth = (interactions / 100_000) ** 0.25
    found = config.model_dump()
    found["auto"] = ()
    longest = config.data.max_history + 1
    outer = config.outer
    # A user's last window is short: most users have one more than their events fill.
    windows = users + (training_interactions - users) / config.data.max_history
    batch = min(max(64, round(windows / 1000)), 1024)
    taken = batch if "teacher.batch" in config.auto else config.teacher.batch
    epochs = max(config.teacher.validate_every, round(TEACHER_STEPS * taken / windows))
    # From scratch, at least as many steps of its own as shared ones.
    fewest = max(100, 2 * outer.shared_steps if config.mode == "from-scratch" else 0)
    sized: dict[AutoKnob, int] = {
        "summary.users": min(max(round(30 * growth), 20), 100),
        "summary.length": min(max(round(3 * training_interactions / users), 20), 50, longest),
        "outer.steps": max(fewest, min(round(outer.steps * growth), 2 * outer.steps)),
        "teacher.batch": batch,
        "teacher.max_epochs": min(config.teacher.max_epochs, epochs),
    }
    for knob in config.auto:
        if knob in sized:
            _set(found, knob, sized[knob])
    if "learner.batch" in config.auto:
        _set(found, "learner.batch", -(-found["summary"]["users"] // 2))
    return DistillConfig.model_validate(found)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, dictionaries merged key by key; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
        )
    return merged


def _has(settings: dict[str, Any], knob: AutoKnob) -> bool:
    part, name = knob.split(".")
    return isinstance(settings.get(part), dict) and name in settings[part]


def _set(settings: dict[str, Any], knob: AutoKnob, value: int) -> None:
    part, name = knob.split(".")
    settings[part][name] = value
