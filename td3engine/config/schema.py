"""The settings of a distillation, with their defaults and limits. Imports no torch.

The API validates job requests with these models, the engine runs on them, and the manifest of a
summary holds them. Section numbers refer to docs/method.md.
"""

import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictBool,
    StrictInt,
    model_validator,
)

from td3engine.config import by_log, sizes
from td3engine.config.retired import RetiredSetting, drop_retired

Preset = Literal["fast", "balanced", "quality", "auto"]
# Each module in this folder is a backbone of its name. Listing them imports none, so no torch.
_BACKBONE_FOLDER = Path(__file__).parents[1] / "models" / "backbones"
BACKBONES: tuple[str, ...] = tuple(
    sorted(module.name for module in pkgutil.iter_modules([str(_BACKBONE_FOLDER)]))
)
if TYPE_CHECKING:
    BackboneName = str
else:
    BackboneName = Literal[BACKBONES]
Mode = Literal["shared-items", "from-scratch"]
MODES: tuple[Mode, ...] = ("shared-items", "from-scratch")
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
# The bound keeps a typing error from becoming an allocation. It is far above any useful value.
PositiveInt = Annotated[int, Field(gt=0, le=1_000_000)]
Device = Literal["auto", "cpu", "cuda"]
Duplicates = Literal["auto", "drop", "keep"]
LearnerLossName = Literal["scores", "cross-entropy"]
MissingIds = Literal["keep", "drop"]
Repeats = Literal["keep", "first"]
Ties = Literal["file", "random", "item"]
ValidationProtocol = Literal["all", "unseen"]
# What releases without these settings computed with; their manifests and models lack them.
EARLIER_DROPOUT = 0.2  # of learners and teachers alike
EARLIER_DATA: dict[str, Any] = {"duplicates": "keep", "validate_by": "unseen"}
DUPLICATES_FROM = 0.1  # share of exact duplicates, from which on `auto` takes a log for faulty
Step = Annotated[float, Field(ge=0, le=2)]
Rank = Annotated[int, Field(gt=0, le=256)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _renamed(protocol: object) -> object:
    """`unseen` for what an earlier release called `full`."""
    return "unseen" if protocol == "full" else protocol


class DataConfig(_Part):
    """How the log is filtered and cut (section 1)."""

    min_user_interactions: PositiveInt = 5
    min_item_interactions: PositiveInt = 5
    iterative_core: bool = Field(
        default=False, description="Repeat the filter until nothing changes (k-core)."
    )
    max_history: Annotated[int, Field(ge=3, le=1000)] = Field(
        default=50, description="L: longest history a model reads."
    )
    validation_users: PositiveInt = Field(
        default=5000,
        description="Most users of the validation set, drawn once for a log.",
    )
    test_users: PositiveInt = Field(
        default=25_000, description="Most users of the test set, drawn once for a log."
    )
    duplicates: Duplicates = Field(
        default="auto",
        description="Rows of one user, item and time: `drop` all but the first, before the filter "
        "counts, or `keep` each as an event of its own. `auto` drops them where they are at least "
        f"{DUPLICATES_FROM:.0%} of the rows: some join or export wrote rows twice.",
    )
    missing_ids: MissingIds = Field(
        default="keep",
        description="Rows whose user or item id looks like a missing value (`NA`, `null`, `nan`, "
        "`unknown` and their kin, in any case): `keep` them, or `drop` them before the filter.",
    )
    repeats: Repeats = Field(
        default="keep",
        description="`first` keeps each user's first event of an item only, before the filter "
        "counts: for those who recommend new items only.",
    )
    ties: Ties = Field(
        default="file",
        description="Order of a user's events at one time: that of the file, one `random` order, "
        "or by `item` id.",
    )
    validate_by: Annotated[Literal["auto", ValidationProtocol], BeforeValidator(_renamed)] = Field(
        default="auto",
        description="Protocol of the validation NDCG@10 that checkpoints are chosen by. `auto`: "
        f"`all` if at least {by_log.REPEATS_FROM:.0%} of a log's training and validation events "
        "repeat an item of their user, else `unseen`. The manifest says which it was.",
    )


class BackboneConfig(_Part):
    """The recommender that is the teacher and the learner."""

    name: BackboneName = "sasrec"
    hidden: Annotated[int, Field(ge=4, le=1024)] = Field(
        default=32, description="d: width of item embeddings and hidden states."
    )
    layers: Annotated[int, Field(ge=1, le=16)] = 1
    heads: Annotated[int, Field(ge=1, le=16)] = Field(
        default=1, description="Attention heads, of SASRec and BERT4Rec."
    )
    inner: Annotated[int, Field(ge=4, le=8192)] = Field(
        default=64, description="Width of the feed-forward layer, or of the GRU."
    )
    dropout: Probability = Field(
        default=0.2,
        description="Of models that train on the log: the teacher, unless `teacher.dropout` is "
        "given, and baselines on real users. Learners on a summary have `learner.dropout`.",
    )
    options: dict[str, StrictBool | StrictInt | FiniteFloat | str] = Field(
        default={},
        description="Settings that only this backbone has; checked by its own file when a run "
        "starts.",
    )

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
    beta2: Probability = Field(default=0.999, description="Decay of Adam's second moment.")
    dropout: Probability | None = Field(
        default=None, description="While the teacher trains; by default `backbone.dropout`."
    )
    patience: PositiveInt = Field(
        default=5, description="Validations without a better NDCG@10 before training stops."
    )
    validate_every: PositiveInt = Field(default=2, description="Epochs between validations.")
    softmax: by_log.Softmax = Field(
        default="auto",
        description="Items that a target competes with in training: all, or a sample; `auto` "
        f"samples from {by_log.SAMPLED_FROM:,} items on. The manifest says which it was.",
    )
    negatives: PositiveInt = Field(
        default=1024, description="M: items drawn for a step of a sampled softmax."
    )
    counting_share: Literal["auto"] | Share = Field(
        default="auto",
        description="How much of each target is what counting models expect next, the rest being "
        f"the next item. `auto`: {by_log.COUNTING_SHARE} where items have fewer than "
        f"{by_log.SPARSE_BELOW} training events on average, and fewer than "
        f"{by_log.REPEATS_FROM:.0%} repeat; else 0. A sampled softmax has none of it. The manifest "
        "says which it was.",
    )
    ease_items: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=10_000,
        description="EASE is one of the counting models where the log has no more items: its time "
        "grows with their third power (seconds at 3,000), its memory with the second.",
    )


class SummaryConfig(_Part):
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


class LearnerConfig(_Part):
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


class OuterConfig(_Part):
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


class Budget(_Part):
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


class DistillConfig(_Part):
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
