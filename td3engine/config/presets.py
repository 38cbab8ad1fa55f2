"""How a configuration is built: a preset, overrides over it, and the size of the log.

Imports no torch.
"""

from typing import Any

from td3engine.config import AUTO_KNOBS, AutoKnob, DistillConfig, Preset
from td3engine.errors import UnusableError

TEACHER_STEPS = 16_000  # of a teacher whose number of epochs is `auto`

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
    """The configuration of a preset with overrides (nested dictionaries) laid over it.

    A setting among the overrides is not `auto`, unless `overrides["auto"]` lists it.

    Raises:
        UnusableError: an unknown preset.
        pydantic.ValidationError: an unknown key or a value outside its limits, with its path.
    """
    if preset not in PRESETS:
        raise UnusableError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    overrides = overrides or {}
    auto = [knob for knob in PRESETS[preset].get("auto", ()) if not _has(overrides, knob)]
    return DistillConfig.model_validate(merge(PRESETS[preset], {"auto": auto} | overrides))


def sized_by_data(
    config: DistillConfig, *, users: int, interactions: int, training_interactions: int
) -> DistillConfig:
    """The configuration with its `auto` knobs set for a log of this size (after the filter).

    | knob | value |
    |---|---|
    | `summary.users` | 30 at 100,000 interactions, by the fourth root of them; 20 to 100 |
    | `summary.length` | three times the mean training history; 20 to 50, and what a model reads |
    | `learner.batch` | half of `summary.users` |
    | `outer.steps` | by the fourth root of the interactions; 100 to twice the preset's |
    | `teacher.batch` | an epoch of about 1,000 steps; 64 to 1,024 windows |
    | `teacher.max_epochs` | about 16,000 steps in all; at most the preset's epochs |

    Args:
        config: the configuration; without `auto` knobs it is returned as it is.
        users, interactions, training_interactions: counts of the log.

    Raises:
        pydantic.ValidationError: the settings cannot work with a log of this size.
    """
    if not config.auto:
        return config
    growth = (interactions / 100_000) ** 0.25
    settings = config.model_dump()
    settings["auto"] = ()
    longest = config.data.max_history + 1
    outer = config.outer
    # A user's last window is short: most users have one more than their events would fill.
    windows = users + (training_interactions - users) / config.data.max_history
    batch = min(max(64, round(windows / 1000)), 1024)
    teacher_batch = batch if "teacher.batch" in config.auto else config.teacher.batch
    epochs = max(config.teacher.validate_every, round(TEACHER_STEPS * teacher_batch / windows))
    # At least half of the steps distil for `from-scratch` if that is the mode.
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
            _set(settings, knob, sized[knob])
    if "learner.batch" in config.auto:
        _set(settings, "learner.batch", -(-settings["summary"]["users"] // 2))
    return DistillConfig.model_validate(settings)


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
