"""Expected rows by cells of items, against dense definitions in float64."""

import math

import pytest
import torch
from torch import Tensor

from td3engine.summary import item_cells
from td3engine.summary.item_cells import ItemCells
from tests.td3engine.oracles import distance, normal

ITEMS, WIDTH, USERS, POSITIONS = 603, 5, 3, 4
EXACT = 1e-10


def table(items: int = ITEMS) -> Tensor:
    """Rows in clumps, and columns that depend on each other."""
    return (
        normal(0, items, WIDTH, std=0.4) @ normal(1, WIDTH, WIDTH)
        + normal(2, 7, WIDTH)[torch.arange(items) % 7]
    )


def queries() -> Tensor:
    return normal(3, USERS, POSITIONS, WIDTH, std=1.5).requires_grad_()


def dense(C: Tensor, V: Tensor) -> Tensor:
    return (C @ V.T).softmax(-1) @ V


def log_sum(c: Tensor, V: Tensor, cells: ItemCells, near: list[int]) -> Tensor:
    """The function of the module's docstring of one query, cell by cell, item by item."""
    terms = []
    for nth, items in enumerate(cells.items.tolist()):
        own = V[[item for item, empty in zip(items, cells.empty[nth], strict=True) if not empty]]
        if nth in near:
            terms += [c @ row for row in own]
            continue
        apart = (own - own.mean(0)) @ cells.basis
        variance = (apart.square().mean(0) * (c @ cells.basis).square()).sum()
        terms.append(math.log(len(own)) + c @ own.mean(0) + variance / 2)
    return torch.stack(terms).logsumexp(0)


@pytest.mark.parametrize("items", [1, 2, 15, 33, 256, ITEMS])
def test_each_item_lies_in_one_cell(items: int) -> None:
    V = table(items)
    cells = ItemCells.of(V)
    assert sorted(cells.items[~cells.empty].tolist()) == list(range(items))
    assert cells.items.shape[1] >= min(items, item_cells.FEWEST_ITEMS) // 2
    torch.testing.assert_close(cells.rows @ cells.basis.T, V[cells.items], rtol=0, atol=EXACT)


def test_rows_of_a_cell_are_alike() -> None:
    cells = ItemCells.of(table())
    weight = cells.log_count.exp() / ITEMS
    assert (weight[:, None] * cells.variance).sum() < 0.4 * table().var(0).sum()


@pytest.mark.parametrize("at_once", [1, 2**24])
def test_with_all_cells_near_it_is_the_attention(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(item_cells, "SCORES_AT_ONCE", at_once)
    V, C, upstream = table(), queries(), normal(4, USERS, POSITIONS, WIDTH)
    cells = ItemCells.of(V)
    found, expected = cells.expected_rows(C, ITEMS), dense(C, V)
    assert distance(found, expected) < EXACT
    gradients = [torch.autograd.grad(X, C, upstream)[0] for X in (found, expected)]
    assert distance(*gradients) < EXACT
    best = (C @ V.T).flatten(0, 1).topk(4).indices
    assert torch.equal(cells.top(C, ITEMS, 4), best)


@pytest.mark.parametrize("items", [1, 60, 200])
def test_with_few_near_it_is_the_gradient_of_the_log_sum(items: int) -> None:
    V, C, upstream = table(), queries(), normal(4, USERS, POSITIONS, WIDTH)
    cells = ItemCells.of(V)
    found = cells.expected_rows(C, items)
    (to_C,) = torch.autograd.grad(found, C, upstream)
    near = cells.nearest((C.detach() @ cells.basis).flatten(0, 1), cells.near(items))[0]
    assert near.shape[1] * cells.items.shape[1] >= items
    for at, cells_of_query in enumerate(near.tolist()):
        c = C.detach().flatten(0, 1)[at].requires_grad_()
        (X,) = torch.autograd.grad(log_sum(c, V, cells, cells_of_query), c, create_graph=True)
        (expected,) = torch.autograd.grad(X, c, upstream.flatten(0, 1)[at])
        assert distance(found.flatten(0, 1)[at], X) < EXACT
        assert distance(to_C.flatten(0, 1)[at], expected) < EXACT


def test_the_error_is_small_and_falls_with_the_items_that_are_met() -> None:
    V, C, upstream = table(), queries(), normal(4, USERS, POSITIONS, WIDTH)
    cells, expected = ItemCells.of(V), dense(C, V)
    (exact,) = torch.autograd.grad(expected, C, upstream)
    errors = []
    for items in (50, 100, 200, 400):
        found = cells.expected_rows(C, items)
        (gradient,) = torch.autograd.grad(found, C, upstream)
        errors.append((distance(found, expected), distance(gradient, exact)))
    for nth in range(2):
        falling = [error[nth] for error in errors]
        assert falling == sorted(falling, reverse=True)
    assert errors[0][0] < 0.1
    assert errors[-1][1] < 0.02


def test_normally_distributed_scores_need_no_near_items() -> None:
    """Two cumulants are all that a normal distribution has."""
    V = normal(0, 100_000, 2)
    C = normal(1, 1, 5, 2, std=0.5)
    cells = ItemCells.of(V)
    whole = cells.nearest(C[0] @ cells.basis, 1)[1].logsumexp(1)
    torch.testing.assert_close(whole, (C[0] @ V.T).logsumexp(1), rtol=0, atol=2e-3)


def test_items_that_are_all_alike_are_no_trouble() -> None:
    V = torch.ones(40, WIDTH, dtype=torch.float64)
    X = ItemCells.of(V).expected_rows(queries(), 1)
    torch.testing.assert_close(X, torch.ones_like(X))


def test_the_items_of_highest_score_are_found_among_few() -> None:
    V, C = table(), queries().detach() * 4
    found = ItemCells.of(V).top(C, 200, 1).flatten()
    best = (C @ V.T).flatten(0, 1).argmax(-1)
    assert (found == best).float().mean() > 0.9
