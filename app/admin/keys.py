"""Creates, lists and revokes API keys: `td3 keys`, or `python -m app.admin.keys`.

Once the first key exists, every request needs one, on loopback addresses as well. A new key is
printed to stdout and cannot be shown again.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import inspect

from app.api_keys import issue
from app.settings import Settings
from app.startup import start_command
from app.store import keys, tenants
from app.store.engine import STORE_ERRORS, Store, open_store
from app.store.migrate import upgrade
from app.store.models import DEFAULT_TENANT, SCOPES, ApiKey
from app.store.quotas import quotas_for

_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_LONGEST_NAME = 200


class KeysError(Exception):
    """The command cannot be done; the message says why."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parse(arguments)
    overrides = {
        name: value
        for name in ("data_dir", "database_url")
        if (value := getattr(options, name)) is not None
    }
    try:
        settings = start_command(**overrides)
        store = _open(settings)
        try:
            lines = _COMMANDS[options.command](store, settings, options)
        finally:
            store.close()
    except (KeysError, ValidationError, OSError, *STORE_ERRORS) as error:
        sys.stderr.write(f"td3 keys: {error}\n")
        return 1
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


def _create(store: Store, settings: Settings, options: argparse.Namespace) -> Sequence[str]:
    now = datetime.now(UTC)
    expires_at = now + timedelta(days=options.expires_in_days) if options.expires_in_days else None
    with store.write() as session:
        tenants.ensure(session, options.tenant)
        row, key = issue(
            session,
            settings,
            tenant_id=options.tenant,
            name=options.name,
            scope=options.scope,
            expires_at=expires_at,
        )
    sys.stderr.write(f"{row.id}: {row.scope} for tenant {row.tenant_id}. Shown only now:\n")
    return [key]


def _list(store: Store, _settings: Settings, _options: argparse.Namespace) -> Sequence[str]:
    with store.read() as session:
        rows = keys.all_keys(session)
    heading = ("id", "tenant", "scope", "state", "created", "last used", "name")
    now = datetime.now(UTC)
    table = [heading, *((_cells(row, now)) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]


def _revoke(store: Store, _settings: Settings, options: argparse.Namespace) -> Sequence[str]:
    with store.write() as session:
        row = keys.find(session, options.key_id)
        if row is None:
            raise KeysError(f"there is no key {options.key_id!r} (td3 keys list)")
        keys.revoke(session, row.id, datetime.now(UTC), tenant_id=row.tenant_id)
    return [f"{row.id} is revoked"]


def _quotas(store: Store, settings: Settings, options: argparse.Namespace) -> Sequence[str]:
    with store.write() as session:
        if not options.quota and not tenants.exists(session, options.tenant):
            raise KeysError(f"there is no tenant {options.tenant!r} (td3 keys list)")
        own = dict(tenants.lock(session, options.tenant) or {})
        for name, value in options.quota:
            if value is None:
                own.pop(name, None)
            else:
                own[name] = value
        quotas = quotas_for(settings, own)  # refuses unknown names before they are stored
        tenants.ensure(session, options.tenant)
        tenants.set_overrides(session, options.tenant, own)
    return [f"{name}={value}" for name, value in quotas]


_COMMANDS = {"create": _create, "list": _list, "revoke": _revoke, "quotas": _quotas}


def _cells(row: ApiKey, now: datetime) -> tuple[str, ...]:
    state = "good"
    if row.revoked_at is not None:
        state = "revoked"
    elif row.expires_at is not None:
        state = "expired" if row.expires_at <= now else f"until {_day(row.expires_at)}"
    used = _day(row.last_used_at) if row.last_used_at else "never"
    return (row.id, row.tenant_id, row.scope, state, _day(row.created_at), used, row.name)


def _day(time: datetime) -> str:
    return time.date().isoformat()


def _open(settings: Settings) -> Store:
    """The store. An empty database gets its tables; older tables are left to the migration."""
    store = open_store(settings.database_url)
    tables = inspect(store.engine).get_table_names()
    if not tables:
        upgrade(settings.database_url)
        where = store.engine.url.render_as_string(hide_password=True)
        sys.stderr.write(f"td3 keys: there were no tables yet, so they were made: {where}\n")
    elif ApiKey.__tablename__ not in tables:
        raise KeysError("the tables are of an older release: run python -m app.store.migrate")
    return store


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="td3 keys",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings are environment variables TD3_... (docs/operations.md): the same as the "
        "service's.",
    )
    parser.add_argument("--data-dir", type=Path, help="the service's folder (default: td3-data)")
    parser.add_argument("--database-url", help="default: SQLite in the data folder")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it")
    create.add_argument("name", help="what it is for", type=_name)
    create.add_argument(
        "--scope",
        choices=SCOPES,
        default="write",
        help="read; write (and read); admin (and manage the tenant's keys). Default: write",
    )
    create.add_argument(
        "--tenant",
        type=_tenant,
        default=DEFAULT_TENANT,
        help="whose data it gives access to; made if it is new (default: %(default)s)",
    )
    create.add_argument("--expires-in-days", type=_days, help="default: it does not expire")
    commands.add_parser("list", help="all keys of all tenants, newest first")
    quotas = commands.add_parser("quotas", help="show or set what a tenant may use")
    quotas.add_argument("tenant", type=_tenant)
    quotas.add_argument(
        "quota",
        nargs="*",
        type=_quota,
        metavar="NAME=VALUE",
        help="a number, or `default` for what the settings say (docs/operations.md)",
    )
    revoke = commands.add_parser("revoke", help="refuse a key from now on")
    revoke.add_argument("key_id", help="key_... (not the key itself)")
    return parser.parse_args(arguments)


def _tenant(text: str) -> str:
    if _TENANT.fullmatch(text) is None:
        raise argparse.ArgumentTypeError("must be 1 to 40 of a-z, 0-9, _ and -")
    return text


def _name(text: str) -> str:
    if not 1 <= len(text) <= _LONGEST_NAME or not text.isprintable():
        raise argparse.ArgumentTypeError(f"must be 1 to {_LONGEST_NAME} printable characters")
    return text


def _quota(text: str) -> tuple[str, int | None]:
    name, _, value = text.partition("=")
    return name, None if value == "default" else int(value)


def _days(text: str) -> float:
    days = float(text)
    if not 0 < days <= 36_500:
        raise argparse.ArgumentTypeError("must be above 0, and at most 36500")
    return days


if __name__ == "__main__":
    sys.exit(main())
