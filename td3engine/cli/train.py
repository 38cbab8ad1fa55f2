"""`td3 train`: learners on a summary, measured on the test events of its log."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from pydantic import ValidationError

from td3engine.cli.options import (
    ColumnsOption,
    DelimiterOption,
    HeaderOption,
    LimitsOption,
    TimeFormatOption,
    console,
    exit_on_error,
    fail,
    log_reader,
    overrides_of,
    refuse,
)
from td3engine.config import MODES, BackboneName, DistillConfig, Mode
from td3engine.data.types import Interactions

if TYPE_CHECKING:
    from td3engine.evaluation.table import Row
    from td3engine.summary.bundle import Manifest


def train(
    summary: Annotated[Path, typer.Argument(help="Folder of a summary, or its zip.")],
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
    other_log: Annotated[
        bool,
        typer.Option(
            "--other-log",
            help="LOG may be another one than the summary's, of the same items: measure on test "
            "events that are later than all that the summary was trained on.",
        ),
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Learners to train.")] = 3,
    save: Annotated[
        Path | None, typer.Option(help="Write the first learner of the first mode (.safetensors).")
    ] = None,
    columns: ColumnsOption = None,
    delimiter: DelimiterOption = None,
    header: HeaderOption = None,
    time_format: TimeFormatOption = None,
    limits: LimitsOption = None,
) -> None:
    """Train learners on SUMMARY and measure them on the test events of LOG."""
    modes = MODES if mode == "both" else (mode,)
    overrides = _learner_overrides(settings or [])
    read = log_reader(columns, limits, delimiter, header, time_format)

    def work() -> None:
        try:
            _train(summary, read, log, modes, backbone, overrides, seeds, save, other_log)
        except ValidationError as error:
            refuse(error, "learner.")

    exit_on_error(work)


def _learner_overrides(settings: list[str]) -> dict[str, Any]:
    overrides = overrides_of(settings)
    learner = overrides.pop("learner", {})
    if overrides or not isinstance(learner, dict):
        fail(f"--set: {next(iter(overrides), 'learner')}: only learner.* can be set for training")
    return learner


def _train(
    folder: Path,
    read: Callable[[Path], Interactions],
    log: Path,
    modes: Sequence[Mode],
    backbone: BackboneName | None,
    overrides: dict[str, Any],
    seeds: int,
    save: Path | None,
    other_log: bool,
) -> None:
    """Train learners on a summary, print their test metrics, and save the first one."""
    from td3engine.api.training import train as train_model
    from td3engine.evaluation.baselines import summary_rows
    from td3engine.evaluation.benchmark import benchmark_for, is_log_of
    from td3engine.evaluation.table import SUMMARY, results_table
    from td3engine.files import refuse_unwritable
    from td3engine.models.registry import learner_of
    from td3engine.runtime.torch_setup import configure, pick_device
    from td3engine.summary.bundle import load_bundle

    if save is not None:
        refuse_unwritable(save)
    bundle = load_bundle(folder)
    config = learner_of(bundle.manifest.config, backbone, overrides)
    device = pick_device()
    configure(device)
    interactions = read(log)
    benchmark = benchmark_for(bundle, interactions, device, config, other_log=other_log)
    factors = bundle.factors.to(device)
    same_log = is_log_of(bundle, interactions)
    rows = _rows_to_compare_with(bundle.manifest, config) if same_log else []
    for mode in modes:
        with console.status(f"training {seeds} learners, {mode}"):
            measured = summary_rows(benchmark, SUMMARY, factors, mode, range(1, seeds + 1))
        for row in measured:
            del row["making_seconds"]  # the run that made the summary knew
        rows += measured
    console.print(results_table(rows))
    notes = benchmark.notes()
    if not same_log:
        notes.append(
            "this log has other events than the one that the summary was made from: its rows are "
            "not shown, and test events that the summary may have been trained on are left out"
        )
    for note in notes:
        console.print(f"note: {note}", highlight=False)
    if save is not None:
        model = train_model(
            bundle,
            backbone,
            modes[0],
            log=interactions,
            other_log=other_log,
            settings=overrides,
        )
        model.save(save)
        console.print(f"model: {save}", soft_wrap=True)


def _rows_to_compare_with(manifest: "Manifest", config: DistillConfig) -> "list[Row]":
    """The manifest's rows of models of the whole log, and of what learners of these settings learn
    from besides the summary.

    A manifest of an earlier release has none: its rows are of other protocols, without bytes.
    """
    from td3engine.evaluation.table import INITIAL, LABELLED, LABELLED_SAME_BYTES, SUMMARY

    left_out = [SUMMARY]
    if (config.backbone, config.learner) != (manifest.config.backbone, manifest.config.learner):
        left_out += [LABELLED, LABELLED_SAME_BYTES, INITIAL]
    return [
        cast("Row", row)
        for row in manifest.results
        if "bytes" in row and row["name"] not in left_out
    ]
