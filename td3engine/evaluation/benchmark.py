"""A split log, ready to ask questions of learners."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from td3engine.config import DistillConfig
from td3engine.data.split import Split
from td3engine.inner_loop.learner import encode_last
from td3engine.models.backbone import Backbone
from td3engine.models.registry import build_backbone
from td3engine.ranking.holdout import Holdouts, HoldoutSet
from td3engine.ranking.metrics import Metrics, Protocol, available_protocols, evaluate


@dataclass(frozen=True)
class Benchmark:
    """A split log, ready to ask questions of learners."""

    split: Split
    config: DistillConfig
    backbone: Backbone
    holdouts: Holdouts
    validation: HoldoutSet
    test: HoldoutSet
    protocols: Sequence[Protocol]
    device: torch.device
    on_step: Callable[[], None]

    @classmethod
    def prepare(
        cls,
        split: Split,
        config: DistillConfig,
        device: torch.device,
        on_step: Callable[[], None] = lambda: None,
        holdouts: Holdouts | None = None,
    ) -> "Benchmark":
        """For learners, which read as many events as a summary's sequences train them to.

        Args:
            split: the log.
            config: of learners.
            device: where they train.
            on_step: called every few steps of a learner; may raise, to end the work early.
            holdouts: of the log, where they have been made.
        """
        holdouts = holdouts or Holdouts(split, config.data)
        test = holdouts.test(config.learner_history)
        return cls(
            split=split,
            config=config,
            backbone=build_backbone(config.backbone, config.data.max_history),
            holdouts=holdouts,
            validation=holdouts.validation(config.learner_history),
            test=test,
            protocols=available_protocols(test),
            device=device,
            on_step=on_step,
        )

    def validate(self, parameters_P: Tensor, table_ND: Tensor) -> float:
        """Validation NDCG@10 under `full`."""
        self.on_step()
        scorer = encode_last(self.backbone, parameters_P, table_ND)
        return evaluate(scorer, table_ND, self.validation, "full")["ndcg@10"]

    def measure(self, parameters_P: Tensor, table_ND: Tensor) -> dict[Protocol, Metrics]:
        """Test metrics under every available protocol."""
        scorer = encode_last(self.backbone, parameters_P, table_ND)
        return {
            protocol: evaluate(scorer, table_ND, self.test, protocol) for protocol in self.protocols
        }
