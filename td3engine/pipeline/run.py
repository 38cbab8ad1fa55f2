"""A whole run: teacher, distillation, evaluation and bundle, with progress and checkpoints.

`td3 distill`, `td3engine.distill` and the worker's engine process share it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from td3engine.config import DistillConfig
from td3engine.config.retired import retired_note
from td3engine.counting.fitting import FittedCounting, fit_counting_models
from td3engine.data.normalised import write_normalised
from td3engine.data.split import split_log
from td3engine.data.types import Interactions
from td3engine.errors import DivergedError, Interrupted, RanksError
from td3engine.evaluation.baselines import summary_rows
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.full_data import (
    counting_notes,
    counting_rows,
    full_data_note,
    full_data_rows,
    make_teacher,
    teacher_rows,
)
from td3engine.evaluation.labelled import labelled_rows, users_of_bytes
from td3engine.evaluation.table import (
    INITIAL,
    LABELLED,
    LABELLED_SAME_BYTES,
    SUMMARY,
    Row,
    without_wall_times,
)
from td3engine.events import Listener, Note, Phase
from td3engine.models.registry import build_backbone
from td3engine.outer_loop.distillation import Distillation
from td3engine.pipeline.checkpoint import Checkpoint, State
from td3engine.pipeline.progress import PhaseClock
from td3engine.pipeline.settings import not_distilled_note, refuse_too_little_data, settled_for
from td3engine.ranking.holdout import Holdouts
from td3engine.runtime.distributed import ProcessGroup
from td3engine.runtime.torch_setup import configure, cpu_contention, pick_device
from td3engine.summary.bundle import Manifest, packed_bytes, save_bundle
from td3engine.summary.labelled import AnySummary, as_stored
from td3engine.teacher.network import network_training
from td3engine.teacher.training import TrainedOnLog

RESULT_SEEDS = (1, 2, 3)  # of the learners whose test metrics the manifest holds

LARGEST_WEIGHED = 5_000_000  # interactions of a log whose Parquet is written to see its size


@dataclass(frozen=True)
class Control:
    """How a run is observed and stopped.

    Attributes:
        listener: called with every event.
        stop: called between steps; True ends the run after a checkpoint.
        on_checkpoint: called after each checkpoint with its path, phase and step.
        checkpoint_seconds: least time between two checkpoints (`Checkpoint`).
    """

    listener: Listener
    stop: Callable[[], bool] = field(default=lambda: False)
    on_checkpoint: Callable[[Path, Phase, int], None] = field(default=lambda *_: None)
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True)
class Distilled:
    """The result of the phases before evaluation.

    Attributes:
        teacher: trained on the whole log.
        initial: the summary before distilling.
        summary: the best summary by validation.
        choice: validation "ndcg@10" and outer "step" of the best summary.
        state: of the checkpoint from which evaluation can start again.
    """

    teacher: TrainedOnLog
    initial: AnySummary
    summary: AnySummary
    choice: dict[str, float]
    state: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        manifest: of the summary in the folder.
        rows: test metrics, with wall times.
        seconds: wall time by phase.
    """

    manifest: Manifest
    rows: list[Row]
    seconds: dict[str, float]


