"""How an inner step is computed: decided here, once, and nowhere else.

Method, mode, backbone and sizes leave a choice at five places. A plan holds the five answers. What
a configuration requests in vain is listed, with the reason, in `InnerLoopPlan.notes`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from td3engine.config import (
    OUTER_SAMPLED_FROM,
    DistillConfig,
    LearnerLossName,
    Mode,
    softmax_over,
    support_of,
)
from td3engine.models.backbone import Backbone
from td3engine.summary.labelled import AnySummary, LabelledSummary
from td3engine.summary.scored_sequences import InputsWithTargets, ItemInputs
from td3engine.summary.soft_sequences import (
    ChunkedQueries,
    DenseProbs,
    Precomputed,
    SoftEmbedding,
    SparseSupport,
)

LARGEST_DENSE = 2**26  # numbers of S that are stored: 256 MiB

GradientMethod = Literal["analytic", "autograd"]
EmbeddingMethod = Literal["items", "precomputed", "sparse", "dense", "chunked"]
SoftmaxMethod = Literal["full", "sampled"]
UnrollMethod = Literal["sequential", "cuda-graphs"]
RealBatchMethod = Literal["direct", "cuda-graph"]


@dataclass(frozen=True)
class InnerLoopPlan:
    """How inner steps are computed.

    Attributes:
        gradient: closed formulas, or autograd's tape.
        soft_embedding: inputs are items; or X computed once, over all items or with few of them one
            by one (`sparse`); or from stored probabilities S; or from queries C, in chunks, at each
            step.
        loss: what holds a learner to its targets.
        softmax: items that targets compete with, in learners' cross-entropies and in real batches:
            all, or a sample.
        unroll: how a window's steps are started: from Python, or as a replayed recording.
        real_batch: the same of the real batch's gradient.
        recompute: whether a window's gradients are computed again on the way back.
        support: items that a position meets one by one, where that is `sparse`; else None.
        notes: what the configuration requests and this plan ignores, and why.
    """

    gradient: GradientMethod
    soft_embedding: EmbeddingMethod
    loss: LearnerLossName = "cross-entropy"
    softmax: SoftmaxMethod = "full"
    unroll: UnrollMethod = "sequential"
    real_batch: RealBatchMethod = "direct"
    recompute: bool = False
    support: int | None = None
    notes: tuple[str, ...] = ()

    def embed(self, V_ND: Tensor) -> SoftEmbedding:
        """The soft embedding of a summary with this item factor."""
        match self.soft_embedding:
            case "items":
                raise ValueError("inputs that are items have no soft embedding")
            case "precomputed":
                return Precomputed(V_ND)
            case "sparse":
                assert self.support is not None  # it is what makes a plan sparse
                return SparseSupport.of(V_ND, self.support)
            case "dense":
                return DenseProbs(V_ND)
            case "chunked":
                return ChunkedQueries(V_ND)

    def sequences(self, summary: AnySummary) -> SoftEmbedding:
        """How this summary's sequences are read: with their targets, if those are scores."""
        if self.loss == "cross-entropy":
            return self.embed(summary.V)
        inputs = (
            ItemInputs(summary.items, len(summary.V))
            if isinstance(summary, LabelledSummary)
            else self.embed(summary.V)
        )
        return InputsWithTargets(inputs, summary.length, summary.V)


def plan_training(
    backbone: Backbone,
    mode: Mode,
    n_items: int,
    positions: int,
    loss: LearnerLossName = "cross-entropy",
    inputs: Literal["items", "soft"] = "soft",
) -> InnerLoopPlan:
    """The plan of a learner that trains on a summary, without an outer loop.

    Args:
        backbone: of the learner.
        mode: whether it shares the summary's item table.
        n_items: n.
        positions: the summary's queries, mu x zeta, or 2 mu x zeta with targets of their own.
        loss: what holds it to its targets.
        inputs: what it reads.
    """
    gradient = _gradient(backbone)
    if inputs == "items":
        return InnerLoopPlan(gradient, "items", loss)
    if _scores_are_fixed(backbone, mode):
        return InnerLoopPlan(gradient, "precomputed", loss)
    fits = positions * n_items <= LARGEST_DENSE
    return InnerLoopPlan(gradient, "dense" if fits else "chunked", loss)


