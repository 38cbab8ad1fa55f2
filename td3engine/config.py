"""What a distillation can be told: every knob, its default, its limits. Imports no torch.

The API validates job requests with these models, the engine runs on them, and the manifest of a
summary carries them, so a summary always says how it was made. Section numbers refer to the method
(docs/method.md).
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Preset = Literal["fast", "balanced", "quality"]
Mode = Literal["shared-items", "from-scratch"]
MODES: tuple[Mode, ...] = ("shared-items", "from-scratch")
# The bound only keeps a slip of the keyboard from becoming an allocation; none of these knobs has a
# use anywhere near it.
PositiveInt = Annotated[int, Field(gt=0, le=1_000_000)]
Rank = Annotated[int, Field(gt=0, le=256)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Part):
    """How the log is filtered and cut (section 1)."""

    min_user_interactions: PositiveInt = 5
    min_item_interactions: PositiveInt = 5
    iterative_core: bool = Field(
        default=False, description="Repeat the filter until nothing changes (k-core)."
    )
    max_history: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=50, description="L: longest history a model reads."
    )


class BackboneConfig(_Part):
    """The recommender that is the teacher and the learner."""

    name: Literal["sasrec"] = "sasrec"
    hidden: Annotated[int, Field(ge=4, le=1024)] = Field(
        default=32, description="d: width of item embeddings and hidden states."
    )
    layers: Annotated[int, Field(ge=1, le=16)] = 1
    heads: Annotated[int, Field(ge=1, le=16)] = 1
    inner: Annotated[int, Field(ge=4, le=8192)] = Field(
        default=64, description="Width of the feed-forward layer."
    )
    dropout: Probability = 0.2

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


class TeacherConfig(_Part):
    """Training of the full-data model, whose item table becomes V."""

    max_epochs: PositiveInt = 200
    batch: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=64, description="User windows a step."
    )
    lr: PositiveFloat = 0.003
    weight_decay: NonNegativeFloat = 0.0
    patience: PositiveInt = Field(
        default=5, description="Validations without a better NDCG@10 before training stops."
    )
    validate_every: PositiveInt = Field(default=2, description="Epochs between validations.")


class SummaryConfig(_Part):
    """Size of the Tucker-factored summary (section 2)."""

    users: Annotated[int, Field(ge=1, le=10_000)] = Field(default=30, description="mu")
    length: Annotated[int, Field(ge=4, le=1000)] = Field(default=50, description="zeta")
    user_rank: Rank = Field(default=8, description="d1")
    time_rank: Rank = Field(default=8, description="d2")
    initial_std: PositiveFloat = Field(
        default=0.5, description="Standard deviation of U and T before distilling."
    )


class LearnerConfig(_Part):
    """The inner loop: how a learner trains on the summary (section 4)."""

    steps: Annotated[int, Field(ge=2, le=100_000)] = Field(default=100, description="T_inner")
    scratch_steps: Annotated[int, Field(ge=2, le=100_000)] = Field(
        default=300, description="Steps of a learner that trains an item table of its own."
    )
    batch: PositiveInt = Field(default=15, description="mu_b: synthetic sequences a step.")
    lr: PositiveFloat = 0.01
    schedule: Literal["constant", "linear"] = Field(
        default="linear", description="Learning rate over a learner's steps; linear ends at zero."
    )
    weight_decay: NonNegativeFloat = 5e-5
    objective: Literal["all-positions", "last-and-augmented"] = Field(
        default="last-and-augmented",
        description="Targets of a step: every position, or the last and some random ones.",
    )
    augmented: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=8,
        description="Random positions a sequence, under last-and-augmented; each counts as much as "
        "the last (1 is the paper's augmentation).",
    )


class OuterConfig(_Part):
    """The outer loop: how the summary is trained (section 5)."""

    steps: PositiveInt = 200
    window: PositiveInt = Field(default=20, description="W: inner steps that are differentiated.")
    recompute: bool = Field(
        default=False,
        description="Re-compute each inner step's graph on the way back instead of keeping it: "
        "memory no longer grows with the window, time does.",
    )
    lr: PositiveFloat = 0.02
    weight_decay: NonNegativeFloat = 1e-4
    clip: PositiveFloat = Field(default=1.0, description="Largest global norm of the gradient.")
    feature_weight: NonNegativeFloat = Field(
        default=1.0, description="lambda: weight of the feature alignment with the teacher."
    )
    batch: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=128, description="Real user windows an outer step."
    )
    pool: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="Learners of different ages kept at once."
    )
    start: Literal["scratch", "teacher"] = Field(
        default="scratch",
        description="Fresh encoder weights, or a checkpoint of the teacher's early training.",
    )
    validate_every: PositiveInt = Field(
        default=25, description="Outer steps between two measurements on validation."
    )
    validation_learners: PositiveInt = Field(
        default=2, description="Learners trained for each of those measurements."
    )


class DistillConfig(_Part):
    """All that decides what a distillation does; with the log it fixes the summary's bytes."""

    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    teacher: TeacherConfig = TeacherConfig()
    summary: SummaryConfig = SummaryConfig()
    learner: LearnerConfig = LearnerConfig()
    outer: OuterConfig = OuterConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0, description="CPU threads of torch; 0 leaves torch's own choice."
    )

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.outer.window > self.learner.steps:
            raise ValueError(
                f"outer.window ({self.outer.window}) must not exceed "
                f"learner.steps ({self.learner.steps})"
            )
        if self.learner_history > self.data.max_history:
            raise ValueError(
                f"summary.length ({self.summary.length}) must not exceed data.max_history + 1 "
                f"({self.data.max_history + 1}): there is no position for more"
            )
        return self

    @property
    def learner_history(self) -> int:
        """Longest history a learner reads: zeta synthetic positions train zeta - 1 predictions."""
        return self.summary.length - 1


PRESETS: dict[Preset, dict[str, Any]] = {
    "fast": {"outer": {"steps": 80, "lr": 0.03, "validate_every": 20}},
    "balanced": {},
    "quality": {"outer": {"steps": 600, "validation_learners": 3}},
}


def build_config(
    preset: Preset = "balanced", overrides: dict[str, Any] | None = None
) -> DistillConfig:
    """Preset with overrides (nested dictionaries) laid over it.

    Raises:
        pydantic.ValidationError: an unknown key or a value outside its limits, with its path.
    """
    return DistillConfig.model_validate(merge(PRESETS[preset], overrides or {}))


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, dictionaries merged key by key; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
        )
    return merged
