"""The formulas of the arithmetic limit against torch's own count."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.arithmetic import GRADIENT, HESSIAN, forward, outer_step, scoring
from benchmarks.textbook import SASRec
from td3engine.config import BackboneConfig
from td3engine.losses.softmax import log_sum_exp
from tests.td3engine.small import paper_config

STATES, ITEMS, WIDTH = 5, 11, 4


@pytest.mark.parametrize(("layers", "heads", "inner"), [(1, 1, 12), (3, 2, 6)])
def test_an_encoder(layers: int, heads: int, inner: int) -> None:
    config = BackboneConfig(hidden=8, inner=inner, layers=layers, heads=heads)
    model = SASRec(config, 10)
    model.reset()
    events = torch.randn(3, 7, 8, requires_grad=True)
    expected = forward(config, 3, 7, targets=3 * 7)
    assert _counted(lambda: model(events).square().sum(), [*model.parameters(), events]) == [
        expected,
        GRADIENT * expected,
        HESSIAN * expected,
    ]


def test_the_last_layer_at_the_asked_positions_alone() -> None:
    """One layer whose keys and values are of all positions, and the rest of one a row."""
    config = BackboneConfig(hidden=8, inner=12, layers=1, heads=1)
    events, last = torch.randn(3, 7, 8), torch.randn(3, 1, 8)
    square, up, down = torch.randn(8, 8), torch.randn(8, 12), torch.randn(12, 8)
    with FlopCounterMode(display=False) as count:
        keys, values = events @ square, events @ square
        mixed = ((last @ square) @ keys.mT).softmax(-1) @ values
        _ = mixed @ square @ up @ down
    assert count.get_total_flops() == forward(config, 3, 7, targets=3)


def test_the_log_sum_exp_keeps_its_probabilities() -> None:
    hidden = torch.randn(STATES, WIDTH, requires_grad=True)
    table = torch.randn(ITEMS, WIDTH)
    expected = scoring(STATES, ITEMS, WIDTH)
    found = _counted(lambda: log_sum_exp(hidden, table).sum(), [hidden])
    # The gradient's product is made with the scores, while they are at hand.
    assert found == [2 * expected, 0, 2 * expected]


def test_soft_sequences() -> None:
    queries = torch.randn(STATES, WIDTH, requires_grad=True)
    table = torch.randn(ITEMS, WIDTH)
    expected = 2 * scoring(STATES, ITEMS, WIDTH)
    found = _counted(lambda: ((queries @ table.T).softmax(-1) @ table).square().sum(), [queries])
    assert found[:2] == [expected, expected]


@pytest.mark.parametrize(
    ("objective", "asked", "targets", "positions"),
    [("last-and-augmented", 12, "next", 32), ("all-positions", 28, "own", 64)],
)
def test_an_outer_step_is_the_sum_of_its_parts(
    objective: str, asked: int, targets: str, positions: int
) -> None:
    learner = {"batch": 4, "objective": objective, "augmented": 2}
    summary = {"targets": targets}
    config = paper_config(learner=learner, outer={"window": 3}, summary=summary)
    found = outer_step(config, ITEMS, real_targets=70)
    # Rows of 8 events: 7 positions are read. 70 targets are 10 such rows.
    inner = forward(config.backbone, 4, 7, targets=asked)
    real = forward(config.backbone, 10, 7, targets=70)
    each, all_real, read = (scoring(states, ITEMS, 8) for states in (asked, 70, positions))
    analytic = 2 * read + 3 * (3 * inner + 2 * each) + 4 * real + 2 * all_real
    assert found.total == analytic + 3 * (6 * inner + 2 * each) + 2 * read


def _counted(compute: Callable[[], Tensor], inputs: Sequence[Tensor]) -> list[int]:
    """Operations of a scalar, of its gradient, and of a product with its Hessian."""
    with FlopCounterMode(display=False) as value_count:
        value = compute()
    with FlopCounterMode(display=False) as gradient_count:
        gradients = torch.autograd.grad(value, inputs, create_graph=True)
    directions = [torch.randn_like(gradient) for gradient in gradients]
    with FlopCounterMode(display=False) as hessian_count:
        torch.autograd.grad(gradients, inputs, directions)
    counts = value_count, gradient_count, hessian_count
    return [count.get_total_flops() for count in counts]
