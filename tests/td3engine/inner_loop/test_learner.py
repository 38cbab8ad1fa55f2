"""Learners that cannot go on say so."""

import pytest
import torch

from td3engine.errors import DivergedError
from td3engine.inner_loop.adam import LearnerState
from td3engine.inner_loop.learner import learn, training_on
from td3engine.models.registry import build_backbone
from td3engine.summary.tucker import TuckerSummary
from tests.td3engine.small import paper_config


@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_a_diverging_learner_is_an_error_and_no_figure(mode: str) -> None:
    config = paper_config()
    draw = torch.Generator().manual_seed(0)
    summary = TuckerSummary.initial(config.summary, torch.randn(20, 8, generator=draw), draw)
    summary.U[0, 0] = torch.nan
    backbone = build_backbone(config.backbone, config.data.max_history)
    with pytest.raises(DivergedError, match=r"a learner diverged within 8 steps: .*learner\.lr"):
        learn(summary, backbone, config.learner, mode, draw)  # type: ignore[arg-type]


@pytest.mark.parametrize("augmented", [0, 3])
def test_the_last_event_is_asked_once_a_row_and_the_rest_at_random(augmented: int) -> None:
    config = paper_config(learner={"augmented": augmented})
    draw = torch.Generator().manual_seed(0)
    summary = TuckerSummary.initial(config.summary, torch.randn(20, 8, generator=draw), draw)
    backbone = build_backbone(config.backbone, config.data.max_history)
    training, synthetic = training_on(summary, backbone, config.learner, "shared-items")
    (step,) = training.steps(0, 1, len(synthetic), draw)
    rows, at = step.randomness.targets.rows, step.randomness.targets.at
    assert rows.bincount().tolist() == [augmented + 1] * 4
    assert (at == 7).sum() == 4  # the augmentation stops short of the last of 8 events
    assert ((at >= 5) & (at <= 7)).all()
    training.advance(synthetic, LearnerState.fresh(training.model.initial(draw)), draw, 2)
