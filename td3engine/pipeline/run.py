"""A whole distillation: log in, summary out, with progress, checkpoints and a way to stop.

What the command `td3 distill` and the worker's child process share.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from td3engine.config import Device, DistillConfig, softmax_over
from td3engine.config.presets import sized_by_data
from td3engine.config.retired import retired_note
from td3engine.data.split import Split, split
from td3engine.data.types import Interactions, LogError
from td3engine.data.windows import training_windows
from td3engine.errors import (
    CheckpointMismatchError,
    DeviceError,
    DivergedError,
    Interrupted,
    RanksError,
)
from td3engine.evaluation.baselines import popularity_rows, summary_rows, teacher_rows
from td3engine.evaluation.benchmark import Benchmark
from td3engine.evaluation.table import Row
from td3engine.events import Listener, Note, Phase, PhaseStarted, Progress
from td3engine.inner_loop.plan import plans_of
from td3engine.models.recommender import Recommender
from td3engine.models.registry import build_backbone
from td3engine.outer_loop.distillation import Distillation
from td3engine.ranking.holdout import holdout_set
from td3engine.runtime.distributed import ProcessGroup
from td3engine.runtime.torch_setup import configure, cpu_contention
from td3engine.summary.bundle import Manifest, save_bundle
from td3engine.summary.tucker import Summary
from td3engine.teacher.training import LogTraining, Trained

CHECKPOINT_FILE = "checkpoint.pt"
RESULT_SEEDS = (1, 2, 3)  # learners behind the figures that a manifest carries
CHECKPOINT_SHARE = 0.01  # of the running time, at most, goes into checkpoints


@dataclass(frozen=True)
class Control:
    """How a run is watched and stopped.

    Attributes:
        listener: told of every event.
        stop: asked between steps; True ends the run after a checkpoint.
        checkpointed: told the path after each checkpoint, with phase and step.
        checkpoint_seconds: least time between two checkpoints; where one takes long to write it
            is more, so that no more than `CHECKPOINT_SHARE` of the time is spent on them. Zero:
            one after each step, whatever it costs.
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
        chosen: {"ndcg@10", "step"} of that choice.
    """

    teacher: Trained
    start: Summary
    summary: Summary
    chosen: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What a run made: the manifest, its rows with seconds, and seconds by phase."""

    manifest: Manifest
    rows: list[Row]
    seconds: dict[str, float]


