"""How a configuration is built: a preset, overrides over it, and the size of the log.

Imports no torch.
"""

from dataclasses import dataclass, replace
from typing import Any

from td3engine.config import AUTO_KNOBS, AutoKnob, DistillConfig, Preset
from td3engine.config.sizes import (
    COARSEST_TABLE,
    LABELS_SUFFICE,
    LARGEST_SHARE,
    LONG_STEPS,
    MOST_USERS,
    Sizes,
    fitted,
    outer_step_seconds,
)
from td3engine.errors import ConfigError, UnusableError

MOST_BY_BYTES = 1000  # users that a budget of bytes is spent on
TEACHER_STEPS = 16_000  # of a teacher whose number of epochs is `auto`

PRESETS: dict[Preset, dict[str, Any]] = {
    "fast": {
        "auto": [knob for knob in AUTO_KNOBS if knob != "outer.steps"],
        "outer": {"steps": 0},
        "learner": {"steps": 800, "scratch_steps": 1600},
    },
    "balanced": {"auto": AUTO_KNOBS},
    "quality": {
        "auto": [knob for knob in AUTO_KNOBS if knob != "outer.steps"],
        "outer": {"steps": 100, "lr": 0.01},
    },
}
PRESETS["auto"] = PRESETS["balanced"]  # a preset of its own in earlier releases


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
    knobs = list(PRESETS[preset].get("auto", ()))
    budget = overrides.get("budget")
    if isinstance(budget, dict) and budget.get("seconds") and "outer.steps" not in knobs:
        knobs.append("outer.steps")  # what a budget of seconds sets, whatever the preset
    auto = [knob for knob in knobs if not _has(overrides, knob)]
    return DistillConfig.model_validate(merge(PRESETS[preset], {"auto": auto} | overrides))


@dataclass(frozen=True)
class LogSize:
    """What sizes depend on: counts of a log after the filter, and bytes of the whole log.

    Attributes:
        users, items, interactions, training_interactions: after the filter.
        stored_bytes: of the normalised Parquet; None if unknown.
        id_bytes: of the item ids, compressed.
    """

    users: int
    items: int
    interactions: int
    training_interactions: int
    stored_bytes: int | None = None
    id_bytes: int = 0


def sized_by_data(config: DistillConfig, log: LogSize) -> DistillConfig:
    """The configuration with its `auto` knobs set for a log of this size.

    | knob | value |
    |---|---|
    | `summary.length` | three times the mean training history; 20 to 50, and what a model reads |
    | `summary.users`, `summary.table_step` | by the budget (`_sized_summary`) |
    | `learner.batch` | the preset's, or `summary.users` if that is less |
    | `outer.steps` | 0 from `LABELS_SUFFICE` positions on, else `LONG_STEPS`; or by seconds |
    | `teacher.batch` | an epoch of about 1,000 steps; 64 to 1,024 windows |
    | `teacher.max_epochs` | about 16,000 steps in all; at most the preset's epochs |

    Args:
        config: the configuration; without `auto` knobs it is returned as it is.
        log: the log's sizes.

    Raises:
        ConfigError: a budget of bytes is too small for the log's items.
        pydantic.ValidationError: the settings cannot work with a log of this size.
    """
    if not config.auto:
        return config
    settings = config.model_dump()
    settings["auto"] = ()
    # A user's last window is short: most users have one more than their events would fill.
    windows = log.users + (log.training_interactions - log.users) / config.data.max_history
    batch = min(max(64, round(windows / 1000)), 1024)
    teacher_batch = batch if "teacher.batch" in config.auto else config.teacher.batch
    epochs = max(config.teacher.validate_every, round(TEACHER_STEPS * teacher_batch / windows))
    longest = config.data.max_history + 1
    history = round(3 * log.training_interactions / log.users)
    sized: dict[AutoKnob, int | float] = {
        "summary.length": min(max(history, 20), 50, longest),
        "teacher.batch": batch,
        "teacher.max_epochs": min(config.teacher.max_epochs, epochs),
    }
    for knob in config.auto:
        if knob in sized:
            _set(settings, knob, sized[knob])
    summary = _sized_summary(config, settings["summary"]["length"], log)
    users = summary.users if "summary.users" in config.auto else config.summary.users
    by_summary: dict[AutoKnob, int | float] = {
        "summary.users": users,
        "summary.table_step": summary.table_step,
        "learner.batch": min(config.learner.batch, users),
        "outer.steps": _outer_steps(config, replace(summary, users=users)),
    }
    for knob in config.auto:
        if knob in by_summary:
            _set(settings, knob, by_summary[knob])
    return DistillConfig.model_validate(settings)


def _sized_summary(config: DistillConfig, length: int, log: LogSize) -> Sizes:
    """As many users as the budget has room for, and the steps of the item table."""
    summary, budget = config.summary, config.budget
    wanted = Sizes(
        items=log.items,
        users=min(MOST_USERS, log.users),
        length=length,
        width=config.backbone.hidden,
        table_step=summary.table_step,
        label_step=summary.label_step,
        id_bytes=log.id_bytes,
    )
    if "summary.users" not in config.auto:
        return replace(wanted, users=summary.users)
    if budget and budget.sequences:
        return replace(wanted, users=budget.sequences)
    # A step that was given stays, and sequences have to fit beside the table that it makes.
    coarsest = COARSEST_TABLE if "summary.table_step" in config.auto else summary.table_step
    if budget and budget.bytes:
        most = replace(wanted, users=min(MOST_BY_BYTES, log.users))
        return fitted(most, budget.bytes, coarsest)
    if log.stored_bytes is None:
        return wanted
    try:
        return fitted(wanted, round(LARGEST_SHARE * log.stored_bytes), coarsest)
    except ConfigError:  # the items alone take more: nobody asked for that limit
        few = min(-(-LABELS_SUFFICE // length), wanted.users)
        return replace(wanted, users=few, table_step=COARSEST_TABLE)


def _outer_steps(config: DistillConfig, summary: Sizes) -> int:
    scratch = config.mode == "from-scratch"
    if config.budget and config.budget.seconds:
        each = outer_step_seconds(
            summary,
            batch=config.learner.batch,
            window=config.outer.window,
            learners=config.outer.learners,
            trains_table=scratch,
        )
        return round(config.budget.seconds / each)
    # Those that were asked for come first, and as many follow.
    least = 2 * config.outer.shared_steps if scratch else 0
    positions = summary.users * summary.length
    suffices = config.summary.inputs == "items" and positions >= LABELS_SUFFICE
    return least if suffices else max(LONG_STEPS, least)


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


def _set(settings: dict[str, Any], knob: AutoKnob, value: float) -> None:
    part, name = knob.split(".")
    settings[part][name] = value
