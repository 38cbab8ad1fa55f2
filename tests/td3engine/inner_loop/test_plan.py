"""The decision table of inner steps, row by row, and what is said of what it ignores."""

from itertools import product
from typing import Any, Literal

import pytest
import torch

from td3engine.config import (
    BACKBONES,
    MODES,
    BackboneName,
    DistillConfig,
    LearnerLossName,
    Mode,
)
from td3engine.inner_loop import plan as module
from td3engine.inner_loop.learner import learn
from td3engine.inner_loop.plan import (
    InnerLoopPlan,
    plan_distillation,
    plan_training,
    plans_of,
)
from td3engine.models.registry import build_backbone
from td3engine.summary.labelled import LabelledSummary
from td3engine.summary.scored_sequences import InputsWithTargets, ItemInputs
from td3engine.summary.soft_sequences import (
    ChunkedQueries,
    DenseProbs,
    Precomputed,
    SparseSupport,
)
from td3engine.summary.tucker import TuckerSummary
from tests.td3engine.small import paper_config, small_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FEW, MANY = 150, 10_000  # items; from 10,000 on `auto` samples, and has a sparse support
POSITIONS = 4 * 8 * 2  # of `small_config`, with targets of their own

# What does not depend on settings: gradient and soft embedding of a distillation, then the latter
# of a summary's user where S is too large to be stored. Only SASRec has an analytic gradient, and
# BERT4Rec trains an item bias in both modes.
BY_AUTOGRAD: dict[Mode, tuple[str, str, str]] = {
    "shared-items": ("autograd", "precomputed", "precomputed"),
    "from-scratch": ("autograd", "dense", "chunked"),
}
STATIC: dict[tuple[BackboneName, Mode], tuple[str, str, str]] = {
    **{(name, mode): BY_AUTOGRAD[mode] for name in BACKBONES for mode in MODES},
    ("sasrec", "shared-items"): ("analytic", "precomputed", "precomputed"),
    ("sasrec", "from-scratch"): ("analytic", "chunked", "chunked"),
    ("bert4rec", "shared-items"): ("autograd", "dense", "chunked"),
}
FIXED_SCORES = {(name, "shared-items") for name in BACKBONES if name != "bert4rec"}
SAMPLED = {("sampled", FEW), ("sampled", MANY), ("auto", MANY)}


# What learners read, and what holds them to targets: the default, and the paper's.
FORMS: list[tuple[Literal["items", "soft"], LearnerLossName]] = [
    ("items", "scores"),
    ("soft", "scores"),
    ("soft", "cross-entropy"),
]


def plan_of(
    name: BackboneName,
    mode: Mode,
    n_items: int,
    device: torch.device = CPU,
    form: tuple[Literal["items", "soft"], LearnerLossName] = FORMS[0],
    **outer: Any,
) -> InnerLoopPlan:
    inputs, loss = form
    config = small_config(
        mode=mode,
        backbone={"name": name},
        outer=outer,
        summary={"inputs": inputs},
        learner={"loss": loss},
    )
    backbone = build_backbone(config.backbone, config.data.max_history)
    return plan_distillation(config, mode, backbone, n_items, device)


@pytest.mark.parametrize("n_items", [FEW, MANY])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("form", FORMS)
def test_every_row_of_the_table(
    form: tuple[Literal["items", "soft"], LearnerLossName],
    name: BackboneName,
    mode: Mode,
    n_items: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LARGEST_DENSE", FEW * POSITIONS)
    gradient, large, of_user = STATIC[name, mode]
    rows = product(
        ("auto", "full", "sampled"),
        ("auto", "on", "off"),
        ("all", "unseen"),
        (False, True),
        (CPU, GPU),
        ("auto", "all", FEW // 2),
    )
    for softmax, graphs, among, recompute, device, support in rows:
        outer = {
            "softmax": softmax,
            "cuda_graphs": graphs,
            "among": among,
            "recompute": recompute,
            "support": support,
        }
        plan = plan_of(name, mode, n_items, device, form, **outer)
        fixed, sampled = (name, mode) in FIXED_SCORES, (softmax, n_items) in SAMPLED
        assert plan.gradient == gradient
        inputs, loss = form
        dense_enough = n_items == FEW and not fixed
        by_default = support == "auto" and n_items == MANY and device == CPU
        sparse = inputs == "soft" and fixed and (by_default or isinstance(support, int))
        kind = "sparse" if sparse else "dense" if dense_enough else large
        assert plan.soft_embedding == ("items" if inputs == "items" else kind)
        assert plan.support == (None if not sparse else 1024 if by_default else support)
        assert plan.loss == loss
        assert plan.softmax == ("sampled" if sampled and fixed else "full")
        recorded = graphs == "on" and name == "sasrec" and plan.softmax == "full"
        assert plan.unroll == ("cuda-graphs" if recorded else "sequential")
        assert plan.real_batch == ("cuda-graph" if recorded and among == "all" else "direct")
        assert plan.recompute == recompute
        ignored = [
            softmax == "sampled" and not fixed,
            isinstance(support, int) and not (fixed and inputs == "soft"),
            graphs == "on" and not recorded,
            recorded and among == "unseen",
            recorded and device == CPU,
        ]
        assert len(plan.notes) == sum(ignored)
        backbone = build_backbone(small_config(backbone={"name": name}).backbone, 8)
        user = plan_training(backbone, mode, n_items, POSITIONS, loss, inputs)
        embedding = "dense" if dense_enough else of_user  # never a sparse one
        embedding = "items" if inputs == "items" else embedding
        assert user == InnerLoopPlan(plan.gradient, embedding, loss)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "outer", "notes"),
    [
        (("sasrec", "shared-items", FEW), {}, []),
        (("sasrec", "shared-items", FEW), {"cuda_graphs": "off", "softmax": "full"}, []),
        (
            ("bert4rec", "shared-items", FEW),
            {"cuda_graphs": "on", "softmax": "sampled", "support": 9},
            [
                "outer.softmax: sampled is ignored for shared-items learners of bert4rec: these "
                "train a part of the scoring table",
                "outer.support: 9 is ignored: inputs are items",
                "outer.cuda_graphs: on is ignored for shared-items learners: bert4rec has no "
                "analytic gradient",
            ],
        ),
        (
            ("sasrec", "shared-items", MANY),
            {"cuda_graphs": "on"},
            [
                "outer.cuda_graphs: on is ignored for shared-items learners: a sampled softmax has "
                "other items at each outer step",
            ],
        ),
        (
            ("sasrec", "from-scratch", FEW),
            {"cuda_graphs": "on", "among": "unseen"},
            [
                "outer.cuda_graphs: on leaves out real batches: outer.among: unseen",
                "outer.cuda_graphs: on makes nothing faster: cpu has no CUDA graphs",
            ],
        ),
    ],
)
def test_what_is_ignored_is_said_with_its_reason(
    row: tuple[BackboneName, Mode, int], outer: dict[str, Any], notes: list[str]
) -> None:
    assert list(plan_of(*row, **outer).notes) == notes


