"""`td3 export`: a summary in a format that other trainers read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from td3engine.cli.options import console, exit_on_error
from td3engine.export.registry import FORMATS, ExportOptions, export_to
from td3engine.files import refuse_unwritable

Sampling = Literal["guided", "independent"]


def _known_format(name: str) -> str:
    if name not in FORMATS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(FORMATS)}")
    return name


def export(
    summary: Annotated[Path, typer.Argument(help="Folder of a summary, or its zip.")],
    out: Annotated[Path, typer.Option(help="The file to write; it must not exist.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            callback=_known_format,
            help=" ".join(f"[b]{name}[/]: {each.help}." for name, each in FORMATS.items()),
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
        bool | None,
        typer.Option(
            "--repeats/--no-repeats",
            help="Whether an item may come twice in a sequence. By default it may where the log's "
            "events repeat items.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write SUMMARY in a format that other trainers read (docs/exports.md)."""

    options = ExportOptions(
        top_k=top_k,
        renormalise=renormalise,
        copies=copies,
        guidance=guidance if sampling == "guided" else None,
        temperature=temperature,
        repeats=repeats,
        seed=seed,
    )

    def work() -> None:
        from td3engine.runtime.torch_setup import configure, pick_device
        from td3engine.summary.bundle import load_bundle

        refuse_unwritable(out)
        bundle = load_bundle(summary)
        device = pick_device()
        configure(device)
        with console.status(f"exporting {bundle.factors.users} sequences"):
            line = export_to(kind, bundle, out, options, device)
        console.print(f"{out}: {line}", soft_wrap=True, markup=False)

    exit_on_error(work)
