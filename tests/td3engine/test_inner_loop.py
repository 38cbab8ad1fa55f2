"""`learn`, the training that a summary's user does, against the textbook in both modes."""

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from td3engine.backbones import build_backbone
from td3engine.config import BackboneConfig, LearnerConfig, Mode
from td3engine.learner import Learned, SummaryTraining, learn
from td3engine.summary import Summary
from tests.td3engine.oracles import default_double, dense_summary, distance, normal, seeded

Schedule = Literal["constant", "linear"]

MU, ZETA, WIDTH, ITEMS = 7, 8, 4, 9  # 20 steps of 2 do not come round to user 0
SUMMARY = Summary(
    U=normal(0, MU, 2), T=normal(1, ZETA, 3), G=normal(2, 2, 3, WIDTH), V=normal(3, ITEMS, WIDTH)
)
BACKBONE = build_backbone(BackboneConfig(hidden=WIDTH, inner=5, dropout=0.3), ZETA - 1)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with default_double():
        yield


def make_config(steps: int, schedule: Schedule = "linear") -> LearnerConfig:
    return LearnerConfig(
        steps=steps,
        scratch_steps=steps,
        batch=2,
        lr=0.01,
        schedule=schedule,
        weight_decay=0.02,
        objective="all-positions",
    )


def textbook(mode: Mode, steps: int) -> tuple[Tensor, Tensor]:
    """torch.optim's Adam on dense soft targets; from scratch it trains a table as well."""
    draw = seeded(9)
    S = dense_summary(SUMMARY.U, SUMMARY.T, SUMMARY.G, SUMMARY.V)
    parameters = BACKBONE.initial(draw).requires_grad_()
    E = SUMMARY.V
    trained = [parameters]
    if mode == "from-scratch":
        E = (torch.randn(ITEMS, WIDTH, generator=draw) * 0.02).requires_grad_()
        trained.append(E)
    optimizer = torch.optim.Adam(trained, lr=0.01, weight_decay=0.02)
    drawn = SummaryTraining(BACKBONE, SUMMARY.V, make_config(steps)).steps(0, steps, MU, ZETA, draw)
    for number, step in enumerate(drawn):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - number / steps)
        rows = S[[(2 * number) % MU, (2 * number + 1) % MU]]
        hidden = BACKBONE.encode(parameters, rows[:, :-1] @ E, step.noise.dropout)
        loss = -(rows[:, 1:] * functional.log_softmax(hidden @ E.T, -1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return parameters.detach(), E.detach()


@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_learn_is_the_textbooks(mode: Mode) -> None:
    """Compared by what the encoders do, not by their numbers: the attention's key bias has no
    effect and a gradient of pure rounding noise, which Adam scales up to steps of full size."""
    found = learn(SUMMARY, BACKBONE, make_config(23), mode, seeded(9))
    parameters, table = textbook(mode, 23)
    x = normal(10, 6, ZETA - 1, WIDTH)
    ours, theirs = (BACKBONE.encode(each, x, None) for each in (found.parameters, parameters))
    assert distance(ours, theirs) < 1e-8
    assert distance(found.table, table) < 1e-8
    assert torch.equal(found.table, SUMMARY.V) == (mode == "shared-items")
    assert found.seconds > 0


@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_learn_returns_the_best_state_that_validation_saw(mode: Mode) -> None:
    """45 steps are looked at after 20, 40 and 45; the second look is the best."""
    values = iter([0.1, 0.5, 0.3])
    seen: list[Learned] = []

    def validate(parameters: Tensor, table: Tensor) -> float:
        seen.append(Learned(parameters.clone(), table.clone(), 0.0))
        return next(values)

    config = make_config(45, "constant")
    found = learn(SUMMARY, BACKBONE, config, mode, seeded(9), validate)
    forty = learn(SUMMARY, BACKBONE, make_config(40, "constant"), mode, seeded(9))
    assert len(seen) == 3
    assert torch.equal(found.parameters, seen[1].parameters)
    assert torch.equal(found.parameters, forty.parameters)
    assert torch.equal(found.table, forty.table)
    assert not torch.equal(found.parameters, seen[2].parameters)
