"""`td3 gc`: delete rows that are older than the settings allow, or count them.

Ages are in days, fractions too; options override TD3_RETAIN_..._DAYS. Prints the numbers of deleted
rows as one JSON object. Workers do the same every TD3_GC_SECONDS.
"""

import argparse
import json
import sys
from dataclasses import asdict

from sqlalchemy import inspect

from app.startup import start_command
from app.store.engine import STORE_ERRORS, open_store
from app.store.models import Job
from app.store.retention import Ages, collect, preview


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
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
    overrides = {
        f"retain_{name}_days": days
        for name in ("jobs", "events", "datasets")
        if (days := getattr(options, f"{name}_days")) is not None
    }
    if any(days < 0 for days in overrides.values()):
        parser.error("an age cannot be negative")
    settings = start_command()
    ages = Ages.from_settings(settings.model_copy(update=overrides))
    if not ages:
        parser.error("nothing is to go: give an age, or set TD3_RETAIN_..._DAYS")
    try:
        store = open_store(settings.database_url)
        try:
            if not inspect(store.engine).has_table(Job.__tablename__):
                where = store.engine.url.render_as_string(hide_password=True)
                sys.stderr.write(f"td3 gc: no service has used {where} yet\n")
                return 1
            counts = preview(store, ages) if options.dry_run else collect(store, ages)
        finally:
            store.close()
    except (OSError, *STORE_ERRORS) as error:
        sys.stderr.write(f"td3 gc: {error}\n")
        return 1
    sys.stdout.write(json.dumps({"dry_run": options.dry_run, **asdict(counts)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
