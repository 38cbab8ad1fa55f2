"""Operations of K learners side by side against the same of each by itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from td3engine.inner_loop import side_by_side as module
from td3engine.inner_loop.side_by_side import RULES, pieces_of, side_by_side
from tests.td3engine.oracles import distance, normal, seeded

K, N, M, D, B = 3, 5, 4, 2, 6
SHARED, SHARED_TO = normal(99, D, M), normal(98, 1, N, M)
PLACES = torch.randint(N, (K, B), generator=seeded(7))  # with repeats


def bias(b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.addmm(b, x, y, alpha=0.5, beta=2)


def added(to: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return to.clone().addmm_(x.t(), y)


def scores(to: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.baddbmm(to, x, y.transpose(1, 2), alpha=0.25)


def products(x: Tensor, y: Tensor) -> Tensor:
    return x @ y.mT


def constant(x: Tensor) -> Tensor:
    return torch.baddbmm(SHARED_TO, x, SHARED.expand(B, D, M))


def put(to: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    return to.clone().index_add_(0, index, rows, alpha=-2)


def put_shared(to: Tensor, rows: Tensor) -> Tensor:
    return to.index_add(0, PLACES[0], rows)


CASES: list[tuple[Callable[..., Tensor], list[Tensor]]] = [
    (torch.mm, [normal(0, K, N, D), normal(1, K, D, M)]),
    (lambda x: x @ SHARED, [normal(0, K, N, D)]),
    (lambda y: SHARED @ y, [normal(0, K, M, N)]),
    (bias, [normal(0, K, M), normal(1, K, N, D), normal(2, K, D, M)]),
    (lambda x, y: torch.addmm(SHARED[0], x, y), [normal(1, K, N, D), normal(2, K, D, M)]),
    (added, [normal(0, K, D, M), normal(1, K, N, D), normal(2, K, N, M)]),
    (products, [normal(0, K, B, N, D), normal(1, K, B, M, D)]),
    (scores, [normal(0, K, B, N, M), normal(1, K, B, N, D), normal(2, K, B, M, D)]),
    (scores, [normal(0, K, 1, N, M), normal(1, K, B, N, D), normal(2, K, B, M, D)]),
    (constant, [normal(0, K, B, N, D)]),
    (put, [normal(0, K, N, D), PLACES, normal(1, K, B, D)]),
    (put_shared, [normal(0, K, N, D), normal(1, K, B, D)]),
]


def traced(function: Callable[..., Any], inputs: list[Tensor]) -> Any:
    return make_fx(functionalize(function))(*(each[0] for each in inputs))


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize(("function", "inputs"), CASES)
def test_each_learner_gets_its_own(
    function: Callable[..., Tensor],
    inputs: list[Tensor],
    in_pieces: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also with products whose long side is cut into pieces, as on a GPU."""
    if in_pieces:
        monkeypatch.setattr(module, "pieces_of", lambda x, _: x.shape[2])
    found = side_by_side(traced(function, inputs))(*inputs)
    wanted = torch.stack([function(*(each[nth] for each in inputs)) for nth in range(K)])
    assert found.shape == wanted.shape
    assert distance(found, wanted) < 1e-14


def test_the_cases_have_every_rule() -> None:
    met = {node.target for case in CASES for node in traced(*case).graph.nodes}
    assert set(RULES) <= met


@pytest.mark.parametrize(("function", "inputs"), CASES)
def test_one_kernel_for_all_learners(function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Of products and sums of rows there are no more than one learner alone takes."""

    def count(graph: Any) -> int:
        heavy = ("mm", "bmm", "addmm", "baddbmm", "index_add")
        names = [str(node.target).split(".")[1:2] for node in graph.graph.nodes]
        return sum(name[0] in heavy for name in names if name)

    alone = traced(function, inputs)
    expected = count(alone)
    assert count(make_fx(side_by_side(alone))(*inputs)) == expected == 1


def test_long_products_of_small_matrices_are_cut_on_a_gpu_only() -> None:
    def pieces(learners: int, long: int, height: int = 32, device: str = "cuda") -> int:
        with FakeTensorMode():
            x = torch.empty(learners, height, long, device=device)
            y = torch.empty(learners, long, 32, device=device)
            return pieces_of(x, y)

    assert pieces(4, 1225, device="cpu") == 1
    assert pieces(1, 1225) == 1  # cuBLAS cuts those itself
    assert pieces(4, 1225) == 49
    assert pieces(16, 1225) == 7
    assert pieces(4, 1225, height=3416) == 1  # enough to do as it is
    assert pieces(4, 31) == 1
    assert pieces(4, 64, height=30) == 1  # a layer, not the gradient of its weights
