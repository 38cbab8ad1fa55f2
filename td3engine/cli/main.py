"""The command `td3`. Torch is imported by the commands that compute, not before."""

from pathlib import Path
from typing import Annotated

import typer

from td3engine import __version__
from td3engine.cli.baselines import baselines
from td3engine.cli.check import check
from td3engine.cli.demo import demo
from td3engine.cli.distill import distill
from td3engine.cli.export import export
from td3engine.cli.options import console
from td3engine.cli.service import FORWARD_ARGUMENTS, gc, keys, serve
from td3engine.cli.train import train

app = typer.Typer(
    name="td3",
    help="Distil an interaction log into a small synthetic summary, and train on it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

for command in (check, distill, train, baselines, export, demo):
    app.command()(command)
for service_command in (serve, gc, keys):
    app.command(context_settings=FORWARD_ARGUMENTS, add_help_option=False)(service_command)


def main() -> None:
    """Entry point of the console script."""
    app()


@app.command(hidden=True)
def run(
    data: Annotated[Path, typer.Option(help="A normalised log.")],
    config: Annotated[Path, typer.Option(help="A DistillConfig as JSON.")],
    out: Annotated[Path, typer.Option(help="Work folder.")],
    checkpoint_seconds: Annotated[float, typer.Option(min=0)] = 60.0,
) -> None:
    """One job for a worker; events are JSON lines on stdout (docs/contracts.md)."""
    from td3engine.cli.run import run_job

    raise typer.Exit(run_job(data, config, out, checkpoint_seconds))


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.print(f"td3engine {__version__}")
        raise typer.Exit
