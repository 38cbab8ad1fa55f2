"""`td3 distill`: a summary of a log, without any service."""

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


def distill(
    log: LogArgument,
    out: Annotated[
        Path, typer.Option(help="Folder for the summary (and, until then, the checkpoint).")
    ],
    preset: Annotated[Preset, typer.Option(help="How much work to put in.")] = "balanced",
    settings: SettingsOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same machine, same bytes.")] = 0,
    columns: ColumnsOption = None,
    delimiter: DelimiterOption = None,
    header: HeaderOption = None,
    time_format: TimeFormatOption = None,
    limits: LimitsOption = None,
) -> None:
    """Distil LOG into a summary, without any service.

    Ctrl-C keeps a checkpoint in the folder; the same command goes on from there.
    """
    config = config_of(preset, settings or [], seed)
    read = log_reader(columns, limits, delimiter, header, time_format)

    def work() -> None:
        from td3engine.evaluation.table import results_table
        from td3engine.pipeline.launch import launch
        from td3engine.pipeline.progress_bar import PhaseBars
        from td3engine.pipeline.run import Control
        from td3engine.runtime.stop_signals import stop_signals

        with PhaseBars(console) as bars, stop_signals() as stop:
            outcome = launch(lambda: read(log), config, out, Control(bars.listen, stop))
        if outcome is not None:
            console.print(results_table(outcome.rows))
            console.print(f"summary: {out}", soft_wrap=True)

    exit_on_error(work)
