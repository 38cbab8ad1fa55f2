"""What `td3 distill`, `td3 train` and `td3 export` do, apart from parsing their arguments."""

import json
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from td3engine import events
from td3engine.config import BackboneName, DistillConfig, Mode
from td3engine.data.normalised import write_normalised
from td3engine.data.reading import read_log
from td3engine.data.types import Interactions
from td3engine.errors import Interrupted, OutputExistsError, WrongLogError
from td3engine.evaluation.baselines import summary_rows
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.table import Row, results_tables
from td3engine.export.files import refuse_unwritable, write_csv, write_inter, write_soft
from td3engine.export.sequences import sample_sequences, train_guide
from td3engine.export.soft_targets import soft_top_k
from td3engine.inner_loop.learner import learn
from td3engine.models.registry import learner_of
from td3engine.pipeline.run import Control, Run, pick_device, split_log
from td3engine.runtime.distributed import join
from td3engine.runtime.seeding import Purpose, generator
from td3engine.runtime.torch_setup import configure
from td3engine.summary.bundle import MANIFEST_FILE, Bundle, load_bundle

PHASE_NAMES = {
    "preparing": "reading",
    "pretraining": "teacher",
    "distilling": "distilling",
    "evaluating": "measuring",
    "publishing": "storing",
}


class PhaseBars:
    """One progress bar a phase: step, best validation NDCG@10 so far, time spent and left."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=14),
            TextColumn("{task.fields[steps]:>8}"),
            TextColumn("{task.fields[quality]:<19}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self.tasks: dict[str, TaskID] = {}
        self.current: str | None = None

    def enter(self, phase: str) -> None:
        """Begin a phase; the one before is complete. A phase begun again goes on in its bar."""
        if phase == self.current:
            return
        self.finish()
        self.current = phase
        if phase not in self.tasks:
            name = PHASE_NAMES.get(phase, phase)
            self.tasks[phase] = self.progress.add_task(
                name, total=None, steps="", quality="", left=""
            )

    def show(
        self, phase: str, step: int, total: int, left: float | None, metrics: dict[str, float]
    ) -> None:
        """Where a phase is."""
        self.enter(phase)
        best = metrics.get("ndcg@10")
        self.progress.update(
            self.tasks[phase],
            completed=step,
            total=total,
            steps=f"{step}/{total}",
            quality="" if not best else f"val NDCG@10 {best:.4f}",
            left="" if left is None else f"{left:.0f} s left",
        )

    def finish(self) -> None:
        """Complete the running phase's bar."""
        if self.current is not None:
            task = self.tasks[self.current]
            # Early stopping ends the teacher before its last epoch: complete is what it did.
            done = self.progress.tasks[self.progress.task_ids.index(task)].completed or 1
            self.progress.update(task, total=done, completed=done, left="")
            self.progress.stop_task(task)
            self.current = None

    def listen(self, event: events.Event) -> None:
        """Follow a run in this process."""
        match event:
            case events.PhaseStarted(phase):
                self.enter(phase)
            case events.Progress():
                self.show(event.phase, event.step, event.total, event.seconds_left, event.metrics)
            case events.Note(message):
                self.progress.console.print(f"note: {message}", markup=False)


def distill_log(
    log: Path,
    config: DistillConfig,
    out: Path,
    console: Console,
    read: Callable[[Path], Interactions] = read_log,
) -> None:
    """Distil with a progress bar, then print the results and where the summary is.

    Where a launcher has started several processes they distil together, and the first one speaks.
    """
    group = join(pick_device(config.device))
    if any(group.any(group.is_main and (out / MANIFEST_FILE).exists())):
        raise OutputExistsError(f"{out} holds a summary already; take another folder")
    interactions, fingerprint = read_with_fingerprint(log, read)
    if not group.is_main:
        # A stop is the leader's to tell. (A launcher would kill it, were we to end with an error.)
        with _interrupts() as stop, suppress(Interrupted):
            control = Control(listener=lambda _: None, stop=stop)
            Run(interactions, fingerprint, config, out, control, group).assist()
        return
    bars = PhaseBars(console)
    with bars.progress, _interrupts() as stop:
        control = Control(listener=bars.listen, stop=stop)
        outcome = Run(interactions, fingerprint, config, out, control, group).run()
        bars.finish()
    _print_results(outcome.rows, console)
    console.print(f"summary: {out}", soft_wrap=True)


