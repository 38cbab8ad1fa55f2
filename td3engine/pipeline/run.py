"""A whole distillation: log in, summary out, with progress, checkpoints and a way to stop.

The command `td3 distill`, `td3engine.distill` and the worker's engine process share it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from td3engine.config import DistillConfig, softmax_over
from td3engine.config.presets import sized_by_data
from td3engine.config.retired import retired_note
from td3engine.data.split import Split, split_log
from td3engine.data.types import Interactions, LogError
from td3engine.data.windows import training_windows
from td3engine.errors import DivergedError, Interrupted, RanksError
from td3engine.evaluation.baselines import popularity_rows, summary_rows, teacher_rows
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.table import Row
from td3engine.events import Listener, Note, Phase
from td3engine.models.recommender import Recommender
from td3engine.models.registry import build_backbone
from td3engine.outer_loop.distillation import Distillation
from td3engine.pipeline.checkpoint import Checkpoint, State
from td3engine.pipeline.progress import PhaseClock
from td3engine.ranking.holdout import Holdouts
from td3engine.runtime.distributed import ProcessGroup
from td3engine.runtime.torch_setup import configure, cpu_contention, pick_device
from td3engine.summary.bundle import Manifest, save_bundle
from td3engine.summary.tucker import TuckerSummary
from td3engine.teacher.training import LogTraining, TrainedOnLog

RESULT_SEEDS = (1, 2, 3)  # learners behind the figures that a manifest carries


@dataclass(frozen=True)
class Control:
    """How a run is watched and stopped.

    Attributes:
        listener: told of every event.
        stop: called between steps; True ends the run after a checkpoint.
        checkpointed: told the path after each checkpoint, with phase and step.
        checkpoint_seconds: least time between two checkpoints (`Checkpoint`).
    """

    listener: Listener
    stop: Callable[[], bool] = field(default=lambda: False)
    checkpointed: Callable[[Path, Phase, int], None] = field(default=lambda *_: None)
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True)
class Distilled:
    """What distilling gave.

    Attributes:
        teacher: trained on the whole log.
        start: the summary before distilling.
        summary: the best one by validation.
        choice: {"ndcg@10", "step"} of that choice.
    """

    teacher: TrainedOnLog
    start: TuckerSummary
    summary: TuckerSummary
    choice: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What a run made: the manifest, its rows with seconds, and seconds by phase."""

    manifest: Manifest
    rows: list[Row]
    seconds: dict[str, float]