class Run:
    """One run on one log in one folder, in one process or several.

    Args:
        log: the log.
        fingerprint: of the log (`Interactions.fingerprint`), as checkpoint and manifest name it.
        config: all settings.
        folder: for the checkpoint, and in the end for the summary.
        control: how the run is observed and stopped.
        group: the processes of the run; None: this one alone.
    """

    def __init__(
        self,
        log: Interactions,
        fingerprint: str,
        config: DistillConfig,
        folder: Path,
        control: Control,
        group: ProcessGroup | None = None,
    ) -> None:
        self.log, self.fingerprint, self.config = log, fingerprint, config
        self.folder, self.control, self.group = folder, control, group or ProcessGroup()
        self.device = pick_device(config.device)
        self.backbone = build_backbone(config.learner_backbone, config.data.max_history)
        self.clock = PhaseClock(control.listener)
        # The identity has the configuration as requested: a resumed run starts from the same.
        self.checkpoint = Checkpoint(
            folder,
            {"fingerprint": fingerprint, "config": config.model_dump_json()},
            control.checkpoint_seconds,
            self.group,
            self.device,
        )

    def run(self) -> Outcome:
        """Distil, evaluate and write the bundle, as the only or the main process.

        Raises:
            LogError: too little of the log is left after the filter.
            CheckpointMismatchError: the folder's checkpoint is of another log or configuration.
            RanksError: the processes cannot distil together.
            PeerLostError: another process has failed.
            DivergedError: training produced numbers that are not finite.
            Interrupted: `control.stop` returned True, here or in another process; a checkpoint has
                been written.
        """
        outcome = self._evaluate(self._distilled())
        self.checkpoint.remove()
        return outcome

    def assist(self) -> None:
        """Distil together with the main process; raises what `run` does."""
        self._distilled()

    def _distilled(self) -> Distilled:
        saved = self._prepare()
        return self._distil(self._pretrain(saved), saved)

    def _prepare(self) -> dict[str, Any]:
        """Set up torch, split the log, settle the configuration; returns the checkpoint."""
        configure(self.device)
        self._refuse_mismatched_ranks()
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.clock.enter("preparing")
        for setting in self.config.ignored:
            self._note(retired_note(setting))
        if self.device.type == "cpu" and (contention := cpu_contention()):
            self._note(contention)
        if self.group.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
        saved = self.checkpoint.read()
        self.clock.seconds = dict(saved.get("seconds", {}))
        self.split = split_log(self.log, self.config.data)
        refuse_too_little_data(self.split)
        self.config, notes = settled_for(
            self.config, self.split, self.backbone, self.device, self._stored_bytes()
        )
        for note in notes:
            self._note(note)
        self.holdouts = Holdouts(self.split, self.config.data)
        return saved

    def _stored_bytes(self) -> int | None:
        """Of the log's normalised Parquet; None where no size depends on it, or no summary of a
        log so large would reach the limit."""
        budget = self.config.budget
        by_log = "summary.users" in self.config.auto and not (
            budget and (budget.sequences or budget.bytes)
        )
        if not by_log or len(self.log.times) > LARGEST_WEIGHED:
            return None
        with TemporaryDirectory() as folder:
            path = Path(folder) / "log.parquet"
            write_normalised(self.log, path)
            return path.stat().st_size

    def _refuse_mismatched_ranks(self) -> None:
        """Raise RanksError unless all processes have the same job, and each has learners."""
        learners = self.config.outer.learners
        if self.group.size > learners:
            raise RanksError(
                f"{self.group.size} processes cannot share outer.learners = {learners}: "
                f"--set outer.learners={self.group.size} (or more) gives each of them one"
            )
        identity = self.checkpoint.identity
        main_identity = self.group.broadcast(identity, self.device)
        if any(self.group.any(identity != main_identity)):
            raise RanksError("the processes of this run have different logs or configurations")

    def _pretrain(self, saved: dict[str, Any]) -> TrainedOnLog:
        self.clock.enter("pretraining")
        self.counting = self._count()
        history = self.config.data.max_history
        if "trained" in saved:
            backbone = build_backbone(self.config.teacher_backbone, history)
            return TrainedOnLog.from_state(saved["trained"], backbone)
        validation = self.holdouts.validation(history)
        training = network_training(self.split, self.config, self.counting, validation, self.device)
        if "teacher" in saved:
            training.restore(saved["teacher"])
        epochs = self.config.teacher.max_epochs
        report = self.clock.reporter(epochs, training.epoch, may_end_early=True)
        for best in self.group.iterate_on_main(training.epochs()):
            report(training.epoch, best)
            self._between_steps(training.epoch, lambda: {"teacher": training.state()})
        state = training.result().state() if self.group.is_main else {}
        return TrainedOnLog.from_state(
            self.group.broadcast(state, self.device), training.model.backbone
        )

    def _count(self) -> list[FittedCounting]:
        """The counting models, in the main process; a resumed run makes them again in seconds."""
        if not self.group.is_main:
            return []
        validation = self.holdouts.validation(self.config.data.max_history)
        return fit_counting_models(self.split, validation, self.config.teacher.ease_items)

    def _distil(self, teacher: TrainedOnLog, saved: dict[str, Any]) -> Distilled:
        self.clock.enter("distilling")
        distillation = Distillation(
            self.split,
            self.config,
            self.backbone,
            teacher,
            self.holdouts.validation(self.config.learner_history),
            self.device,
            self.group,
        )
        if "distillation" in saved:
            distillation.restore(saved["distillation"])
        # Without the teacher's optimizer, which is most of its state.
        trained = teacher.state()

        def state() -> dict[str, Any]:
            return {"trained": trained, "distillation": distillation.state()}

        report = self.clock.reporter(self.config.outer.steps, distillation.done)
        for best in distillation.steps():
            report(distillation.done, best)
            self._between_steps(distillation.done, state)
        final = state()
        self._write_checkpoint(distillation.done, lambda: final)
        # The main process evaluates alone.
        self.group.close()
        self.group = self.checkpoint.group = ProcessGroup()
        start = as_stored(distillation.summary, self.config.summary)
        return Distilled(teacher, start, *distillation.result(), state=final)

    def _evaluate(self, distilled: Distilled) -> Outcome:
        self.clock.enter("evaluating")
        benchmark = Benchmark.prepare(
            self.split,
            self.config,
            self.device,
            on_step=lambda: self._between_steps(self.config.outer.steps, lambda: distilled.state),
            holdouts=self.holdouts,
        )
        for note in benchmark.notes():
            self._note(note)
        rows = self._full_data_rows(benchmark, distilled.teacher)
        rows += self._labelled_rows(benchmark, distilled)
        if distilled.choice["step"]:
            rows += self._initial_summary_rows(benchmark, distilled.initial)
        else:
            self._note(not_distilled_note(self.config))
        rows += summary_rows(
            benchmark,
            SUMMARY,
            distilled.summary,
            self.config.mode,
            RESULT_SEEDS,
            self.clock.seconds["distilling"],
        )
        manifest = save_bundle(
            self.folder,
            distilled.summary,
            self.split.item_ids,
            self._manifest(distilled, rows),
        )
        return Outcome(manifest, rows, self.clock.update())

    def _manifest(self, distilled: Distilled, rows: list[Row]) -> Manifest:
        summary, choice = distilled.summary, distilled.choice
        return Manifest(
            config=self.config,
            fingerprint=self.fingerprint,
            statistics=self.split.statistics().model_dump(exclude_none=True),
            distilled_for=self.config.mode,
            validation={
                "teacher_ndcg@10": distilled.teacher.validation,
                "summary_ndcg@10": choice["ndcg@10"],
                "outer_step": choice["step"],
            },
            results=without_wall_times(rows),
            numbers_stored={"learned": summary.numbers_learned, "V": summary.V.numel()},
        )

    def _full_data_rows(self, benchmark: Benchmark, network: TrainedOnLog) -> list[Row]:
        """The teacher, the network alone, and the counting models."""
        teacher = make_teacher(
            network,
            self.counting,
            self.holdouts.validation(self.config.data.max_history),
            self.split.repeat_share,
        )
        rows = teacher_rows(benchmark, [teacher]) + full_data_rows(benchmark, [network])
        rows += counting_rows(benchmark, self.counting)
        notes = counting_notes(self.counting, self.split.n_items)
        for note in [*notes, *filter(None, [full_data_note(rows)])]:
            self._note(note)
        return rows

    def _labelled_rows(self, benchmark: Benchmark, distilled: Distilled) -> list[Row]:
        """Labelled users, as many sequences as the summary has, and as many as its bytes hold.

        A summary of items has the bytes of as many labelled users: one row says both.
        """
        config, summary, network = self.config, distilled.summary, distilled.teacher
        sizes = {LABELLED: config.summary.users}
        if config.summary.inputs == "soft":
            most = self.split.n_users
            sizes[LABELLED_SAME_BYTES] = users_of_bytes(
                packed_bytes(summary), self.split, config.summary, network, most
            )
        rows = []
        for name, users in sizes.items():
            try:
                rows += labelled_rows(benchmark, name, network, users, config.mode, RESULT_SEEDS)
            except DivergedError as error:
                self._note(f"no figures of {name}: {error}")
        return rows

    def _initial_summary_rows(self, benchmark: Benchmark, summary: AnySummary) -> list[Row]:
        """The baseline of the summary before distilling; none if learners diverge on it."""
        mode = self.config.mode
        try:
            return summary_rows(benchmark, INITIAL, summary, mode, RESULT_SEEDS)
        except DivergedError as error:
            self._note(f"no figures of the summary at initialisation: {error}")
            return []

    def _note(self, message: str) -> None:
        self.control.listener(Note(message))

    def _between_steps(self, step: int, state: State) -> None:
        """Write a checkpoint if one is due; raise Interrupted if a process is to stop."""
        due = self.group.is_main and self.checkpoint.is_due
        stop, due = self.group.any(self.control.stop(), due)
        if stop or due:
            self._write_checkpoint(step, state)
        if stop:
            raise Interrupted(f"stopped in phase {self.clock.phase} at step {step}")

    def _write_checkpoint(self, step: int, state: State) -> None:
        phase = self.clock.phase
        self.checkpoint.write(
            state, self.clock.update, lambda path: self.control.on_checkpoint(path, phase, step)
        )