def train_on_summary(
    folder: Path,
    log: Path,
    modes: Sequence[Mode],
    backbone: BackboneName | None,
    over: dict[str, Any],
    seeds: int,
    save: Path | None,
    console: Console,
    read: Callable[[Path], Interactions] = read_log,
) -> None:
    """Train learners on a summary and print their test figures.

    Raises:
        pydantic.ValidationError: `over` has no such learner setting, or a value outside its limits.
        (and what `prepare_for` raises)
    """
    if save is not None:
        refuse_unwritable(save)
    bundle = load_bundle(folder)
    config = learner_of(bundle.manifest.config, backbone, over)
    device = pick_device()
    configure(device)
    benchmark = prepare_for(bundle, read(log), device, config)
    summary = bundle.summary.to(device)
    rows = []
    for mode in modes:
        with console.status(f"training {seeds} learners, {mode}"):
            rows += summary_rows(benchmark, "TD3 summary", summary, mode, range(1, seeds + 1))
    _print_results(rows, console)
    if save is not None:
        draw = generator(1, Purpose.LEARNER, device=device.type)
        learned = learn(
            summary, benchmark.backbone, config.learner, modes[0], draw, benchmark.validate
        )
        named = benchmark.backbone.named(learned.parameters)
        tensors = {name: view.contiguous().cpu() for name, view in named.items()}
        width = config.backbone.hidden
        tensors["items"] = learned.table[:, :width].contiguous().cpu()
        if benchmark.backbone.biased:
            tensors["item_bias"] = learned.table[:, width].contiguous().cpu()
        save.write_bytes(safetensors.torch.save(tensors))
        console.print(f"model: {save}", soft_wrap=True)


def export_soft(folder: Path, out: Path, k: int, renormalise: bool, console: Console) -> None:
    """Write the most probable items of every position, and say what they leave out."""
    refuse_unwritable(out)
    bundle = load_bundle(folder)
    table = soft_top_k(bundle.summary, bundle.item_ids, k, renormalise=renormalise)
    write_soft(table, out)
    said = json.loads(table.schema.metadata[b"td3"])
    held = (
        f"{said['held_mean']:.1%} of the probability on average, {said['held_least']:.1%} at least"
    )
    counts = f"{said['k']} of {said['items']} items a position"
    console.print(f"{out}: {counts}, which hold {held}", soft_wrap=True, markup=False)


def export_hard(
    folder: Path,
    out: Path,
    kind: Literal["csv", "inter"],
    *,
    copies: int,
    temperature: float,
    guidance: float | None,
    repeats: bool,
    seed: int,
    console: Console,
) -> None:
    """Write sampled sequences; `guidance` None samples every position by itself."""
    refuse_unwritable(out)
    bundle = load_bundle(folder)
    config = bundle.manifest.config
    device = pick_device()
    configure(device)
    summary = bundle.summary.to(device)
    with console.status(f"sampling {copies} sequences for each of {len(summary.U)} users"):
        guide = None
        if guidance is not None:
            guide = train_guide(summary, config, weight=guidance, seed=seed)
        sequences = sample_sequences(
            summary,
            copies=copies,
            temperature=temperature,
            guide=guide,
            repeats=repeats,
            seed=seed,
        )
    write = {"csv": write_csv, "inter": write_inter}[kind]
    write(sequences, bundle.item_ids, copies, out)
    counts = f"{len(sequences)} sequences of {sequences.shape[1]} events"
    console.print(f"{out}: {counts}", soft_wrap=True, markup=False)


def prepare_for(
    bundle: Bundle,
    log: Interactions,
    device: torch.device,
    config: DistillConfig | None = None,
) -> Benchmark:
    """The log as a benchmark for learners of this summary, by its own settings or by others.

    Raises:
        WrongLogError: after the filter the log's items are not those of the summary.
    """
    config = config or bundle.manifest.config
    split = split_log(log, config)
    if split.item_ids != bundle.item_ids:
        raise WrongLogError(
            f"the log has {split.n_items} items after the filter and the summary has "
            f"{len(bundle.item_ids)}, or their ids differ: this is not the log it was made from"
        )
    return Benchmark.prepare(split, config, device)


def read_with_fingerprint(
    path: Path, read: Callable[[Path], Interactions] = read_log
) -> tuple[Interactions, str]:
    """A log, and the sha256 of its normalised form (what the service calls its fingerprint)."""
    log = read(path)
    with tempfile.TemporaryDirectory() as scratch:
        return log, write_normalised(log, Path(scratch) / "log.parquet")


def _print_results(rows: Sequence[Row], console: Console) -> None:
    for table in results_tables(rows):
        console.print(table)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Within the block SIGINT and SIGTERM only raise a flag, which the given function reads; a
    second one interrupts at once.
    """
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