def plan_distillation(
    config: DistillConfig, mode: Mode, backbone: Backbone, n_items: int, device: torch.device
) -> InnerLoopPlan:
    """The plan of the outer steps that distil for `mode`.

    Args:
        config: all settings; `config.mode` may be another, see `plans_of`.
        mode: of the learners.
        backbone: of the learners.
        n_items: n.
        device: where to compute.
    """
    outer, summary = config.outer, config.summary
    positions = summary.users * summary.length * (2 if summary.targets == "own" else 1)
    loss = config.learner.loss
    base = plan_training(backbone, mode, n_items, positions, loss, summary.inputs)
    scores_are_fixed = _scores_are_fixed(backbone, mode)
    softmax: SoftmaxMethod = "full"
    if scores_are_fixed:
        softmax = softmax_over(n_items, outer.softmax, OUTER_SAMPLED_FROM)
    soft = summary.inputs == "soft"
    support = _support(config, n_items, device) if soft and scores_are_fixed else None
    obstacle = _obstacle(config, base.gradient, softmax)
    recorded = outer.cuda_graphs == "on" and obstacle is None
    # The recording pads batches and gives each position a weight, which `unseen` does not take.
    real_batch_too = recorded and backbone.causal and outer.among == "all"

    def notes() -> Iterator[str]:
        why = f"for {mode} learners of {_name(config)}: these train a part of the scoring table"
        if outer.softmax == "sampled" and not scores_are_fixed:
            yield f"outer.softmax: sampled is ignored {why}"
        if isinstance(outer.support, int) and not soft:
            yield f"outer.support: {outer.support} is ignored: inputs are items"
        elif isinstance(outer.support, int) and not scores_are_fixed:
            yield f"outer.support: {outer.support} is ignored {why}"
        if outer.cuda_graphs != "on":
            return
        if obstacle is not None:
            yield f"outer.cuda_graphs: on is ignored for {mode} learners: {obstacle}"
            return
        if not real_batch_too:
            why = (
                f"outer.among: {outer.among}"
                if backbone.causal
                else "a backbone that is not causal"
            )
            yield f"outer.cuda_graphs: on leaves out real batches: {why}"
        if device.type != "cuda":
            yield f"outer.cuda_graphs: on makes nothing faster: {device.type} has no CUDA graphs"

    return InnerLoopPlan(
        gradient=base.gradient,
        soft_embedding=_embedding(base, support),
        loss=loss,
        softmax=softmax,
        unroll="cuda-graphs" if recorded else "sequential",
        real_batch="cuda-graph" if real_batch_too else "direct",
        recompute=outer.recompute,
        support=support,
        notes=tuple(notes()),
    )


def plans_of(
    config: DistillConfig, backbone: Backbone, n_items: int, device: torch.device
) -> dict[Mode, InnerLoopPlan]:
    """A plan for each mode that the distillation distils for, in their order."""
    modes: list[Mode] = [config.mode]
    if config.mode == "from-scratch" and config.outer.shared_steps:
        modes.insert(0, "shared-items")
    return {mode: plan_distillation(config, mode, backbone, n_items, device) for mode in modes}


def _gradient(backbone: Backbone) -> GradientMethod:
    # The passes know of no item bias.
    return "analytic" if backbone.has_analytic_grad and not backbone.biased else "autograd"


def _scores_are_fixed(backbone: Backbone, mode: Mode) -> bool:
    return mode == "shared-items" and not backbone.biased


def _embedding(base: InnerLoopPlan, support: int | None) -> EmbeddingMethod:
    """How an outer loop's learners read, from how a summary's user does."""
    if support is not None:
        return "sparse"
    if base.gradient == "autograd" and base.soft_embedding == "chunked":
        return "dense"  # autograd cannot differentiate attention twice
    return base.soft_embedding


def _support(config: DistillConfig, n_items: int, device: torch.device) -> int | None:
    """How many items a position meets one by one; None: all."""
    setting = config.outer.support
    if setting == "auto" and device.type != "cpu":
        return None  # the cells' many small products have not been measured there
    return support_of(n_items, setting)


def _obstacle(
    config: DistillConfig, gradient: GradientMethod, softmax: SoftmaxMethod
) -> str | None:
    """What keeps inner steps from being recorded; None: nothing."""
    if gradient == "autograd":
        return f"{_name(config)} has no analytic gradient"
    if softmax == "sampled":
        return "a sampled softmax has other items at each outer step"
    return None


def _name(config: DistillConfig) -> str:
    return config.backbone.name
