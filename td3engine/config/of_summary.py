"""The settings of a summary: its size, its learners, and how it is distilled.

Imports no torch. Section numbers refer to docs/method.md.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from td3engine.config import by_log
from td3engine.config.limits import (
    NonNegativeFloat,
    Part,
    PositiveFloat,
    PositiveInt,
    Probability,
    Share,
)

Mode = Literal["shared-items", "from-scratch"]
MODES: tuple[Mode, ...] = ("shared-items", "from-scratch")
LearnerLossName = Literal["scores", "cross-entropy"]
Step = Annotated[float, Field(ge=0, le=2)]
Rank = Annotated[int, Field(gt=0, le=256)]


class SummaryConfig(Part):
    """Size of the Tucker-factored summary (section 3)."""

    users: Annotated[int, Field(ge=1, le=10_000)] = Field(default=30, description="mu")
    length: Annotated[int, Field(ge=4, le=1000)] = Field(default=50, description="zeta")
    inputs: Literal["items", "soft"] = Field(
        default="items",
        description="What learners read: `items`, the events of real histories, each with a label "
        "of its own; or `soft`, as in the paper, distributions over items in Tucker form.",
    )
    user_rank: Rank = Field(default=16, description="d1, of soft inputs")
    time_rank: Rank = Field(default=16, description="d2, of soft inputs")
    targets: Literal["own", "next"] = Field(
        default="own",
        description="Targets of learners on soft inputs: distributions of their own (a temporal "
        "factor Y), or, as in the paper, the next input.",
    )
    start: Literal["users", "random"] = Field(
        default="users",
        description="Soft inputs before distilling: histories of some users, as near as the ranks "
        "allow, or noise.",
    )
    sharpness: Annotated[float, Field(ge=-20, le=20)] = Field(
        default=1.5,
        description="With start `users`: how far, in nats, the weight of an event's item exceeds "
        "that of all other items together.",
    )
    initial_std: PositiveFloat = Field(
        default=0.5, description="Standard deviation of U and T before distilling."
    )
    table_step: Step = Field(
        default=0.2,
        description="The item table is rounded to multiples of about this share of its standard "
        "deviation, before anything is labelled or distilled; 0: to none.",
    )
    label_step: Step = Field(
        default=0.25,
        description="The same of labels, whenever a summary is validated and at the end; factors "
        "of soft inputs go to half precision. 0: neither.",
    )


class LearnerConfig(Part):
    """The inner loop: how a learner trains on the summary (section 4)."""

    steps: Annotated[int, Field(ge=2, le=100_000)] = Field(default=1600, description="T_inner")
    scratch_steps: Annotated[int, Field(ge=2, le=100_000)] = Field(
        default=2000, description="Steps of a learner that trains an item table of its own."
    )
    batch: PositiveInt = Field(default=25, description="mu_b: synthetic sequences a step.")
    loss: LearnerLossName = Field(
        default="scores",
        description="How a learner is held to a target: by the squared distance of its scores to "
        "the target's, over all items; or, as in the paper, by the cross-entropy of the two "
        "distributions.",
    )
    dropout: Probability = Field(
        default=0.0,
        description="Of learners on a summary. Targets say more than one item each, and dropout "
        "costs more than it saves.",
    )
    lr: PositiveFloat = 0.02
    schedule: Literal["constant", "linear"] = Field(
        default="linear", description="Learning rate over a learner's steps; linear ends at zero."
    )
    weight_decay: NonNegativeFloat = 5e-5
    beta2: Probability = Field(
        default=0.95,
        description="Decay of Adam's second moment; the paper's scripts have 0.999, which is long "
        "for a few hundred steps.",
    )
    objective: Literal["all-positions", "last-and-augmented"] = Field(
        default="all-positions",
        description="Targets of a step: every position, or the last and some random ones.",
    )
    augmented: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=8,
        description="Random positions a sequence, under last-and-augmented; each counts as much as "
        "the last (1 is the paper's augmentation, 0 does without).",
    )

    def steps_in(self, mode: Mode) -> int:
        """Steps of a learner in this mode."""
        return self.steps if mode == "shared-items" else self.scratch_steps


class OuterConfig(Part):
    """The outer loop: how the summary is trained (section 5)."""

    steps: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=150, description="0: the summary is its start, not distilled."
    )
    shared_steps: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=0,
        description="Of these steps the first ones, when distilling for `from-scratch`, that "
        "distil for `shared-items`: a cheap start where `summary.start` is random.",
    )
    window: PositiveInt = Field(default=40, description="W: inner steps that are differentiated.")
    recompute: bool = Field(
        default=False,
        description="Re-compute each inner step's graph on the way back instead of keeping it: "
        "memory no longer grows with the window, time does.",
    )
    cuda_graphs: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Record a learner's inner steps and real batches as CUDA graphs and replay "
        "them, for backbones with an analytic gradient and a full softmax. `auto` is off: this has "
        "been tested on a CPU only and has never run on a GPU.",
    )
    lr: PositiveFloat = Field(default=0.03, description="Rate of outer steps.")
    scratch_lr: PositiveFloat | None = Field(
        default=None,
        description="Rate of outer steps that distil for `from-scratch`; by default `outer.lr`.",
    )
    weight_decay: NonNegativeFloat = 1e-4
    normalise: bool = Field(
        default=True,
        description="Scale each step's gradient to norm 1, so that windows late in a learner's "
        "training, whose gradients are small, count as much as early ones; else clip it.",
    )
    clip: PositiveFloat = Field(
        default=1.0, description="Largest global norm of a gradient that is not normalised."
    )
    feature_weight: NonNegativeFloat = Field(
        default=30.0,
        description="lambda: weight of the feature alignment with the teacher, for `shared-items`; "
        "from scratch `teacher_share` takes its place.",
    )
    teacher_share: Share = Field(
        default=1.0,
        description="From scratch: how much of a real target is the teacher's distribution over "
        "all items, the rest being the next item. Ignored under `among: unseen`.",
    )
    among: Literal["all", "unseen"] = Field(
        default="all",
        description="Items that a real target competes with: all, or those that its user has not "
        "had before, as in the measurement.",
    )
    softmax: by_log.Softmax = Field(
        default="auto",
        description="Items that targets compete with while distilling for `shared-items`, in "
        "learners' training and in the real batch: all, or a sample besides those that the summary "
        f"points at; `auto` samples from {by_log.OUTER_SAMPLED_FROM:,} items on. Learners that "
        "are measured at the end train over all.",
    )
    negatives: PositiveInt = Field(
        default=4096, description="Items drawn for an outer step with a sampled softmax."
    )
    support: Literal["auto", "all"] | Annotated[int, Field(ge=1)] = Field(
        default="auto",
        description="Items that a synthetic position meets one by one while distilling for "
        "`shared-items`: all, or about so many, the others by cells of like items. `auto`: "
        f"{by_log.SUPPORT:,} from {by_log.SUPPORT_FROM:,} items on, and all on a GPU. Learners "
        "that are measured read all.",
    )
    batch: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=128, description="Real user windows an outer step."
    )
    learners: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1,
        description="Learners unrolled an outer step, each on a real batch of its own; their "
        "gradients are averaged.",
    )
    pool: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5,
        description="Learners of different ages kept at once, for each of a step's learners.",
    )
    start: Literal["scratch", "teacher"] = Field(
        default="scratch",
        description="Fresh encoder weights, or a checkpoint of the teacher's early training.",
    )
    validate_every: PositiveInt = Field(
        default=25, description="Outer steps between two measurements on validation."
    )
    validation_learners: PositiveInt = Field(
        default=3, description="Learners trained for each of those measurements."
    )

    def lr_in(self, mode: Mode) -> float:
        """Rate of the outer steps that distil for this mode."""
        return self.lr if mode == "shared-items" or not self.scratch_lr else self.scratch_lr


class Budget(Part):
    """How large a summary may be, or how long its making may take: one of the three."""

    sequences: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None, description="Synthetic sequences: `summary.users`."
    )
    bytes: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Of the whole bundle: as many sequences as fit, and a coarser item table where "
        "there would be few.",
    )
    seconds: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Of distilling, on one core of the benchmarks' machine: `outer.steps`. The "
        "rule is the same everywhere, the time is not.",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if sum(value is not None for value in (self.sequences, self.bytes, self.seconds)) != 1:
            raise ValueError("give one of sequences, bytes and seconds")
        return self