class Run:
    """One distillation of one log in one folder, by one process or by several together.

    Args:
        log: the log.
        fingerprint: of the log; a checkpoint of another log is refused by it.
        config: all settings.
        folder: for the checkpoint, and in the end for the summary.
        control: how the run is watched and stopped.
        group: the processes that distil together.
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
        self.backbone = build_backbone(config.backbone, config.data.max_history)
        self.clock = PhaseClock(control.listener)
        # The configuration before `auto` is settled by the log: a resumed run starts from the same.
        self.checkpoint = Checkpoint(
            folder,
            {"fingerprint": fingerprint, "config": config.model_dump_json()},
            control.checkpoint_seconds,
            self.group,
            self.device,
        )

    def run(self) -> Outcome:
        """Distil, measure, write the bundle into the folder: all of it, or as the main process.

        Raises:
            LogError: too little is left of the log after the filter.
            CheckpointMismatchError: the folder's checkpoint is of another run.
            RanksError: the processes cannot distil together.
            PeerLostError: another process has failed.
            Interrupted: `control.stop` said so, here or in another process; a checkpoint has been
                written.
        """
        outcome = self._evaluate(self._distilled())
        self.checkpoint.remove()
        return outcome

    def assist(self) -> None:
        """Help the main process of several to distil; raises what `run` does."""
        self._distilled()

    def _distilled(self) -> Distilled:
        saved = self._prepare()
        return self._distil(self._pretrain(saved), saved)

    def _prepare(self) -> dict[str, Any]:
        """Settle machine, log and configuration; what the checkpoint holds."""
        configure(self.device)
        self._refuse_unlike_ranks()
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.clock.enter("preparing")
        for setting in self.config.ignored:
            self._note(retired_note(setting))
        if self.device.type == "cpu" and (why := cpu_contention()):
            self._note(why)
        if self.group.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
        saved = self.checkpoint.read()
        self.clock.seconds = dict(saved.get("seconds", {}))
        self.split = split_log(self.log, self.config.data)
        _refuse_nothing_to_train_on(self.split)
        self.holdouts = Holdouts(self.split, self.config.data)
        statistics = self.split.statistics()
        self.config = sized_by_data(
            self.config,
            users=statistics.users,
            interactions=statistics.interactions,
            training_interactions=statistics.training_interactions,
        )
        self._settle_softmax()
        return saved

    def _settle_softmax(self) -> None:
        """Settle what targets compete with, and say so; the manifest will, too."""
        items, config = self.split.n_items, self.config
        # Learners that train a part of the scoring table have all items in it.
        shares = config.mode == "shared-items" or config.outer.shared_steps > 0
        may_sample = {"teacher": True, "outer": shares and not self.backbone.biased}
        for part, may in may_sample.items():
            requested = getattr(config, part)
            softmax = softmax_over(items, requested.softmax) if may else "full"
            settled = requested.model_copy(update={"softmax": softmax})
            self.config = self.config.model_copy(update={part: settled})
            if softmax == "sampled":
                drawn = f"{settled.negatives:,} of {items:,} items"
                self._note(f"{part}: a sampled softmax, {drawn} a step")
            elif requested.softmax == "sampled":
                why = "these learners train a part of the scoring table"
                self._note(f"{part}: a softmax over all items, since {why}")

    def _refuse_unlike_ranks(self) -> None:
        learners = self.config.outer.learners
        if self.group.size > learners:
            raise RanksError(
                f"{self.group.size} processes cannot share outer.learners = {learners}: "
                f"--set outer.learners={self.group.size} (or more) gives each of them one"
            )
        identity = self.checkpoint.identity
        of_main = self.group.broadcast(identity, self.device)
        if any(self.group.any(identity != of_main)):
            raise RanksError("the processes of this run have different logs or configurations")

    def _pretrain(self, saved: dict[str, Any]) -> TrainedOnLog:
        self.clock.enter("pretraining")
        history, width = self.config.data.max_history, self.config.backbone.hidden
        backbone = build_backbone(self.config.teacher_backbone, history)
        if "trained" in saved:
            return TrainedOnLog.of_state(saved["trained"], backbone)
        training = LogTraining(
            self.split,
            Recommender(backbone, self.split.n_items, width),
            self.config.teacher,
            lambda rng: training_windows(self.split, history, rng),
            self.holdouts.validation(history),
            seed=self.config.seed,
            device=self.device,
        )
        if "teacher" in saved:
            training.restore(saved["teacher"])
        epochs = self.config.teacher.max_epochs
        report = self.clock.reporter(epochs, training.epoch, may_end_early=True)
        for best in self.group.iterate_on_main(training.epochs()):
            report(training.epoch, best)
            self._between_steps(training.epoch, lambda: {"teacher": training.state()})
        state = training.result().state() if self.group.is_main else {}
        return TrainedOnLog.of_state(self.group.broadcast(state, self.device), backbone)

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
        # The teacher's optimizer is most of its state, and is not needed any more.
        trained = teacher.state()

        def state() -> dict[str, Any]:
            return {"trained": trained, "distillation": distillation.state()}

        report = self.clock.reporter(self.config.outer.steps, distillation.done)
        for best in distillation.steps():
            report(distillation.done, best)
            self._between_steps(distillation.done, state)
        final = state()
        self._final_state: State = lambda: final
        self._write_checkpoint(distillation.done, self._final_state)
        # Measuring is the main process's alone: little is left to do.
        self.group.close()
        self.group = self.checkpoint.group = ProcessGroup()
        return Distilled(teacher, distillation.summary, *distillation.result())

    def _evaluate(self, distilled: Distilled) -> Outcome:
        self.clock.enter("evaluating")
        benchmark = Benchmark.prepare(
            self.split,
            self.config,
            self.device,
            on_step=lambda: self._between_steps(self.config.outer.steps, self._final_state),
            holdouts=self.holdouts,
        )
        if "sampled-100" not in benchmark.protocols:
            self._note("too few items for 100 negatives a user: no `sampled-100` figures")
        tested, users = len(benchmark.test.targets), len(self.split.evaluated)
        if tested < users:
            self._note(f"test figures are of {tested:,} of {users:,} users")
        rows = teacher_rows(benchmark, [distilled.teacher]) + popularity_rows(benchmark)
        rows += self._start_rows(benchmark, distilled.start)
        rows += summary_rows(
            benchmark, "TD3 summary", distilled.summary, self.config.mode, RESULT_SEEDS
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
            statistics=self.split.statistics().model_dump(),
            distilled_for=self.config.mode,
            validation={
                "teacher_ndcg@10": distilled.teacher.validation,
                "summary_ndcg@10": choice["ndcg@10"],
                "outer_step": choice["step"],
            },
            # Seconds differ from run to run; the bundle's bytes must not.
            results=[
                {key: value for key, value in row.items() if key != "train_seconds"} for row in rows
            ],
            numbers_stored={"learned": summary.numbers_learned, "V": summary.V.numel()},
        )

    def _start_rows(self, benchmark: Benchmark, start: TuckerSummary) -> list[Row]:
        """What distilling has to beat; a start on which learners diverge spoils no job."""
        try:
            return summary_rows(benchmark, "initial summary", start, self.config.mode, RESULT_SEEDS)
        except DivergedError as error:
            self._note(f"no figures of the summary at initialisation: {error}")
            return []

    def _note(self, message: str) -> None:
        self.control.listener(Note(message))

    def _between_steps(self, step: int, state: State) -> None:
        """Write a checkpoint where one is due, and stop where somebody says so."""
        due = self.group.is_main and self.checkpoint.is_due
        stop, due = self.group.any(self.control.stop(), due)
        if stop or due:
            self._write_checkpoint(step, state)
        if stop:
            raise Interrupted(f"stopped in phase {self.clock.phase} at step {step}")

    def _write_checkpoint(self, step: int, state: State) -> None:
        phase = self.clock.phase
        self.checkpoint.write(
            state, self.clock.update, lambda path: self.control.checkpointed(path, phase, step)
        )


def _refuse_nothing_to_train_on(data: Split) -> None:
    """LogError `too_little_data` where nobody has two events that are not held out."""
    if (data.training_ends - data.offsets[:-1]).max() < 2:
        raise LogError(
            "too_little_data",
            "there is nothing to train on: with the last two events of each user held out, no "
            "user has two events left",
        )
