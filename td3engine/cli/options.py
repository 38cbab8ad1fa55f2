"""Shared by several commands: options, parsing of settings, and errors as one line."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from td3engine.client import ServiceError
from td3engine.config import DistillConfig, Preset
from td3engine.config.presets import build_config
from td3engine.data.reading import read_log
from td3engine.data.types import ColumnNames, Dialect, Interactions, Limits, LogError
from td3engine.errors import Interrupted, PeerLostError, UnusableError

errors = Console(stderr=True)
console = Console()

LogArgument = Annotated[
    Path,
    typer.Argument(
        help="The log: CSV, TSV, RecBole .inter, JSON lines or Parquet, packed too; or a folder "
        "of such files."
    ),
]


ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ROLE=NAME",
        help="Which column is the user, item or time, e.g. [b]--columns user=buyer[/]; "
        "repeatable. A number is a position, from 1; [b]time=date+clock[/] joins two columns. "
        "Without it columns are found by the usual names.",
    ),
]
DelimiterOption = Annotated[
    str | None,
    typer.Option(
        help="What separates fields: one character or more ([b]::[/]), [b]tab[/], or "
        "[b]blanks[/]. Without it it is found by looking."
    ),
]
HeaderOption = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header",
        help="Whether the first line names the columns. By default it does, unless all columns are "
        "given by position.",
    ),
]
TimeFormatOption = Annotated[
    str | None,
    typer.Option(help="How times are written, e.g. [b]'%d/%m/%Y %H:%M'[/] (strptime's letters)."),
]
LimitsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=NUMBER",
        help="What the log may cost, e.g. [b]--limits max_rows=200000000[/]; repeatable.",
    ),
]

SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="e.g. [b]--set outer.steps=500[/]; repeatable."
    ),
]


def config_of(preset: Preset, settings: list[str], seed: int) -> DistillConfig:
    """The configuration of a preset with `--set` settings; exits with an error if one is wrong."""
    try:
        return build_config(preset, overrides_of(settings, seed=seed))
    except ValidationError as error:
        refuse(error)


def log_reader(
    columns: list[str] | None,
    limits: list[str] | None,
    delimiter: str | None = None,
    header: bool | None = None,
    time_format: str | None = None,
) -> Callable[[Path], Interactions]:
    """`read_log` with the options of a log; exits with an error if one is wrong."""
    try:
        dialect = Dialect(delimiter=delimiter, header=header, time_format=time_format)
        return partial(
            read_log,
            columns=ColumnNames.model_validate(_pairs("columns", columns or [])),
            **dialect.model_dump(),
            limits=Limits.model_validate(_pairs("limits", limits or [])),
        )
    except ValidationError as error:
        refuse(error)


def _pairs(option: str, arguments: list[str]) -> dict[str, str]:
    pairs = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            fail(f"--{option} {argument}: expected NAME=VALUE")
        pairs[name] = value
    return pairs


def overrides_of(settings: list[str], **defaults: Any) -> dict[str, Any]:
    """`--set` settings (KEY=VALUE, KEY with dots) as nested dictionaries, laid over the defaults.

    The value `null` is None.
    """
    overrides = dict(defaults)
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not path:
            fail(f"--set {setting}: expected KEY=VALUE, e.g. outer.steps=500")
        *parents, last = path.split(".")
        level = overrides
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                fail(f"--set {setting}: {parent} is a value, not a group")
        level[last] = None if value == "null" else value
    return overrides


def refuse(error: ValidationError, group: str = "") -> NoReturn:
    """Exit with code 2 and one line for each wrong setting, its key after `group`."""
    lines = [
        f"{group}{'.'.join(map(str, e['loc'])) or 'configuration'}: {e['msg']}"
        for e in error.errors()
    ]
    fail("\n".join(lines))


def exit_on_error(command: Callable[[], None]) -> None:
    """Run a command; errors become one line and an exit code (docs/contracts.md).

    65: the user can correct it. 130: interrupted after a checkpoint. 1: another process failed.
    """
    try:
        command()
    except ModuleNotFoundError as error:
        fail(f"{error.name} is missing: pip install 'td3engine[engine,service,embedded]'", 65)
    except ValidationError as error:  # of `auto` settings, which depend on the log
        refuse(error)
    except (LogError, UnusableError, ServiceError, httpx.TransportError, OSError) as error:
        fail(str(error), 65)
    except PeerLostError as lost:
        fail(str(lost), 1)
    except Interrupted as stopped:
        fail(f"{stopped}; the same command goes on from the checkpoint", 130)


def fail(message: str, code: int = 2) -> NoReturn:
    """Print an error and exit."""
    errors.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)
