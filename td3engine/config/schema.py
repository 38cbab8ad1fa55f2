"""All settings of a distillation, with their defaults and limits. Imports no torch.

The API validates job requests with these models, the engine runs on them, and the manifest of a
summary holds them.
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from td3engine.config import sizes
from td3engine.config.limits import Part
from td3engine.config.of_log import BackboneConfig, DataConfig, TeacherConfig
from td3engine.config.of_summary import Budget, LearnerConfig, Mode, OuterConfig, SummaryConfig
from td3engine.config.retired import RetiredSetting, drop_retired

Preset = Literal["fast", "balanced", "quality", "auto"]
Device = Literal["auto", "cpu", "cuda"]
AutoKnob = Literal[
    "summary.users",
    "summary.length",
    "summary.table_step",
    "learner.batch",
    "outer.steps",
    "teacher.batch",
    "teacher.max_epochs",
]
AUTO_KNOBS: tuple[AutoKnob, ...] = get_args(AutoKnob)


class DistillConfig(Part):
    """All that decides what a distillation does; with the log it fixes the summary's bytes."""

    auto: tuple[AutoKnob, ...] = Field(
        default=(),
        description="Knobs that the run sets by the log's statistics, in place of what stands "
        "here; preset `auto` lists all that a request does not give itself.",
    )
    budget: Budget | None = Field(
        default=None,
        description="Sets the `auto` knobs among `summary.users`, `summary.table_step` and "
        f"`outer.steps`. Without one: at most {sizes.MOST_USERS} sequences, and at most "
        f"{sizes.LARGEST_SHARE:.0%} of the log's own normalised Parquet.",
    )
    mode: Mode = Field(
        default="shared-items",
        description="The learners that the summary is distilled for: they share the teacher's item "
        "table, or train one from scratch.",
    )
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    teacher: TeacherConfig = TeacherConfig()
    summary: SummaryConfig = SummaryConfig()
    learner: LearnerConfig = LearnerConfig()
    outer: OuterConfig = OuterConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: Device = "auto"
    threads: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0,
        description="CPU threads of torch; 0: as many as there are cores (torch's own choice, "
        "OMP_NUM_THREADS), or as the container may use. Another number gives other bytes. On a "
        "machine that computes other things as well, 1 is much the fastest.",
    )
    ignored: tuple[RetiredSetting, ...] = Field(
        default=(),
        description="Settings of earlier releases that the request named; they have no effect.",
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_retired(cls, settings: Any) -> Any:
        return drop_retired(settings) if isinstance(settings, dict) else settings

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.summary.inputs == "items" and self.learner.loss == "cross-entropy":
            raise ValueError(
                "summary.inputs 'items' has labels that are compared by scores: learner.loss "
                "'cross-entropy' needs summary.inputs 'soft'"
            )
        if self.mode == "from-scratch":
            self._window_fits("scratch_steps", self.learner.scratch_steps)
        if self.mode == "shared-items" or self.outer.shared_steps:
            self._window_fits("steps", self.learner.steps)
        steps_are_given = "outer.steps" not in self.auto
        shared = self.outer.shared_steps
        too_many = steps_are_given and shared > 0 and shared >= self.outer.steps
        if self.mode == "from-scratch" and too_many:
            raise ValueError(
                f"outer.shared_steps ({self.outer.shared_steps}) must be less than outer.steps "
                f"({self.outer.steps})"
            )
        if self.mode == "from-scratch" and self.outer.start == "teacher":
            raise ValueError(
                "outer.start 'teacher' gives a learner weights that fit the teacher's item table, "
                "which a learner from scratch does not have"
            )
        length_is_given = "summary.length" not in self.auto
        if length_is_given and self.learner_history > self.data.max_history:
            raise ValueError(
                f"summary.length ({self.summary.length}) must not exceed data.max_history + 1 "
                f"({self.data.max_history + 1}): there is no position for more"
            )
        return self

    def _window_fits(self, knob: str, steps: int) -> None:
        if self.outer.window > steps:
            raise ValueError(
                f"outer.window ({self.outer.window}) must not exceed learner.{knob} ({steps})"
            )

    @property
    def teacher_backbone(self) -> BackboneConfig:
        """The backbone as the teacher trains it."""
        own = self.teacher.dropout
        return self.backbone if own is None else self.backbone.model_copy(update={"dropout": own})

    @property
    def learner_backbone(self) -> BackboneConfig:
        """The backbone as learners on a summary train it."""
        return self.backbone.model_copy(update={"dropout": self.learner.dropout})

    @property
    def learner_history(self) -> int:
        """Longest history a learner reads: zeta synthetic positions train zeta - 1 predictions."""
        return self.summary.length - 1
