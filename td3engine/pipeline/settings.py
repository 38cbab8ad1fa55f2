"""Settings that depend on the log: those under `auto`, and where a softmax is sampled."""

from td3engine.config import DistillConfig, softmax_over
from td3engine.config.presets import sized_by_data
from td3engine.data.split import Split


def settled_for(
    config: DistillConfig, split: Split, *, biased: bool
) -> tuple[DistillConfig, list[str]]:
    """The configuration that a run on this log computes with, which its manifest will carry.

    Args:
        config: as requested.
        split: the log.
        biased: whether the learners' backbone has an item bias.

    Returns:
        The configuration, where nothing that depends on the log is `auto`; and notes for the user.

    Raises:
        pydantic.ValidationError: the settings cannot work with a log of this size.
    """
    statistics = split.statistics()
    config = sized_by_data(
        config,
        users=statistics.users,
        interactions=statistics.interactions,
        training_interactions=statistics.training_interactions,
    )
    return _with_softmax(config, split.n_items, biased)


def _with_softmax(
    config: DistillConfig, n_items: int, biased: bool
) -> tuple[DistillConfig, list[str]]:
    # Learners that train a part of the scoring table need all its rows.
    has_frozen_table = config.mode == "shared-items" or config.outer.shared_steps > 0
    can_sample = {"teacher": True, "outer": has_frozen_table and not biased}
    notes = []
    for part, can in can_sample.items():
        requested = getattr(config, part)
        softmax = softmax_over(n_items, requested.softmax) if can else "full"
        settings = requested.model_copy(update={"softmax": softmax})
        config = config.model_copy(update={part: settings})
        if softmax == "sampled":
            sample = f"{settings.negatives:,} of {n_items:,} items"
            notes.append(f"{part}: a sampled softmax, {sample} a step")
        elif requested.softmax == "sampled":
            why = "these learners train a part of the scoring table"
            notes.append(f"{part}: a softmax over all items, since {why}")
    return config, notes
