"""The log-sum-exp over the catalogue against torch's own, to the second order, in float64.

Every test of it runs in three ways: with all scores at once and P kept for the way back; in chunks
that end with a short one; and a row at a time because a row alone has more scores than allowed.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from td3engine.losses import softmax
from td3engine.losses.cross_entropy import mean_score
from td3engine.losses.softmax import log_sum_exp, mean_expected_score, mean_log_sum_exp
from tests.td3engine.oracles import distance, leaves, normal

ROWS, WIDTH, ITEMS = 7, 6, 11
EXACT = 1e-10
# Scores at once, largest P that is kept: 7 rows of 11 items are 77 scores.
WAYS = {"kept": (1000, 1000), "recomputed": (1000, 0), "chunks": (3 * ITEMS, 76), "rows": (5, 5)}
TRAINED = ["hidden", "table", "both"]


@pytest.fixture(autouse=True, params=sorted(WAYS))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    at_once, kept = WAYS[request.param]
    monkeypatch.setattr(softmax, "SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(softmax, "KEPT_SCORES", kept)
    return str(request.param)


def plain(hidden: Tensor, table: Tensor) -> Tensor:
    return torch.logsumexp(hidden @ table.T, -1)


def arguments(trained: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Hidden states, item table, and those of them that are trained."""
    hidden, table = normal(0, ROWS, WIDTH), normal(1, ITEMS, WIDTH)
    hidden.requires_grad_(trained != "table")
    table.requires_grad_(trained != "hidden")
    return hidden, table, [each for each in (hidden, table) if each.requires_grad]


@pytest.mark.parametrize("trained", TRAINED)
def test_value_and_both_derivatives(trained: str) -> None:
    """Second order along random directions: to what is trained, and to the upstream weights."""
    hidden, table, inputs = arguments(trained)
    (upstream,) = leaves(normal(2, ROWS))
    values = [log_sum_exp(hidden, table), plain(hidden, table)]
    assert distance(*values) < EXACT
    firsts = [torch.autograd.grad(value, inputs, upstream, create_graph=True) for value in values]
    directions = [normal(3 + nth, *each.shape) for nth, each in enumerate(inputs)]
    seconds = [
        torch.autograd.grad(first, [*inputs, upstream], directions, retain_graph=True)
        for first in firsts
    ]
    for found, wanted in [*zip(*firsts, strict=True), *zip(*seconds, strict=True)]:
        assert wanted.norm() > 1e-3  # the comparison says something
        assert distance(found, wanted) < EXACT


@pytest.mark.parametrize("along", [0, 1])
def test_the_second_derivative_along_one_of_the_first_alone(along: int) -> None:
    """Of hidden states and table both trained, only one's gradient is used, and to both."""
    hidden, table, inputs = arguments("both")
    (upstream,) = leaves(normal(2, ROWS))
    seconds = []
    for value in (log_sum_exp(hidden, table), plain(hidden, table)):
        (first,) = torch.autograd.grad(value, inputs[along], upstream, create_graph=True)
        direction = normal(3, *first.shape)
        seconds.append(torch.autograd.grad(first, [*inputs, upstream], direction))
    for found, wanted in zip(*seconds, strict=True):
        assert wanted.norm() > 1e-3
        assert distance(found, wanted) < EXACT


def test_the_second_derivative_to_one_alone() -> None:
    """What is not asked for is neither needed nor disturbed."""
    hidden, table, inputs = arguments("both")
    weights = normal(2, ROWS)
    for nth in range(2):
        found, wanted = (
            torch.autograd.grad(
                torch.autograd.grad(value, inputs, weights, create_graph=True),
                inputs[nth],
                [normal(3, ROWS, WIDTH), normal(4, ITEMS, WIDTH)],
            )[0]
            for value in (log_sum_exp(hidden, table), plain(hidden, table))
        )
        assert distance(found, wanted) < EXACT


@pytest.mark.parametrize("trained", TRAINED)
def test_against_finite_differences(trained: str) -> None:
    """Undefined upstream gradients, which autograd may hand in at either order, included."""
    hidden, table, _ = arguments(trained)
    assert torch.autograd.gradcheck(log_sum_exp, (hidden[:3], table[:4]))
    assert torch.autograd.gradgradcheck(log_sum_exp, (hidden[:3], table[:4]))