def pick_device(asked: Device = "auto") -> torch.device:
    """The device that is asked for; `auto` is CUDA where there is one.

    A summary's own `config.device` says where it was made, and asks nothing of its users.

    Raises:
        DeviceError: `cuda` is asked for and absent.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device 'cuda' is asked for, but torch finds none here")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(automatic if asked == "auto" else asked)


def split_log(log: Interactions, config: DistillConfig) -> Split:
    """Filter and split as configured (LogError `too_little_data` if nothing is left)."""
    return split(
        log,
        min_user_interactions=config.data.min_user_interactions,
        min_item_interactions=config.data.min_item_interactions,
        iterative_core=config.data.iterative_core,
    )


def _refuse_nothing_to_train_on(data: Split) -> None:
    """LogError `too_little_data` where nobody has two events that are not held out."""
    if (data.training_ends - data.offsets[:-1]).max() < 2:
        raise LogError(
            "too_little_data",
            "there is nothing to train on: with the last two events of each user held out, no "
            "user has two events left",
        )


class Run:
    """One distillation of one log in one folder, by one process or by several together."""

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
        # As it was asked for: `auto` is settled by the log, and a resumed run is told the same.
        self.identity = {"fingerprint": fingerprint, "config": config.model_dump_json()}
        self.folder, self.control, self.group = folder, control, group or ProcessGroup()
        self.device = pick_device(config.device)
        self.backbone = build_backbone(config.backbone, config.data.max_history)
        self.seconds: dict[str, float] = {}
        self._phase: Phase = "preparing"
        self._phase_began = time.perf_counter()
        self._last_checkpoint = time.monotonic()
        self._checkpoint_took = 0.0
        self._state: Callable[[], dict[str, Any]] = dict

    def run(self) -> Outcome:
        """Distil, measure, write the bundle into the folder: all of it, or as the leader.

        Raises:
            LogError: too little is left of the log after the filter.
            CheckpointMismatchError: the folder's checkpoint is of another run.
            RanksError: the processes cannot distil together.
            PeerLostError: another process has failed.
            Interrupted: `control.stop` said so, here or in another process; a checkpoint has been
                written.
        """
        return self._evaluate(self._distilled())

    def assist(self) -> None:
        """Help the leader of several processes to distil; raises what `run` does."""
        self._distilled()

    def _distilled(self) -> Distilled:
        configure(self.device)
        self._refuse_unlike_ranks()
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self._enter("preparing")
        for setting in self.config.ignored:
            self.control.listener(Note(retired_note(setting)))
        if self.device.type == "cpu" and (why := cpu_contention()):
            self.control.listener(Note(why))
        if self.group.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
        kept = self._read_checkpoint()
        self.seconds = dict(kept.get("seconds", {}))
        self.split = split_log(self.log, self.config)
        _refuse_nothing_to_train_on(self.split)
        statistics = self.split.statistics()
        self.config = sized_by_data(
            self.config,
            users=statistics.users,
            interactions=statistics.interactions,
            training_interactions=statistics.training_interactions,
        )
        self._settle_softmax()
        return self._distil(self._pretrain(kept), kept)

    def _settle_softmax(self) -> None:
        """Settle what targets compete with, as the manifest says it; report what is ignored."""
        items, config = self.split.n_items, self.config
        plans = plans_of(config, self.backbone, items, self.device).values()
        sampled = any(plan.softmax == "sampled" for plan in plans)
        settled: dict[str, Literal["full", "sampled"]] = {
            "teacher": softmax_over(items, config.teacher.softmax),
            "outer": "sampled" if sampled else "full",
        }
        for part, softmax in settled.items():
            section = getattr(config, part).model_copy(update={"softmax": softmax})
            self.config = self.config.model_copy(update={part: section})
            if softmax == "sampled":
                drawn = f"{section.negatives:,} of {items:,} items"
                self.control.listener(Note(f"{part}: a sampled softmax, {drawn} a step"))
        for note in dict.fromkeys(note for plan in plans for note in plan.notes):
            self.control.listener(Note(note))

    def _refuse_unlike_ranks(self) -> None:
        learners = self.config.outer.learners
        if self.group.size > learners:
            raise RanksError(
                f"{self.group.size} processes cannot share outer.learners = {learners}: "
                f"--set outer.learners={self.group.size} (or more) gives each of them one"
            )
        leaders = self.group.broadcast(self.identity, self.device)
        if any(self.group.any(self.identity != leaders)):
            raise RanksError("the processes of this run have different logs or configurations")

    def _pretrain(self, kept: dict[str, Any]) -> Trained:
        self._enter("pretraining")
        if "trained" in kept:
            return Trained(**kept["trained"])
        history, width = self.config.data.max_history, self.config.backbone.hidden
        backbone = build_backbone(self.config.teacher_backbone, history)
        training = LogTraining(
            self.split,
            Recommender(backbone, self.split.n_items, width),
            self.config.teacher,
            lambda rng: training_windows(self.split, history, rng),
            holdout_set(self.split, "validation", history, self.config.data.validation_users),
            seed=self.config.seed,
            device=self.device,
        )
        if "teacher" in kept:
            training.restore(kept["teacher"])
        pace = self._pace(self.config.teacher.max_epochs, training.epoch, may_end_early=True)
        for best in self.group.iterate_on_main(training.epochs()):
            pace(training.epoch, best)
            self._between_steps(training.epoch, lambda: {"teacher": training.state()})
        result = vars(training.result()) if self.group.is_main else {}
        return Trained(**self.group.broadcast(result, self.device))

    def _distil(self, teacher: Trained, kept: dict[str, Any]) -> Distilled:
        self._enter("distilling")
        distillation = Distillation(
            self.split,
            self.config,
            self.backbone,
            teacher,
            holdout_set(
                self.split,
                "validation",
                self.config.learner_history,
                self.config.data.validation_users,
            ),
            self.device,
            self.group,
        )
        if "distillation" in kept:
            distillation.restore(kept["distillation"])
        pace = self._pace(self.config.outer.steps, distillation.done)

        # The teacher's optimizer is not needed any more, which is most of its state.
        trained = vars(teacher)
        for best in distillation.steps():
            pace(distillation.done, best)
            self._between_steps(
                distillation.done,
                lambda: {"trained": trained, "distillation": distillation.state()},
            )
        final = {"trained": trained, "distillation": distillation.state()}
        self._state = lambda: final
        self._write_checkpoint(distillation.done, self._state)
        # What is left is little: the leader's alone.
        self.group.close()
        self.group = ProcessGroup()
        return Distilled(teacher, distillation.summary, *distillation.result())

    def _evaluate(self, distilled: Distilled) -> Outcome:
        self._enter("evaluating")
        benchmark = Benchmark.prepare(
            self.split,
            self.config,
            self.device,
            on_step=lambda: self._between_steps(self.config.outer.steps, self._state),
        )
        if "sampled-100" not in benchmark.protocols:
            self.control.listener(
                Note("too few items for 100 negatives a user: no `sampled-100` figures")
            )
        asked, users = len(benchmark.test.targets), len(self.split.evaluated)
        if asked < users:
            self.control.listener(Note(f"test figures are of {asked:,} of {users:,} users"))
        teacher, summary, chosen = distilled.teacher, distilled.summary, distilled.chosen
        rows = teacher_rows(benchmark, [teacher]) + popularity_rows(benchmark)
        rows += self._start_rows(benchmark, distilled.start)
        rows += summary_rows(benchmark, "TD3 summary", summary, self.config.mode, RESULT_SEEDS)
        manifest = save_bundle(
            self.folder,
            summary,
            self.split.item_ids,
            Manifest(
                config=self.config,
                fingerprint=self.fingerprint,
                statistics=self.split.statistics().model_dump(),
                distilled_for=self.config.mode,
                validation={
                    "teacher_ndcg@10": teacher.validation,
                    "summary_ndcg@10": chosen["ndcg@10"],
                    "outer_step": chosen["step"],
                },
                # Seconds differ from run to run; the bundle's bytes must not.
                results=[
                    {key: value for key, value in row.items() if key != "train_seconds"}
                    for row in rows
                ],
                numbers_stored={"learned": summary.numbers_learned, "V": summary.V.numel()},
            ),
        )
        self._leave()
        (self.folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        return Outcome(manifest, rows, self.seconds)

    def _start_rows(self, benchmark: Benchmark, start: Summary) -> list[Row]:
        """What distilling has to beat; a start on which learners diverge spoils no job."""
        try:
            return summary_rows(benchmark, "initial summary", start, self.config.mode, RESULT_SEEDS)
        except DivergedError as error:
            self.control.listener(Note(f"no figures of the summary at initialisation: {error}"))
            return []

    def _enter(self, phase: Phase) -> None:
        self._leave()
        self._phase, self._phase_began = phase, time.perf_counter()
        self.control.listener(PhaseStarted(phase))

    def _leave(self) -> None:
        now = time.perf_counter()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._phase_began
        self._phase_began = now

    def _pace(
        self, total: int, already: int, *, may_end_early: bool = False
    ) -> Callable[[int, float], None]:
        """Reports progress; the time left goes by the steps that this process has seen."""
        began, phase = time.perf_counter(), self._phase

        def report(step: int, best: float) -> None:
            spent = time.perf_counter() - began
            left = None if may_end_early else spent / (step - already) * (total - step)
            # Nothing is known before the first look at validation.
            metrics = {"ndcg@10": best} if best > 0 else {}
            self.control.listener(Progress(phase, step, total, left, metrics))

        return report

    def _between_steps(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        due = self.group.is_main and self._checkpoint_is_due()
        stop, due = self.group.any(self.control.stop(), due)
        if stop or due:
            self._write_checkpoint(step, state)
        if stop:
            raise Interrupted(f"stopped in phase {self._phase} at step {step}")

    def _checkpoint_is_due(self) -> bool:
        least = self.control.checkpoint_seconds
        wait = max(least, self._checkpoint_took / CHECKPOINT_SHARE) if least else 0.0
        return time.monotonic() - self._last_checkpoint >= wait

    def _write_checkpoint(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Write the checkpoint whole or not at all: to another name, synced, then renamed."""
        began = time.monotonic()
        whole = state()  # all processes have a part in it
        if not self.group.is_main:
            return
        self._leave()
        target = self.folder / CHECKPOINT_FILE
        part = target.with_suffix(".part")
        with part.open("wb") as file:
            torch.save({**self.identity, "seconds": self.seconds, **whole}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
        self.control.checkpointed(target, self._phase, step)
        self._last_checkpoint = time.monotonic()
        self._checkpoint_took = self._last_checkpoint - began

    def _read_checkpoint(self) -> dict[str, Any]:
        path = self.folder / CHECKPOINT_FILE
        stored: dict[str, Any] = {}
        if self.group.is_main and path.exists():
            stored = torch.load(path, map_location=self.device, weights_only=True)
        kept: dict[str, Any] = self.group.broadcast(stored, self.device)
        if kept and any(kept[name] != value for name, value in self.identity.items()):
            raise CheckpointMismatchError(f"{path} belongs to another log or configuration")
        return kept
