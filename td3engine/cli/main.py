"""The command `td3`. Torch is imported by the commands that compute, not before."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import httpx
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from td3engine import __version__
from td3engine.client.client import ServiceError
from td3engine.config import MODES, BackboneName, DistillConfig, Preset
from td3engine.config.presets import build_config
from td3engine.data.reading import read_log
from td3engine.data.types import ColumnNames, Interactions, Limits, LogError
from td3engine.errors import Interrupted, PeerLostError, UnusableError

app = typer.Typer(
    name="td3",
    help="Distil an interaction log into a small synthetic summary, and train on it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True)
console = Console()

ExportFormat = Literal["soft", "csv", "inter"]
Sampling = Literal["guided", "independent"]

LogArgument = Annotated[
    Path,
    typer.Argument(help="The log: CSV, TSV, RecBole .inter or Parquet; .gz and .zst too."),
]


ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ROLE=NAME",
        help="Which column is the user, item or time, e.g. [b]--columns user=buyer[/]; "
        "repeatable. Without it columns are found by the usual names.",
    ),
]
LimitsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=NUMBER",
        help="What the log may cost, e.g. [b]--limits max_rows=200000000[/]; repeatable.",
    ),
]


def main() -> None:
    """Entry point of the console script."""
    app()


@app.command()
def distill(
    log: LogArgument,
    out: Annotated[
        Path, typer.Option(help="Folder for the summary (and, until then, the checkpoint).")
    ],
    preset: Annotated[Preset, typer.Option(help="How much work to put in.")] = "balanced",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="e.g. [b]--set outer.steps=500[/]; repeatable."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same machine, same bytes.")] = 0,
    columns: ColumnsOption = None,
    limits: LimitsOption = None,
) -> None:
    """Distil LOG into a summary, without any service.

    Ctrl-C keeps a checkpoint in the folder; the same command goes on from there.
    """
    config = _config(preset, settings or [], seed)
    read = _reader(columns or [], limits or [])

    def work() -> None:
        from td3engine.cli.commands import distill_log

        distill_log(log, config, out, console, read)

    _exit_on_error(work)


@app.command()
def train(
    summary: Annotated[Path, typer.Argument(help="Folder of a summary.")],
    log: Annotated[Path, typer.Option(help="The log to measure on (its held-out events).")],
    mode: Annotated[
        Literal["shared-items", "from-scratch", "both"],
        typer.Option(help="Learners start from the summary's item table, or from nothing."),
    ] = "both",
    backbone: Annotated[
        BackboneName | None,
        typer.Option(help="Train this model in place of the one that distilled."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="e.g. [b]--set learner.steps=600[/]; repeatable."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Learners to train.")] = 3,
    save: Annotated[
        Path | None, typer.Option(help="Write the first learner of the first mode (.safetensors).")
    ] = None,
    columns: ColumnsOption = None,
    limits: LimitsOption = None,
) -> None:
    """Train learners on SUMMARY and measure them on the test events of LOG."""
    modes = MODES if mode == "both" else (mode,)
    given = _overrides(settings or [])
    over = given.pop("learner", {})
    if given or not isinstance(over, dict):
        _fail(f"--set: {next(iter(given), 'learner')}: only learner.* can be set for training")
    read = _reader(columns or [], limits or [])

    def work() -> None:
        from td3engine.cli.commands import train_on_summary

        try:
            train_on_summary(summary, log, modes, backbone, over, seeds, save, console, read)
        except ValidationError as error:
            _refuse(error, "learner.")

    _exit_on_error(work)


@app.command()
def export(
    summary: Annotated[Path, typer.Argument(help="Folder of a summary.")],
    out: Annotated[Path, typer.Option(help="The file to write; it must not exist.")],
    kind: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="[b]soft[/]: probabilities (Parquet). [b]csv[/], [b]inter[/]: sampled sequences.",
        ),
    ] = "csv",
    top_k: Annotated[int, typer.Option(min=1, help="soft: items a position.")] = 200,
    renormalise: Annotated[
        bool, typer.Option("--renormalise", help="soft: make these sum to one.")
    ] = False,
    copies: Annotated[int, typer.Option(min=1, help="Sequences a synthetic user.")] = 20,
    sampling: Annotated[
        Sampling,
        typer.Option(help="By a learner trained on the summary, or each position by itself."),
    ] = "guided",
    guidance: Annotated[
        float, typer.Option(min=0, max=1, help="guided: weight of the learner.")
    ] = 1.0,
    temperature: Annotated[float, typer.Option(help="Below 1: more of what is probable.")] = 0.6,
    repeats: Annotated[
        bool, typer.Option(help="Whether an item may come twice in a sequence.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write SUMMARY in a form that other trainers read (docs/exports.md)."""

    def work() -> None:
        from td3engine.cli.commands import export_hard, export_soft

        if kind == "soft":
            export_soft(summary, out, top_k, renormalise, console)
        else:
            weight = guidance if sampling == "guided" else None
            export_hard(
                summary,
                out,
                kind,
                copies=copies,
                temperature=temperature,
                guidance=weight,
                repeats=repeats,
                seed=seed,
                console=console,
            )

    _exit_on_error(work)


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="A log of your own; without it, MovieLens-100k is fetched.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="A fresh folder for everything that the demo makes.")
    ] = Path("demo-data"),
    preset: Annotated[Preset, typer.Option(help="How much work to put in.")] = "balanced",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As for distill.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """The main job, end to end: real service, real log, summary, table of results."""
    config = _config(preset, settings or [], seed)

    def work() -> None:
        from td3engine.cli.demo import run_demo

        run_demo(data, out, config, console)

    _exit_on_error(work)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def serve(context: typer.Context) -> NoReturn:
    """Run the service here: API, worker, embedded Valkey, SQLite. See [b]td3 serve --help[/]."""
    # The engine knows no server: the process is handed to the room that does.
    os.execv(sys.executable, [sys.executable, "-m", "app.serve", *context.args])


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def gc(context: typer.Context) -> NoReturn:
    """Delete old jobs, events and datasets of a service. See [b]td3 gc --help[/]."""
    os.execv(sys.executable, [sys.executable, "-m", "app.gc", *context.args])


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def keys(context: typer.Context) -> NoReturn:
    """Make, list and revoke API keys of a service. See [b]td3 keys --help[/]."""
    os.execv(sys.executable, [sys.executable, "-m", "app.keys", *context.args])