def test_nothing_trained_has_no_graph() -> None:
    hidden, table = normal(0, ROWS, WIDTH), normal(1, ITEMS, WIDTH)
    for of in (log_sum_exp, mean_log_sum_exp):
        assert not of(hidden, table).requires_grad
    keys = normal(2, ITEMS, WIDTH).requires_grad_()
    assert not mean_expected_score(hidden, table, hidden, keys).requires_grad


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("cache", [12, 2 * ITEMS, 1000])
@pytest.mark.parametrize("largest", [0.0, 60.0])
def test_mean_and_its_gradient(
    trained: str, cache: int, largest: float, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """In chunks of one row and of more, and in blocks of items where scores are small; the last
    ones not full. And with every score taken for a large one."""
    monkeypatch.setattr(softmax, "SCORES_IN_CACHE", cache)
    monkeypatch.setattr(softmax, "FEWEST_ROWS", 1)
    monkeypatch.setattr(softmax, "ROWS_OF_A_BLOCK", 3)
    monkeypatch.setattr(softmax, "LARGEST_SCORE", largest)
    hidden, table, inputs = arguments(trained)
    values = [mean_log_sum_exp(hidden, table), plain(hidden, table).mean()]
    assert distance(*values) < EXACT
    firsts = [torch.autograd.grad(3 * value, inputs) for value in values]
    for found, wanted in zip(*firsts, strict=True):
        assert distance(found, wanted) < EXACT


def test_mean_of_huge_scores_and_of_no_rows() -> None:
    hidden, table = leaves(normal(0, ROWS, WIDTH, std=1e6), normal(1, ITEMS, WIDTH))
    found = mean_log_sum_exp(hidden, table)
    assert distance(found, plain(hidden, table).mean()) < EXACT
    (first,) = torch.autograd.grad(found, hidden)
    assert distance(first, (hidden @ table.T).softmax(-1) @ table / ROWS) < 1e-9
    nothing = mean_log_sum_exp(hidden[:0], table)
    assert nothing == 0
    assert not any(first.any() for first in torch.autograd.grad(nothing, [hidden, table]))


@pytest.mark.parametrize("largest", [1.0, 59.0, 61.0, 1e4])
@pytest.mark.parametrize("trained", TRAINED)
def test_float32_means_keep_their_digits(largest: float, trained: str) -> None:
    """Scores that exp can take as they are, just so and not, of both signs."""
    hidden, table = normal(0, ROWS, WIDTH), normal(1, ITEMS, WIDTH)
    hidden *= largest / (hidden.norm(dim=1).max() * table.norm(dim=1).max())
    found, wanted = [hidden.float(), table.float()], [hidden, table]
    which = [nth for nth in range(2) if trained in (("hidden", "table")[nth], "both")]
    for nth in which:
        found[nth].requires_grad_()
        wanted[nth].requires_grad_()
    value = mean_log_sum_exp(*found)
    assert value.dtype == torch.float32
    assert distance(value.double(), plain(*wanted).mean()) < 1e-6
    ours = torch.autograd.grad(value, [found[nth] for nth in which])
    theirs = torch.autograd.grad(plain(*wanted).mean(), [wanted[nth] for nth in which])
    for one, other in zip(ours, theirs, strict=True):
        assert distance(one.double(), other) < 2e-6 * max(1.0, largest / 60)


def test_a_mean_of_what_is_no_number_is_none() -> None:
    hidden, table = leaves(normal(0, ROWS, WIDTH), normal(1, ITEMS, WIDTH))
    with torch.no_grad():
        hidden[2, 1] = float("nan")
    assert mean_log_sum_exp(hidden, table).isnan()


def test_mean_has_one_derivative() -> None:
    hidden, table, inputs = arguments("both")
    first = torch.autograd.grad(mean_log_sum_exp(hidden, table), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(first[0].sum(), inputs)


@pytest.mark.parametrize("scale", [1e3, 1e6])
@pytest.mark.parametrize("sign", [1, -1])
def test_huge_scores(scale: float, sign: int) -> None:
    """exp() of these overflows or vanishes; the value is the best score, the gradient its item."""
    hidden, table = leaves(
        sign * scale * torch.tensor([[3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 5.0, 0.0]]).double(),
        torch.eye(4, dtype=torch.float64)[[0, 1, 2, 2]],  # two items tie
    )
    found = log_sum_exp(hidden, table)
    assert distance(found, plain(hidden, table)) < EXACT
    firsts = torch.autograd.grad(found.sum(), [hidden, table], create_graph=True)
    P = (hidden @ table.T).softmax(-1)
    # P is exp(score - value), so a value of 1e6 costs it six of sixteen digits.
    assert distance(firsts[0], P @ table) < scale * 1e-15
    assert distance(firsts[1], P.T @ hidden) < scale * 1e-15
    seconds = torch.autograd.grad(firsts, [hidden, table], [normal(0, 2, 4), normal(1, 4, 4)])
    assert all(torch.isfinite(each).all() for each in seconds)


def test_scores_beyond_all_digits_overflow_nothing() -> None:
    hidden, table = leaves(normal(0, ROWS, WIDTH, std=1e150), normal(1, ITEMS, WIDTH))
    found = log_sum_exp(hidden, table)
    assert distance(found, (hidden @ table.T).amax(-1)) < EXACT
    firsts = torch.autograd.grad(found.sum(), [hidden, table], create_graph=True)
    best = (hidden @ table.T).argmax(-1)
    assert distance(firsts[0], table[best]) < EXACT
    seconds = torch.autograd.grad(firsts[0], hidden, torch.ones_like(hidden))
    assert torch.isfinite(seconds[0]).all()


def test_float32_keeps_its_digits() -> None:
    """Both where one item has all the probability and where all share it."""
    table = normal(0, 500, 8)
    for scale in (0.0, 1e-3, 1.0, 30.0):
        hidden = normal(1, 20, 8, std=scale)
        found = log_sum_exp(hidden.float(), table.float())
        assert found.dtype == torch.float32
        assert distance(found.double(), plain(hidden, table)) < 2e-7


def test_no_rows_at_all() -> None:
    hidden, table = leaves(normal(0, 0, WIDTH), normal(1, ITEMS, WIDTH))
    found = log_sum_exp(hidden, table)
    assert found.shape == (0,)
    firsts = torch.autograd.grad(found.sum(), [hidden, table], create_graph=True)
    seconds = torch.autograd.grad(firsts, [hidden, table], [hidden.detach(), table.detach()])
    for each in (*firsts, *seconds):
        assert not each.any()
    assert firsts[0].shape == (0, WIDTH)
    assert firsts[1].shape == (ITEMS, WIDTH)


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("largest", [0.0, 60.0])
def test_the_score_that_another_model_expects(
    trained: str, largest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other width than ours; value and gradients, and none to the other model."""
    monkeypatch.setattr(softmax, "LARGEST_SCORE", largest)
    hidden, table, inputs = arguments(trained)
    given, keys = leaves(normal(4, ROWS, WIDTH + 1), normal(5, ITEMS, WIDTH + 1))
    found = mean_expected_score(hidden, table, given, keys)
    wanted = ((given @ keys.T).detach().softmax(-1) * (hidden @ table.T)).sum() / ROWS
    assert distance(found, wanted) < EXACT
    both = [
        torch.autograd.grad(value * 2.5, [*inputs, given, keys], materialize_grads=True)
        for value in (found, wanted)
    ]
    for nth, (ours, theirs) in enumerate(zip(*both, strict=True)):
        assert (theirs.norm() > 1e-3) == (nth < len(inputs))
        assert distance(ours, theirs) < EXACT or not (ours.any() or theirs.any())


def test_no_rows_expect_no_score() -> None:
    table = normal(1, ITEMS, WIDTH).requires_grad_()
    none = torch.empty(0, WIDTH)
    value = mean_expected_score(none, table, none, normal(2, ITEMS, WIDTH))
    assert value.item() == 0.0
    (gradient,) = torch.autograd.grad(value, table)
    assert not gradient.any()


class MostScores(TorchDispatchMode):
    """Remembers the size of the largest tensor over items that anything gave in the block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        # (rows, ITEMS), and not the transposed table.
        scores = isinstance(out, Tensor) and out.dim() == 2 and out.shape[1] == ITEMS
        if scores and len(out) != WIDTH:
            self.most = max(self.most, out.numel())
        return out


def test_no_more_scores_at_once_than_allowed(way: str) -> None:
    """Forward, backward and the way back of that; a row is never cut."""
    hidden, table, inputs = arguments("both")
    with MostScores() as seen:
        firsts = torch.autograd.grad(log_sum_exp(hidden, table).sum(), inputs, create_graph=True)
        torch.autograd.grad(firsts, inputs, [torch.ones_like(each) for each in inputs])
    rows = {"kept": ROWS, "recomputed": ROWS, "chunks": 3, "rows": 1}[way]
    assert seen.most == rows * ITEMS


def test_no_more_of_another_models_scores_at_once_either(way: str) -> None:
    hidden, table, inputs = arguments("both")
    with MostScores() as seen:
        value = mean_expected_score(hidden, table, normal(4, ROWS, WIDTH), normal(5, ITEMS, WIDTH))
        torch.autograd.grad(value, inputs)
    rows = {"kept": ROWS, "recomputed": ROWS, "chunks": 3, "rows": 1}[way]
    assert seen.most == rows * ITEMS


@pytest.mark.parametrize("cache", [2 * ITEMS, 1000])
def test_means_whose_rows_weigh_unlike(cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients against the definition, in one chunk of rows and in several."""
    monkeypatch.setattr(softmax, "SCORES_IN_CACHE", cache)
    monkeypatch.setattr(softmax, "FEWEST_ROWS", 1)
    weight = normal(6, ROWS, 1).square()
    weight[1] = 0.0
    given, keys = normal(2, ROWS, 4), normal(3, ITEMS, 4)
    hidden, table = leaves(normal(0, ROWS, WIDTH), normal(1, ITEMS, WIDTH))
    theirs = (given @ keys.T).softmax(-1)
    scores = hidden @ table.T
    of_row = {
        "log-sum-exp": scores.logsumexp(-1),
        "expected": (theirs * scores).sum(-1),
        "score": (hidden * table[:ROWS]).sum(-1),
    }
    found = {
        "log-sum-exp": mean_log_sum_exp(hidden, table, weight),
        "expected": mean_expected_score(hidden, table, given, keys, weight),
        "score": mean_score(hidden, table[:ROWS], weight),
    }
    for name, each in of_row.items():
        wanted = (each * weight[:, 0]).sum()
        assert distance(found[name], wanted) < EXACT
        ours = torch.autograd.grad(3 * found[name], [hidden, table])
        for one, other in zip(
            ours, torch.autograd.grad(3 * wanted, [hidden, table], retain_graph=True), strict=True
        ):
            assert distance(one, other) < EXACT
