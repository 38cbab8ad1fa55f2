"""Settings that depend on the log: those under `auto`, where a softmax is sampled, and by which
protocol checkpoints are chosen."""

import zlib
from typing import Literal

import torch

from td3engine.config import DistillConfig, softmax_over
from td3engine.config.presets import LogSize, sized_by_data
from td3engine.data.split import Split
from td3engine.data.types import LogError
from td3engine.inner_loop.plan import plans_of
from td3engine.models.backbone import Backbone
from td3engine.ranking.holdout import validation_protocol
from td3engine.teacher.network import counting_share


def settled_for(
    config: DistillConfig,
    split: Split,
    backbone: Backbone,
    device: torch.device,
    stored_bytes: int | None = None,
) -> tuple[DistillConfig, list[str]]:
    """The configuration that a run on this log computes with, which its manifest will carry.

    Args:
        config: as requested.
        split: the log.
        backbone: of the learners.
        device: where to compute.
        stored_bytes: of the log's normalised Parquet, which limit a summary without a budget.

    Returns:
        The configuration, where nothing that depends on the log is `auto`; and notes for the user:
        duplicates, what is sampled, what chooses checkpoints, and what the plans of the inner loop
        ignore.

    Raises:
        pydantic.ValidationError: the settings cannot work with a log of this size.
    """
    statistics = split.statistics()
    ids = "\n".join(split.item_ids).encode()
    log = LogSize(
        users=statistics.users,
        items=split.n_items,
        interactions=statistics.interactions,
        training_interactions=statistics.training_interactions,
        stored_bytes=stored_bytes,
        id_bytes=len(zlib.compress(ids)),
    )
    config = sized_by_data(config, log)
    plans = list(plans_of(config, backbone, split.n_items, device).values())
    sampled = any(plan.softmax == "sampled" for plan in plans)
    settled: dict[str, Literal["full", "sampled"]] = {
        "teacher": softmax_over(split.n_items, config.teacher.softmax),
        "outer": "sampled" if sampled else "full",
    }
    notes = log_notes(split, config)
    protocol, _ = validation_protocol(split, config.data)
    duplicates = config.data.duplicates
    if duplicates == "auto":  # the split has dropped all of them, or none
        duplicates = "drop" if split.duplicates else "keep"
    data = config.data.model_copy(update={"validate_by": protocol, "duplicates": duplicates})
    config = config.model_copy(update={"data": data})
    for part, softmax in settled.items():
        section = getattr(config, part).model_copy(update={"softmax": softmax})
        config = config.model_copy(update={part: section})
        if softmax == "sampled" and (part == "teacher" or config.outer.steps):
            sample = f"{section.negatives:,} of {split.n_items:,} items"
            notes.append(f"{part}: a sampled softmax, {sample} a step")
    support = max(plan.support or 0 for plan in plans)
    if support:
        notes.append(f"outer: a synthetic position meets {support:,} items one by one")
    if config.outer.support == "auto":
        outer = config.outer.model_copy(update={"support": support or "all"})
        config = config.model_copy(update={"outer": outer})
    share = counting_share(split, config)
    if config.teacher.counting_share not in ("auto", share):
        notes.append("teacher.counting_share is 0: steps with a sampled softmax have no labels")
    teacher = config.teacher.model_copy(update={"counting_share": share})
    config = config.model_copy(update={"teacher": teacher})
    return config, [*notes, *dict.fromkeys(note for plan in plans for note in plan.notes)]


def log_notes(split: Split, config: DistillConfig) -> list[str]:
    """What is worth knowing of a log, what was dropped from it, and why it chooses checkpoints as
    it does; for people."""
    notes = []
    for count, what in (
        (split.dropped_missing, "an id that looks like a missing value (data.missing_ids: drop)"),
        (
            split.duplicates,
            "the user, item and time of an earlier row and were dropped (data.duplicates: keep "
            "counts them as events)",
        ),
        (split.dropped_repeats, "an item that their user met before (data.repeats: first)"),
    ):
        if count:
            dropped = "" if "dropped" in what else " and were dropped"
            notes.append(f"{count:,} rows have {what}{dropped}")
    return notes + split.notes() + validation_protocol(split, config.data)[1]


def not_distilled_note(config: DistillConfig) -> str:
    """What a summary is that is its own start; for people."""
    why = (
        "outer.steps is 0"
        if not config.outer.steps
        else f"none of {config.outer.steps} outer steps did better on validation"
    )
    if config.summary.inputs == "items":
        return (
            f"the summary is {config.summary.users} real histories with the teacher's labels, not "
            f"distilled: {why}"
        )
    return f"the summary is its start, not distilled: {why}"


def refuse_too_little_data(split: Split) -> None:
    """Raise LogError `too_little_data` if no user has two training events."""
    if (split.training_ends - split.offsets[:-1]).max() < 2:
        raise LogError(
            "too_little_data",
            "there is nothing to train on: with the last two events of each user held out, no "
            "user has two events left",
        )
