"""The outer loop: train the summary so that learners trained on it do well on the log (section 5).

One outer step, top to bottom (`Distillation.step`): X from the factors, once (I-1); a learner of
some age from the pool; a window of its training on X (RaT-BPTT); its loss on real sequences, plus
feature alignment with the teacher; that gradient back through the window to X, and by one
attention backward to U, T, G; clip; Adam.

RaT is *Random Truncated* back-propagation through time (Feng, Vedantam, Kempe, ICLR 2024). The
pool replaces the warm-up steps of the published code: each learner keeps the end of its window as
its new state, so windows of all ages are met and no step is thrown away.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from td3engine.backbones import Backbone
from td3engine.catalogue import log_sum_exp
from td3engine.config import DistillConfig
from td3engine.errors import DivergedError
from td3engine.interactions import Split
from td3engine.learner import SummaryTraining, encode_last, learn_shared
from td3engine.ranking import evaluate
from td3engine.seeding import Purpose, generator, numpy_generator
from td3engine.sequences import Questions, gather, training_windows
from td3engine.summary import Summary, query, soft_sequences
from td3engine.teacher import Trained, real_targets
from td3engine.unroll import LearnerState, Tape, meta_gradient, train


@dataclass(frozen=True)
class Pooled:
    """A learner of the pool.

    Attributes:
        state: its training state.
        owed: steps to take without a graph before its next window, so that windows start at
            random ages and not at multiples of the window.
    """

    state: LearnerState
    owed: int


class Distillation:
    """The outer loop's state, an outer step at a time, so that it can be stopped and resumed.

    Args:
        split: the real log.
        config: all settings.
        backbone: of teacher and learners.
        teacher: trained on the log; its item table is V.
        asked: the validation questions, as long as the learners' histories.
        device: where to compute.
    """

    def __init__(
        self,
        split: Split,
        config: DistillConfig,
        backbone: Backbone,
        teacher: Trained,
        asked: Questions,
        device: torch.device,
    ) -> None:
        self.split, self.config, self.backbone, self.teacher = split, config, backbone, teacher
        self.asked, self.device = asked, device
        # A summary of length zeta trains zeta - 1 positions: learners read no more than that.
        self.history = config.learner_history
        self.training = SummaryTraining(backbone, teacher.table, config.learner)
        self.summary = initial_summary(config, teacher.table)
        self.factors = [factor.clone().requires_grad_() for factor in self.summary.learned]
        self.optimizer = torch.optim.Adam(
            self.factors, lr=config.outer.lr, weight_decay=config.outer.weight_decay
        )
        self.done = 0
        self.pool = [self._fresh(nth, staggered=True) for nth in range(config.outer.pool)]
        self.best: dict[str, Any] = {"validation": -1.0, "step": 0}

    def steps(self) -> Iterator[float]:
        """Distil to the end, yielding the best validation NDCG@10 after each outer step."""
        outer = self.config.outer
        while self.done < outer.steps:
            self.step()
            self.done += 1
            if self.done % outer.validate_every == 0 or self.done == outer.steps:
                self._validate()
            yield max(self.best["validation"], 0.0)

    def step(self) -> None:
        """One outer step; the module's docstring tells it in words."""
        outer, learner = self.config.outer, self.config.learner
        draw = generator(self.config.seed, Purpose.OUTER_STEP, self.done, self.device.type)
        rng = numpy_generator(self.config.seed, Purpose.OUTER_STEP, self.done)

        C_UTD = query(*self.factors)
        X_UTD = soft_sequences(C_UTD, self.teacher.table, self.teacher.table)
        leaf = X_UTD.detach()

        nth = int(rng.integers(outer.pool))
        pooled = self.pool[nth]
        if pooled.state.age + pooled.owed + outer.window > learner.steps:
            pooled = self._fresh(outer.pool + self.done, staggered=False)
        start = learn_shared(self.training, leaf, pooled.state, draw, pooled.owed)
        users, length, _ = leaf.shape
        window = self.training.steps(start.age, outer.window, users, length, draw)
        tapes: list[Tape] | None = None if outer.recompute else []
        states = train(start, leaf, window, self.training.loss, self.training.rule, tapes)
        self.pool[nth] = Pooled(states[-1], owed=0)

        outer_gradient = self._real_gradient(states[-1].parameters, rng)
        to_X = meta_gradient(
            states, leaf, window, self.training.loss, self.training.rule, outer_gradient, tapes
        )
        self.optimizer.zero_grad()
        X_UTD.backward(to_X)
        norm = torch.nn.utils.clip_grad_norm_(self.factors, outer.clip)
        if not torch.isfinite(norm):
            raise DivergedError(
                f"the meta-gradient of outer step {self.done + 1} is not finite: a smaller "
                "learner.lr, outer.lr or outer.window may help"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(outer.lr, self.done, outer.steps)
        self.optimizer.step()

    def result(self) -> tuple[Summary, dict[str, float]]:
        """The best summary by validation, and {"ndcg@10", "step"} of that choice.

        Raises:
            RuntimeError: no outer step has been validated yet.
        """
        if "factors" not in self.best:
            raise RuntimeError("distilling has not been validated yet")
        chosen = {"ndcg@10": self.best["validation"], "step": float(self.best["step"])}
        return self.summary.with_learned(*self.best["factors"]), chosen

    def state(self) -> dict[str, Any]:
        """Everything that the next outer step depends on, for a checkpoint."""
        return {
            "factors": [factor.detach() for factor in self.factors],
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "pool": [
                {
                    "parameters": pooled.state.parameters,
                    "first": pooled.state.first,
                    "second": pooled.state.second,
                    "age": pooled.state.age,
                    "owed": pooled.owed,
                }
                for pooled in self.pool
            ],
            "best": self.best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        with torch.no_grad():
            for factor, kept in zip(self.factors, state["factors"], strict=True):
                factor.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.best = state["done"], dict(state["best"])
        self.pool = [
            Pooled(
                LearnerState(kept["parameters"], kept["first"], kept["second"], kept["age"]),
                kept["owed"],
            )
            for kept in state["pool"]
        ]

    def _fresh(self, index: int, *, staggered: bool) -> Pooled:
        """A new learner; the first ones are spread over all ages, later ones start young."""
        outer = self.config.outer
        draw = generator(self.config.seed, Purpose.POOL, index, self.device.type)
        rng = numpy_generator(self.config.seed, Purpose.POOL, index)
        latest = self.config.learner.steps - outer.window
        owed = int(rng.integers(0, (latest if staggered else min(outer.window, latest)) + 1))
        if outer.start == "teacher":
            early = self.teacher.early
            return Pooled(LearnerState.fresh(early[int(rng.integers(len(early)))]), owed)
        return Pooled(LearnerState.fresh(self.backbone.initial(draw)), owed)

    def _real_gradient(self, parameters_P: Tensor, rng: np.random.Generator) -> Tensor:
        """Gradient (P) of the surrogate objective on a real batch: CE + lambda * MSE(features)."""
        outer = self.config.outer
        index = training_windows(self.split, self.history, rng)
        chosen = rng.choice(len(index), min(outer.batch, len(index)), replace=False)
        items, lengths = gather(
            self.split, index.start[chosen], index.end[chosen], self.history + 1
        )
        items = items.to(self.device)
        real = real_targets(lengths.to(self.device), self.history)
        table = self.teacher.table
        embedded = table[items[:, :-1]]
        parameters = parameters_P.detach().requires_grad_()
        hidden_KD = self.backbone.encode(parameters, embedded, None)[real]
        target_KD = table[items[:, 1:][real]]
        loss = (log_sum_exp(hidden_KD, table) - (hidden_KD * target_KD).sum(-1)).mean()
        if outer.feature_weight:
            with torch.no_grad():
                features = self.backbone.encode(self.teacher.parameters, embedded, None)[real]
            loss = loss + outer.feature_weight * (hidden_KD - features).square().mean()
        (gradient,) = torch.autograd.grad(loss, parameters)
        return gradient

    def _validate(self) -> None:
        """Keep the summary if learners trained on it do better than on any before."""
        current = self.summary.with_learned(*(factor.detach().clone() for factor in self.factors))
        table = self.teacher.table
        X_UTD = soft_sequences(query(*current.learned), table, table)
        found = []
        for nth in range(self.config.outer.validation_learners):
            draw = generator(self.config.seed, Purpose.VALIDATION_LEARNER, nth, self.device.type)
            start = LearnerState.fresh(self.backbone.initial(draw))
            end = learn_shared(self.training, X_UTD, start, draw, self.config.learner.steps)
            scorer = encode_last(self.backbone, end.parameters, table)
            found.append(evaluate(scorer, table, self.asked, "full")["ndcg@10"])
        validation = sum(found) / len(found)
        if validation > self.best["validation"]:
            self.best = {
                "validation": validation,
                "step": self.done,
                "factors": list(current.learned),
            }


def initial_summary(config: DistillConfig, V_ND: Tensor) -> Summary:
    """The summary before distilling, from the configuration's seed."""
    draw = generator(config.seed, Purpose.SUMMARY_INITIAL, device=V_ND.device.type)
    return Summary.initial(config.summary, V_ND, draw)


def cosine(lr: float, step: int, steps: int) -> float:
    """Cosine schedule from `lr` at step 0 towards zero at `steps`."""
    return lr * 0.5 * (1 + math.cos(math.pi * step / steps))
