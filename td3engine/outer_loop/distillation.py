"""The outer loop: train the summary so that learners trained on it do well on the log (section 5).

One outer step, top to bottom (`Distillation.step`): X from the factors, once (I-1); a learner of
some age from its pool; a window of its training on X (RaT-BPTT); its loss on real sequences, plus
feature alignment with the teacher; that gradient back through the window to X, and by one attention
backward to the factors, scaled to norm 1; Adam. Where learners train a part of the scoring table
(from scratch, or an item bias) X changes with them: the probabilities S take its place. With
several learners a step, each from a pool of its own, the mean of their gradients counts.

RaT is *Random Truncated* back-propagation through time (Feng, Vedantam, Kempe, ICLR 2024).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from td3engine.config import DistillConfig, Mode
from td3engine.data.split import Split
from td3engine.data.windows import WindowSampler
from td3engine.errors import DivergedError
from td3engine.inner_loop.learner import learn_from, recommender
from td3engine.inner_loop.plan import plan_distillation
from td3engine.inner_loop.trainer import InnerLoopTrainer
from td3engine.models.backbone import Backbone
from td3engine.models.recommender import StepRandomness
from td3engine.models.sequences import padded_sequences
from td3engine.models.trained_model import TrainedModel
from td3engine.outer_loop.initial_summary import initial_summary
from td3engine.outer_loop.item_sampler import ItemSampler
from td3engine.outer_loop.learner_pool import LearnerPools, LearnerWindow
from td3engine.outer_loop.objective import RealBatch, RecordedObjective, SurrogateObjective
from td3engine.ranking.holdout import HoldoutSet
from td3engine.ranking.metrics import validation_ndcg
from td3engine.runtime.distributed import ProcessGroup
from td3engine.runtime.seeding import Purpose, generator, numpy_generator
from td3engine.runtime.torch_setup import deterministic
from td3engine.summary.labelled import AnySummary, as_stored
from td3engine.summary.scored_sequences import InputsWithTargets
from td3engine.summary.soft_sequences import SparseSupport
from td3engine.teacher.training import TrainedOnLog

SMALLEST_NORM = 1e-12

StageHook = Callable[[str], object]
"""Receives the name of each stage of an outer step at its end (benchmarks time them)."""


class Distillation:
    """The outer loop's state, an outer step at a time, so that it can be stopped and resumed.

    Args:
        split: the real log.
        config: all settings.
        backbone: of teacher and learners.
        teacher: trained on the log; its item table is V.
        holdout: the validation set; its histories are as long as the learners'.
        device: where to compute.
        group: the processes that share the learners of a step (by default this one alone); all
            hold the same factors and optimizer, and each the pools of its own learners.

    Attributes:
        mode: of the learners at present.
        plan: how their inner steps are computed.
        pools: the learners.
        done: outer steps so far.
    """

    pools_class: type[LearnerPools] = LearnerPools

    def __init__(
        self,
        split: Split,
        config: DistillConfig,
        backbone: Backbone,
        teacher: TrainedOnLog,
        holdout: HoldoutSet,
        device: torch.device,
        group: ProcessGroup | None = None,
    ) -> None:
        self.split, self.config, self.backbone, self.teacher = split, config, backbone, teacher
        self.holdout, self.device, self.group = holdout, device, group or ProcessGroup()
        # A summary of length zeta trains zeta - 1 positions: learners read no more than that.
        self.history = config.learner_history
        self.windows = WindowSampler(split, self.history)
        self.summary = initial_summary(config, split, teacher)
        self.V_ND = self.summary.V
        # On another machine a decomposition may differ in its last bits.
        initial = self.group.broadcast(list(self.summary.learned), device)
        self.factors = [factor.clone().requires_grad_() for factor in initial]
        self.done = 0
        # Nothing has been validated yet.
        self.best: dict[str, Any] = {"validation": -1.0, "step": 0}
        self._distil_for("shared-items" if self.shared_steps else config.mode)

    @property
    def shared_steps(self) -> int:
        """The first outer steps, when a summary for learners from scratch is distilled for learners
        that share the item table: a cheap start."""
        return self.config.outer.shared_steps if self.config.mode == "from-scratch" else 0

    def _distil_for(self, mode: Mode) -> None:
        """Begin with fresh learners of this mode, and a fresh optimizer."""
        config, V_ND = self.config, self.V_ND
        self.mode: Mode = mode
        self.inner_steps = config.learner.steps_in(mode)
        self.plan = plan_distillation(config, mode, self.backbone, len(V_ND), self.device)
        self.model = recommender(self.backbone, V_ND, mode)
        sizes = self.inner_steps, self.plan.sequences(self.summary), config.summary.length
        self.training = InnerLoopTrainer(self.model, config.learner, *sizes, self.plan)
        self.sampler: ItemSampler | None = None
        if self.plan.softmax == "sampled":
            embedding = self.training.soft_embedding
            if isinstance(embedding, InputsWithTargets):
                embedding = embedding.inputs
            top = embedding.top if isinstance(embedding, SparseSupport) else None
            self.sampler = ItemSampler(self.split, self.model, config.outer.negatives, top)
        self.objective = SurrogateObjective(self.model, self.teacher, config.outer, self.sampler)
        self.recorded_objective: RecordedObjective | None = None
        if self.plan.real_batch == "cuda-graph":
            largest = config.outer.batch, self.history + 1
            self.recorded_objective = RecordedObjective(self.objective, self.device, *largest)
        trained = [factor for factor in self.factors if factor.requires_grad]
        rate, decay = config.outer.lr_in(mode), config.outer.weight_decay
        self.optimizer = torch.optim.Adam(trained, lr=rate, weight_decay=decay)
        early_EP = self.teacher.early
        self.pools = self.pools_class(config, self.model, self.inner_steps, early_EP, self.device)
        # Draws of later learners are numbered by outer steps; a second pool's come after those.
        first = 0 if self.done == 0 else config.outer.pool + config.outer.steps
        self.pools.fill(self.group.share(config.outer.learners), first)

    def steps(self) -> Iterator[float]:
        """Distil to the end, yielding the best validation NDCG@10 after each outer step.

        The start is looked at first: no summary is handed over that does worse than it.
        """
        outer = self.config.outer
        if not self.done and "factors" not in self.best:
            self._validate_start()
        while self.done < outer.steps:
            self.step()
            self.done += 1
            looks = self.done % outer.validate_every == 0 and self.mode == self.config.mode
            if looks or self.done == outer.steps:
                self._validate()
            yield max(self.best["validation"], 0.0)

    def step(self, on_stage: StageHook = lambda _stage: None) -> None:
        """One outer step; the module's docstring tells it in words."""
        if self.mode != self.config.mode and self.done == self.shared_steps:
            self._distil_for(self.config.mode)
        C_UTD = self.summary.with_learned(*self.factors).queries()
        differentiable = self.training.soft_embedding.synthetic(C_UTD)
        synthetic = differentiable.detach()
        self._sample(C_UTD.detach())
        on_stage("soft sequences")
        learners = self.pools.by_learner
        meta_gradients = (self._meta_gradient(each, synthetic, on_stage) for each in learners)
        to_synthetic = reduce(Tensor.add_, meta_gradients).div_(self.config.outer.learners)
        self.optimizer.zero_grad()
        with deterministic():
            differentiable.backward(to_synthetic)
        self.group.all_reduce(self._gradients())
        self._scale_gradient()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        on_stage("rest")

    def _sample(self, C_UTD: Tensor) -> None:
        """Choose the items of this step's inner losses, where they are a sample."""
        if self.sampler is None or self.plan.loss == "scores":
            return
        targets_UTD = C_UTD[:, -self.training.length :]
        rng = numpy_generator(self.config.seed, Purpose.ITEM_SAMPLE, self.done)
        self.training = self.training.over(self.sampler.sampled_recommender(targets_UTD, rng))

    def _meta_gradient(self, learner: int, synthetic: Tensor, on_stage: StageHook) -> Tensor:
        """dL/d(synthetic data) of one learner, which goes back to its pool a window older."""
        window = self._next_window(learner, synthetic)
        on_stage("warm-up")
        end, reverse = self.training.unroll(synthetic, window.start, window.steps)
        self.pools.put(window, end)
        on_stage("window")
        outer_gradient_P = self._real_gradient(end.parameters, window.rng, window.draw)
        on_stage("real batch")
        to_synthetic = reverse(outer_gradient_P)
        on_stage("reverse")
        return to_synthetic

    def _next_window(self, learner: int, synthetic: Tensor) -> LearnerWindow:
        """A learner of the pool after its warm-up steps, and the random draws of its window."""
        outer, seed, trainer = self.config.outer, self.config.seed, self.training
        draw = generator(seed, Purpose.OUTER_STEP, self.done, self.device.type, learner=learner)
        rng = numpy_generator(seed, Purpose.OUTER_STEP, self.done, learner=learner)
        place = int(rng.integers(outer.pool))
        pooled = self.pools.pick(learner, place, self.done)
        start = trainer.advance(synthetic, pooled.state, draw, pooled.warmup_steps)
        steps = trainer.steps(start.age, outer.window, len(synthetic), draw)
        return LearnerWindow(learner, place, start, steps, rng, draw)

    def _scale_gradient(self) -> None:
        """Normalise or clip the factors' gradient, whose norm is finite."""
        outer = self.config.outer
        gradients = self._gradients()
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise DivergedError(
                f"the meta-gradient of outer step {self.done + 1} is not finite: a smaller "
                "learner.lr, outer.lr (outer.scratch_lr) or outer.window may help"
            )
        new_norm = 1.0 if outer.normalise else min(float(norm), outer.clip)
        for gradient in gradients:
            gradient.mul_(new_norm / (norm + SMALLEST_NORM))

    def _gradients(self) -> list[Tensor]:
        return [factor.grad for factor in self.factors if factor.grad is not None]

    def _rate(self) -> float:
        """The outer rate: a cosine schedule for each mode that is distilled for."""
        outer, shared = self.config.outer, self.shared_steps
        rate = outer.lr_in(self.mode)
        if self.mode != self.config.mode:
            return cosine(rate, self.done, shared)
        return cosine(rate, self.done - shared, outer.steps - shared)

    def result(self) -> tuple[AnySummary, dict[str, float]]:
        """The best summary by validation, and {"ndcg@10", "step"} of that choice.

        Raises:
            RuntimeError: no outer step has been validated yet.
        """
        if "factors" not in self.best:
            raise RuntimeError("distilling has not been validated yet")
        chosen = {"ndcg@10": self.best["validation"], "step": float(self.best["step"])}
        return self.summary.with_learned(*self.best["factors"]), chosen

    def state(self) -> dict[str, Any]:
        """Everything that the next outer step depends on, for a checkpoint.

        All processes call this; the main process's has the pools of all.
        """
        pools_by_rank = self.group.gather(self.pools.state(), torch.device("cpu"))
        return {
            "mode": self.mode,
            "factors": [factor.detach() for factor in self.factors],
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "pools": {each: pool for pools in pools_by_rank for each, pool in pools.items()},
            "best": self.best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the main process's `state()`, of as many processes or another number."""
        if state["mode"] != self.mode:
            self._distil_for(state["mode"])
        with torch.no_grad():
            for factor, stored in zip(self.factors, state["factors"], strict=True):
                factor.copy_(stored)
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.best = state["done"], dict(state["best"])
        self.pools.restore(state["pools"])

    def _real_gradient(
        self, theta: Tensor, rng: np.random.Generator, draw: torch.Generator
    ) -> Tensor:
        """Gradient of the surrogate objective on a real batch."""
        windows = self.windows.draw(self.config.outer.batch, rng)
        rows = padded_sequences(self.split, windows.start, windows.end)
        items, lengths = (part.to(self.device) for part in rows)
        if self.recorded_objective is not None:
            return self.recorded_objective.gradient(theta, items, lengths)
        randomness = StepRandomness(self.backbone.draw_targets(lengths, draw), dropout=None)
        return self.objective.gradient(theta, RealBatch(items, lengths, randomness, rng))

    def _validate_start(self) -> None:
        """As later summaries are: with learners of the mode that is distilled for in the end."""
        first = self.mode
        if first == self.config.mode:
            self._validate()
            return
        self._distil_for(self.config.mode)
        self._validate()
        self._distil_for(first)

    def _validate(self) -> None:
        """Keep the summary, as it will be stored, if learners trained on it do better than on any
        before."""
        learned = self.summary.with_learned(*(factor.detach().clone() for factor in self.factors))
        current = as_stored(learned, self.config.summary)
        self._sample(current.queries())
        # Nothing is chosen where there are no steps: one learner says how good the start is.
        count = self.config.outer.validation_learners if self.config.outer.steps else 1
        total = torch.zeros(1, dtype=torch.float64)
        for nth in self.group.share(count):
            total += self._validation_of(current, nth)
        self.group.all_reduce([total])
        validation = float(total) / count
        if validation > self.best["validation"]:
            self.best = {
                "validation": validation,
                "step": self.done,
                "factors": list(current.learned),
            }

    def _validation_of(self, current: AnySummary, nth: int) -> float:
        """NDCG@10 of a learner; not a number if it diverges on a start that is to be distilled."""
        draw = generator(self.config.seed, Purpose.VALIDATION_LEARNER, nth, self.device.type)
        try:
            return validation_ndcg(self._learner_of(current, draw), self.holdout)
        except DivergedError:
            if self.done or not self.config.outer.steps:
                raise
            return math.nan  # no candidate: it is not above anything

    def _learner_of(self, current: AnySummary, draw: torch.Generator) -> TrainedModel:
        """A learner trained on the summary: as its user does it, or over a sample of the items."""
        plan = self.plan
        if plan.soft_embedding == "sparse":
            plan = replace(plan, soft_embedding="precomputed")  # its user's X is exact
        synthetic = plan.sequences(current).synthetic(current.queries())
        model = learn_from(self.training, synthetic, draw).model
        return model if self.sampler is None else replace(model, table=self.V_ND)


def cosine(lr: float, step: int, steps: int) -> float:
    """Cosine schedule from `lr` at step 0 towards zero at `steps`."""
    return lr * 0.5 * (1 + math.cos(math.pi * step / steps))
