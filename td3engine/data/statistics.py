"""All that is said of a log before it is distilled."""

from td3engine.config import DataConfig
from td3engine.data.facts import facts_of, notes_of, removed_facts
from td3engine.data.filtering import filter_statistics
from td3engine.data.types import Interactions, describe


def statistics_of(log: Interactions, config: DataConfig) -> dict[str, object]:
    """Size, filter, facts, reading and notes of a log, as JSON has them.

    Args:
        log: the log.
        config: of the filter.
    """
    filtered = filter_statistics(
        log,
        min_user_interactions=config.min_user_interactions,
        min_item_interactions=config.min_item_interactions,
        duplicates=config.duplicates,
        missing_ids=config.missing_ids,
        repeats=config.repeats,
    )
    facts = facts_of(log)
    removed = removed_facts(
        log, users=filtered.users, items=filtered.items, interactions=filtered.interactions
    )
    return {
        **describe(log).model_dump(),
        "filter": filtered.model_dump(),
        "facts": facts.model_dump(),
        "reading": log.reading.model_dump(mode="json") if log.reading else None,
        "notes": notes_of({**facts.model_dump(), **removed}, log.reading),
    }