def modes_of(config: DistillConfig) -> list[tuple[Mode, str]]:
    backbone = build_backbone(config.backbone, config.data.max_history)
    return [(mode, plan.softmax) for mode, plan in plans_of(config, backbone, MANY, CPU).items()]


def test_a_plan_for_each_mode_that_is_distilled_for() -> None:
    shared = small_config(mode="shared-items", outer={"shared_steps": 2})
    assert modes_of(shared) == [("shared-items", "sampled")]
    scratch = small_config(mode="from-scratch", outer={"shared_steps": 0})
    assert modes_of(scratch) == [("from-scratch", "full")]
    both = small_config(mode="from-scratch", outer={"shared_steps": 2})
    assert modes_of(both) == [("shared-items", "sampled"), ("from-scratch", "full")]


def test_the_plan_makes_the_embedding_that_it_names() -> None:
    V = torch.zeros(3, 2)
    kinds = {"precomputed": Precomputed, "dense": DenseProbs, "chunked": ChunkedQueries}
    for method, kind in kinds.items():
        assert type(InnerLoopPlan("analytic", method).embed(V)) is kind  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no soft embedding"):
        InnerLoopPlan("analytic", "items").embed(V)
    sparse = InnerLoopPlan("analytic", "sparse", support=2).embed(V)
    assert isinstance(sparse, SparseSupport)
    assert sparse.items == 2


def test_scores_are_compared_beside_the_inputs() -> None:
    """Of items there are no distributions to embed; of a soft summary there are."""
    V = torch.zeros(3, 2)
    labelled = LabelledSummary(torch.zeros(4, 5, dtype=torch.long), torch.zeros(4, 4, 2), V, 1.5)
    soft = TuckerSummary(torch.zeros(4, 2), torch.zeros(5, 2), torch.zeros(2, 2, 2), V)
    kinds: list[tuple[str, Any, type]] = [
        ("items", labelled, ItemInputs),
        ("dense", soft, DenseProbs),
        ("chunked", soft, ChunkedQueries),
        ("precomputed", soft, Precomputed),
    ]
    for method, summary, kind in kinds:
        sequences = InnerLoopPlan("analytic", method, "scores").sequences(summary)  # type: ignore[arg-type]
        assert isinstance(sequences, InputsWithTargets)
        assert type(sequences.inputs) is kind
        assert (sequences.length, sequences.V) == (5, V)
    plain = InnerLoopPlan("analytic", "dense", "cross-entropy").sequences(soft)
    assert type(plain) is DenseProbs


@pytest.mark.parametrize("mode", MODES)
def test_labelled_users_are_read_as_distributions_where_cross_entropies_compare(
    mode: Mode,
) -> None:
    """As a summary of the same queries that has its factors for all positions."""
    config = paper_config().learner
    draw = torch.Generator().manual_seed(0)
    V, labels = torch.randn(30, 8, generator=draw), torch.randn(4, 7, 8, generator=draw)
    items = torch.randint(30, (4, 8), generator=draw)
    labelled = LabelledSummary(items, labels, V, 1.5)
    queries = labelled.soft_sequences().stacked
    T, Y = torch.eye(16).split(8)
    soft = TuckerSummary(torch.eye(4), T, queries, V, Y)
    backbone = build_backbone(paper_config().learner_backbone, 8)
    tables = []
    for summary in (labelled, soft):
        draw = torch.Generator().manual_seed(1)
        tables.append(learn(summary, backbone, config, mode, draw).model.parameters)
    torch.testing.assert_close(*tables)


def test_a_support_of_all_items_is_the_whole_attention() -> None:
    for support in (FEW, FEW + 1, "all"):
        plan = plan_of("sasrec", "shared-items", FEW, form=FORMS[1], support=support)
        assert plan.soft_embedding == "precomputed"
