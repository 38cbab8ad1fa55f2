"""A log's holdout sets, and the learners' metrics on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from td3engine.config import DistillConfig
from td3engine.data.split import Split, split_log
from td3engine.data.types import Interactions
from td3engine.errors import WrongLogError
from td3engine.models.backbone import Backbone
from td3engine.models.registry import build_backbone
from td3engine.models.trained_model import TrainedModel
from td3engine.ranking.holdout import Holdouts, HoldoutSet, measured_users
from td3engine.ranking.metrics import Metrics, RankingModel, evaluate_all, validation_ndcg
from td3engine.ranking.protocols import Protocol, available_protocols, protocol_notes
from td3engine.summary.bundle import Bundle


@dataclass(frozen=True)
class Benchmark:
    """A split log on which learners are validated and measured.

    Attributes:
        split: the log.
        config: settings of the learners.
        backbone: of the learners, untrained.
        holdouts: the log's holdout sets.
        validation, test: those of models with the learners' longest history.
        protocols: those that have a question about the test set.
        device: where learners train.
        on_step: called every few steps of a learner.
    """

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
        """A benchmark for learners, whose longest history is `config.learner_history`.

        Args:
            split: the log.
            config: settings of the learners.
            device: where they train.
            on_step: called every few steps of a learner; an exception ends the training.
            holdouts: the log's holdout sets; None: they are built here.
        """
        holdouts = holdouts or Holdouts(split, config.data)
        test = holdouts.test(config.learner_history)
        return cls(
            split=split,
            config=config,
            backbone=build_backbone(config.learner_backbone, config.data.max_history),
            holdouts=holdouts,
            validation=holdouts.validation(config.learner_history),
            test=test,
            protocols=available_protocols(test),
            device=device,
            on_step=on_step,
        )

    def asking_after(self, time: float) -> "Benchmark":
        """The same benchmark with test events after this time only.

        Raises:
            WrongLogError: there are none.
        """
        users = measured_users(self.split, self.config.data.test_users)
        times = self.split.times[self.split.offsets[1:][users] - 1]
        cases = np.flatnonzero(times > time)
        if not len(cases):
            raise WrongLogError(
                "no test event of this log is later than the last event that the summary was "
                f"trained on ({time}): whatever it ranks well, it may have seen"
            )
        test = self.test.take(torch.from_numpy(cases))
        return replace(self, test=test, protocols=available_protocols(test))

    def notes(self) -> list[str]:
        """What figures there are not, and whom those on test leave out; for people."""
        notes = protocol_notes(self.test)
        cases, users = len(self.test.targets), len(self.split.evaluated)
        if cases < users:
            notes.append(f"test figures are of {cases:,} of {users:,} users")
        return notes

    def validate(self, model: TrainedModel) -> float:
        """Validation NDCG@10; calls `on_step`."""
        self.on_step()
        return validation_ndcg(model, self.validation)

    def measure(self, model: RankingModel) -> dict[Protocol, Metrics]:
        """Test metrics under every available protocol."""
        return evaluate_all(model, self.test, self.protocols)


def benchmark_for(
    bundle: Bundle,
    log: Interactions,
    device: torch.device,
    config: DistillConfig | None = None,
    *,
    other_log: bool = False,
) -> Benchmark:
    """The benchmark for learners on this summary.

    Args:
        bundle: the summary.
        log: the log that it was made from.
        device: where learners train.
        config: settings of the learners; None: those of the summary.
        other_log: whether the log may be another one of the same items. Then only test events are
            asked about that are later than all that the summary was trained on.

    Raises:
        WrongLogError: the log is another one and should not be; after the filter its items are not
            those of the summary; or another log has no later test event.
    """
    config = config or bundle.manifest.config
    split = split_log(log, config.data)
    if set(split.item_ids) != set(bundle.item_ids):
        raise WrongLogError(
            f"the log has {split.n_items} items after the filter and the summary has "
            f"{len(bundle.item_ids)}, or their ids differ: this is not the log it was made from"
        )
    same_log = is_log_of(bundle, log)
    if not (same_log or other_log):
        raise WrongLogError(
            "this is not the log that the summary was made from: it has other events (fingerprint "
            f"{log.fingerprint()[:12]}…, the manifest says {bundle.manifest.fingerprint[:12]}…), "
            "which the summary may have been trained on. --other-log (other_log=True) measures on "
            "it nevertheless, on test events later than all of those"
        )
    benchmark = Benchmark.prepare(split.with_items(bundle.item_ids), config, device)
    if same_log:
        return benchmark
    until = bundle.manifest.statistics.get("trained_until")
    if not isinstance(until, int | float):
        raise WrongLogError("the summary's manifest does not say until when it was trained")
    return benchmark.asking_after(until)


def is_log_of(bundle: Bundle, log: Interactions) -> bool:
    """Whether a summary was made from these interactions, in whatever order of rows.

    Manifests of format 1 name a file in place of the interactions: then nothing can be said, and
    the answer is yes.
    """
    return bundle.manifest.format == 1 or log.fingerprint() == bundle.manifest.fingerprint