@app.command(hidden=True)
def run(
    data: Annotated[Path, typer.Option(help="A normalised log.")],
    config: Annotated[Path, typer.Option(help="A DistillConfig as JSON.")],
    out: Annotated[Path, typer.Option(help="Work folder.")],
    checkpoint_seconds: Annotated[float, typer.Option(min=0)] = 60.0,
) -> None:
    """One job for a worker: events as JSON lines on stdout (docs/contracts.md)."""
    from td3engine.cli.run import run_job

    raise typer.Exit(run_job(data, config, out, checkpoint_seconds))


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.print(f"td3engine {__version__}")
        raise typer.Exit


def _config(preset: Preset, settings: list[str], seed: int) -> DistillConfig:
    try:
        return build_config(preset, _overrides(settings, seed=seed))
    except ValidationError as error:
        _refuse(error)


def _reader(columns: list[str], limits: list[str]) -> Callable[[Path], Interactions]:
    """`read_log` with what the command line says of the log."""
    try:
        return partial(
            read_log,
            columns=ColumnNames.model_validate(_pairs("columns", columns)),
            limits=Limits.model_validate(_pairs("limits", limits)),
        )
    except ValidationError as error:
        _refuse(error)


def _pairs(option: str, given: list[str]) -> dict[str, str]:
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            _fail(f"--{option} {each}: expected NAME=VALUE")
        found[name] = value
    return found


def _overrides(settings: list[str], **given: Any) -> dict[str, Any]:
    """KEY=VALUE, KEY with dots, as nested dictionaries, over what is given; `null` is no value."""
    overrides = dict(given)
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not path:
            _fail(f"--set {setting}: expected KEY=VALUE, e.g. outer.steps=500")
        *parents, last = path.split(".")
        level = overrides
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                _fail(f"--set {setting}: {parent} is a value, not a group")
        level[last] = None if value == "null" else value
    return overrides


def _refuse(error: ValidationError, group: str = "") -> NoReturn:
    """Name each setting that is wrong."""
    lines = [
        f"{group}{'.'.join(map(str, e['loc'])) or 'configuration'}: {e['msg']}"
        for e in error.errors()
    ]
    _fail("\n".join(lines))


def _exit_on_error(command: Callable[[], None]) -> None:
    """Turn what a user can mend into one line and exit code 65, and an interrupt into 130."""
    try:
        command()
    except ModuleNotFoundError as error:
        _fail(f"{error.name} is missing: pip install 'td3engine[engine,service,embedded]'", 65)
    except ValidationError as error:  # what `auto` makes of a log
        _refuse(error)
    except (LogError, UnusableError, ServiceError, httpx.TransportError, OSError) as error:
        _fail(str(error), 65)
    except PeerLostError as lost:
        _fail(str(lost), 1)
    except Interrupted as stopped:
        _fail(f"{stopped}; the same command goes on from the checkpoint", 130)


def _fail(message: str, code: int = 2) -> NoReturn:
    errors.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)
