"""The settings of what is made of a log: its filter, a model, and the training of the teacher.

Imports no torch. Section numbers refer to docs/method.md.
"""

import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    FiniteFloat,
    StrictBool,
    StrictInt,
    model_validator,
)

from td3engine.config import by_log
from td3engine.config.limits import (
    NonNegativeFloat,
    Part,
    PositiveFloat,
    PositiveInt,
    Probability,
    Share,
)

# Each module in this folder is a backbone of its name. Listing them imports none, so no torch.
_BACKBONE_FOLDER = Path(__file__).parents[1] / "models" / "backbones"
BACKBONES: tuple[str, ...] = tuple(
    sorted(module.name for module in pkgutil.iter_modules([str(_BACKBONE_FOLDER)]))
)
if TYPE_CHECKING:
    BackboneName = str
else:
    BackboneName = Literal[BACKBONES]
Duplicates = Literal["auto", "drop", "keep"]
MissingIds = Literal["keep", "drop"]
Repeats = Literal["keep", "first"]
Ties = Literal["file", "random", "item"]
ValidationProtocol = Literal["all", "unseen"]
# What releases without these settings computed with; their manifests and models lack them.
EARLIER_DROPOUT = 0.2  # of learners and teachers alike
EARLIER_DATA: dict[str, Any] = {"duplicates": "keep", "validate_by": "unseen"}
DUPLICATES_FROM = 0.1  # share of exact duplicates, from which on `auto` takes a log for faulty


def _renamed(protocol: object) -> object:
    """`unseen` for what an earlier release called `full`."""
    return "unseen" if protocol == "full" else protocol


class DataConfig(Part):
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


class BackboneConfig(Part):
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


class TeacherConfig(Part):
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
