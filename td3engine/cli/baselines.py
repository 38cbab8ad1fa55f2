"""`td3 baselines`: what a log gives without any summary."""

import json
from pathlib import Path
from typing import Annotated

import typer

from td3engine.cli.options import (
    ColumnsOption,
    DelimiterOption,
    HeaderOption,
    LimitsOption,
    LogArgument,
    SettingsOption,
    TimeFormatOption,
    config_of,
    console,
    exit_on_error,
    log_reader,
)
from td3engine.config import Preset


def baselines(
    log: LogArgument,
    network: Annotated[
        bool, typer.Option(help="Train the network too, and mix the teacher (minutes).")
    ] = True,
    preset: Annotated[Preset, typer.Option(help="Whose settings to use.")] = "balanced",
    settings: SettingsOption = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option("--json", help="Write all rows and metrics here as well.")
    ] = None,
    columns: ColumnsOption = None,
    delimiter: DelimiterOption = None,
    header: HeaderOption = None,
    time_format: TimeFormatOption = None,
    limits: LimitsOption = None,
) -> None:
    """Measure models that are made of the whole LOG: by counting, by training, and both mixed.

    A look before distilling: where a counting model ranks as well as the network, it may be all
    that the log needs.
    """
    config = config_of(preset, settings or [], seed)
    read = log_reader(columns, limits, delimiter, header, time_format)

    def work() -> None:
        from td3engine.api.baselines import baselines as measure
        from td3engine.evaluation.full_data import full_data_note
        from td3engine.evaluation.table import results_table
        from td3engine.files import atomic_file, refuse_unwritable

        if out is not None:
            refuse_unwritable(out)
        notes: list[str] = []
        with console.status("counting") as status:
            rows = measure(
                read(log),
                config=config.model_dump(),
                network=network,
                on_epoch=lambda epoch, best: status.update(
                    f"network: epoch {epoch}, validation NDCG@10 {best:.4f}"
                ),
                on_note=notes.append,
            )
        console.print(results_table(rows))
        if note := full_data_note(rows):
            notes.append(note)
        for note in notes:
            console.print(f"note: {note}", highlight=False)
        if out is not None:
            with atomic_file(out) as file:
                file.write(f"{json.dumps(rows, indent=2)}\n".encode())
            console.print(f"rows: {out}", soft_wrap=True)

    exit_on_error(work)
