"""`td3 gc`: delete what is older than the settings say, or tell what that would be.

Ages are days, fractions too; what is given here goes before TD3_RETAIN_..._DAYS. Prints how many
rows went, as one JSON object. Workers do the same by themselves every TD3_GC_SECONDS.
"""

import argparse
import json
import sys
from dataclasses import asdict
from datetime import timedelta

from app.settings import Settings, get_settings
from app.store.engine import open_store
from app.store.retention import Ages, collect, what_would_go


def ages_of(settings: Settings) -> Ages:
    """How long things are kept."""
    return Ages(
        jobs=_days(settings.retain_jobs_days),
        events=_days(settings.retain_events_days),
        datasets=_days(settings.retain_datasets_days),
    )


def main(arguments: list[str] | None = None) -> int:
    """Collect; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="td3 gc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="only tell what would go")
    for name, meaning in (
        ("jobs", "jobs that ended"),
        ("events", "events of jobs that ended (the changes of state stay)"),
        ("datasets", "datasets that no job uses, last used"),
    ):
        parser.add_argument(
            f"--{name}-days", type=float, metavar="DAYS", help=f"{meaning} more than DAYS ago"
        )
    options = parser.parse_args(arguments)
    given = {
        f"retain_{name}_days": days
        for name in ("jobs", "events", "datasets")
        if (days := getattr(options, f"{name}_days")) is not None
    }
    if any(days < 0 for days in given.values()):
        parser.error("an age cannot be negative")
    settings = get_settings()
    ages = ages_of(settings.model_copy(update=given))
    if not ages:
        parser.error("nothing is to go: give an age, or set TD3_RETAIN_..._DAYS")
    store = open_store(settings.database_url)
    try:
        found = what_would_go(store, ages) if options.dry_run else collect(store, ages)
    finally:
        store.close()
    sys.stdout.write(json.dumps({"dry_run": options.dry_run, **asdict(found)}) + "\n")
    return 0


def _days(days: float | None) -> timedelta | None:
    return None if days is None else timedelta(days=days)


if __name__ == "__main__":
    sys.exit(main())
