"""Identities I-1 and I-2 (method, section 3) against the dense definitions, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from td3engine.config import SummaryConfig
from td3engine.losses.cross_entropy import cross_entropy
from td3engine.summary.soft_sequences import (
    ChunkedQueries,
    DenseProbs,
    Precomputed,
    expected_embeddings,
)
from td3engine.summary.tucker import TuckerSummary, query
from tests.td3engine.oracles import (
    dense_kl,
    dense_summary,
    distance,
    entropy,
    leaves,
    normal,
    seeded,
    temporal_factors,
)

MU, ZETA, RANK_U, RANK_T, WIDTH, ITEMS = 3, 5, 2, 4, 6, 11
EXACT = 1e-10


def make_factors(seed: int) -> list[Tensor]:
    """U, T, G, V of scale one, so that the targets are far from uniform."""
    return leaves(
        normal(seed, MU, RANK_U),
        normal(seed + 1, ZETA, RANK_T),
        normal(seed + 2, RANK_U, RANK_T, WIDTH, std=0.5),
        normal(seed + 3, ITEMS, WIDTH),
    )


def assert_same_gradients(
    found: Tensor, wanted: Tensor, inputs: list[Tensor], direction: Tensor | None = None
) -> None:
    ours = torch.autograd.grad(found, inputs, direction, retain_graph=True)
    theirs = torch.autograd.grad(wanted, inputs, direction, retain_graph=True)
    for got, want in zip(ours, theirs, strict=True):
        assert want.norm() > 1e-3  # the comparison says something
        assert distance(got, want) < EXACT


@pytest.mark.parametrize("tied", [True, False])
def test_soft_input_is_attention(tied: bool) -> None:
    """I-1: softmax(C V^T) E without the (mu, zeta, n) probabilities; V = E, and a learner's own."""
    U, T, G, V = make_factors(0)
    E = V if tied else leaves(normal(9, ITEMS, WIDTH))[0]
    found = expected_embeddings(query(U, T, G), V, E)
    wanted = torch.stack([torch.stack([p @ E for p in row]) for row in dense_summary(U, T, G, V)])
    assert found.shape == (MU, ZETA, WIDTH)
    assert distance(found, wanted) < EXACT
    inputs = [U, T, G, V] if tied else [U, T, G, V, E]
    assert_same_gradients(found, wanted, inputs, normal(10, MU, ZETA, WIDTH))


def test_soft_input_of_a_table_of_another_width() -> None:
    U, T, G, V = make_factors(0)
    E = normal(9, ITEMS, WIDTH + 3)
    found = expected_embeddings(query(U, T, G), V, E)
    assert distance(found, dense_summary(U, T, G, V) @ E) < EXACT


def test_soft_input_of_sharp_queries_is_one_item() -> None:
    """Scores in the thousands do not overflow: each position reads the best item's embedding."""
    U, T, G, V = make_factors(0)
    C = query(U, T, G * 1e4)
    best = (C @ V.T).argmax(-1)
    assert distance(expected_embeddings(C, V, V), V[best]) < EXACT


@pytest.mark.parametrize("seed", [0, 20])
def test_soft_target_is_an_inner_product(seed: int) -> None:
    """I-2: KL(S_t || softmax(h E^T)) + H(S_t), without S; gradients to h and to U, T, G."""
    U, T, G, V = make_factors(seed)
    (h,) = leaves(normal(seed + 5, MU * ZETA, WIDTH))
    E = V.detach()
    X = expected_embeddings(query(U, T, G), E, E).reshape(-1, WIDTH)
    S = dense_summary(U, T, G, E).reshape(-1, ITEMS)
    found = cross_entropy(h, X, E)
    wanted = dense_kl(S, h @ E.T) + entropy(S)
    assert distance(found, wanted) < EXACT
    weights = normal(seed + 6, MU * ZETA)
    assert_same_gradients(found, wanted, [h, U, T, G], weights)
    # The entropy is a constant to the learner: the gradient to h is the plain KL's.
    assert_same_gradients(found, dense_kl(S, h @ E.T), [h], weights)
    # It is none to the summary: without the learner between, the two gradients do differ.
    ours = torch.autograd.grad(found, U, weights, retain_graph=True)[0]
    assert distance(ours, torch.autograd.grad(dense_kl(S, h @ E.T), U, weights)[0]) > 0.1


def test_soft_target_with_a_table_that_trains() -> None:
    """`from-scratch`: the learner's own E, key V; gradients to h and E as by definition."""
    U, T, G, V = (factor.detach() for factor in make_factors(3))
    h, E = leaves(normal(8, MU * ZETA, WIDTH), normal(9, ITEMS, WIDTH))
    X = expected_embeddings(query(U, T, G), V, E).reshape(-1, WIDTH)
    S = dense_summary(U, T, G, V).reshape(-1, ITEMS)
    found = cross_entropy(h, X, E)
    wanted = dense_kl(S, h @ E.T) + entropy(S)
    assert distance(found, wanted) < EXACT
    assert_same_gradients(found, wanted, [h, E], normal(10, MU * ZETA))


def with_one(h: Tensor) -> Tensor:
    """[h | 1]: a hidden state as it is scored against [E | b]."""
    return torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], 1)


@pytest.mark.parametrize("seed", [0, 20])
def test_soft_target_with_an_item_bias(seed: int) -> None:
    """I-2 with logits h E^T + b: the scoring table [E | b] is read with key V, one column more, and
    gradients go to h, E, b and to U, T, G."""
    U, T, G, V = make_factors(seed)
    V = V.detach()
    h, E, b = leaves(
        normal(seed + 5, MU * ZETA, WIDTH), normal(seed + 6, ITEMS, WIDTH), normal(seed + 7, ITEMS)
    )
    table = torch.cat([E, b[:, None]], 1)
    expected = expected_embeddings(query(U, T, G), V, table).reshape(-1, WIDTH + 1)
    S = dense_summary(U, T, G, V).reshape(-1, ITEMS)
    assert distance(expected[:, :WIDTH], S @ E) < EXACT
    assert distance(expected[:, WIDTH], S @ b) < EXACT
    found = cross_entropy(with_one(h), expected, table)
    wanted = dense_kl(S, h @ E.T + b) + entropy(S)
    assert distance(found, wanted) < EXACT
    assert_same_gradients(found, wanted, [h, E, b, U, T, G], normal(seed + 8, MU * ZETA))


def test_readers_agree_with_the_definition() -> None:
    """From S and a table, from the queries by attention, and X that was made before."""
    U, T, G, V = (factor.detach() for factor in make_factors(3))
    S = dense_summary(U, T, G, V)
    (table,) = leaves(normal(9, ITEMS, WIDTH + 1))
    wanted = torch.einsum("utn,nf->utf", S, table)
    direction = normal(10, MU, ZETA, WIDTH + 1)
    for found in (DenseProbs(V).read(S, table), ChunkedQueries(V).read(query(U, T, G), table)):
        assert distance(found, wanted) < EXACT
        assert_same_gradients(found, wanted, [table], direction)
    X = wanted.detach()
    assert Precomputed(V).read(X, table) is X


def test_dense_reading_is_twice_differentiable_in_both() -> None:
    """Against finite differences of its gradient, as the meta-gradient needs it."""
    S, table = leaves(normal(0, 2, 3, 4).softmax(-1), normal(1, 4, 2))
    assert torch.autograd.gradgradcheck(DenseProbs(table).read, (S, table))


def test_a_hard_target_is_the_usual_cross_entropy() -> None:
    h, E = leaves(normal(0, 7, WIDTH))[0], normal(1, ITEMS, WIDTH)
    items = torch.tensor([0, 10, 3, 3, 5, 1, 9])
    found = cross_entropy(h, E[items], E)
    wanted = functional.cross_entropy(h @ E.T, items, reduction="none")
    assert distance(found, wanted) < EXACT
    assert_same_gradients(found, wanted, [h], normal(2, 7))


def test_the_entropy_drops_out_of_the_meta_gradient() -> None:
    """Through two inner SGD steps: with I-2, with dense KL, and with dense KL plus entropy."""
    U, T, G, V = make_factors(40)
    E = V.detach()
    W = normal(44, WIDTH, WIDTH)
    real_input, real_item = normal(45, 4, WIDTH), torch.tensor([0, 3, 7, 10])

    def meta_gradient(inner_loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        weights = W.clone().requires_grad_()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(inner_loss(weights), weights, create_graph=True)
            weights = weights - 0.3 * gradient
        outer = functional.cross_entropy(real_input @ weights @ E.T, real_item)
        return torch.autograd.grad(outer, [U, T, G])

    def with_identities(weights: Tensor) -> Tensor:
        X = expected_embeddings(query(U, T, G), E, E)
        hidden = X[:, :-1].reshape(-1, WIDTH) @ weights
        return cross_entropy(hidden, X[:, 1:].reshape(-1, WIDTH), E).mean()

    def dense(weights: Tensor, with_entropy: bool) -> Tensor:
        S = dense_summary(U, T, G, E)
        target = S[:, 1:].reshape(-1, ITEMS)
        logits = (S[:, :-1] @ E).reshape(-1, WIDTH) @ weights @ E.T
        loss = dense_kl(target, logits)
        return (loss + entropy(target) if with_entropy else loss).mean()

    ours = meta_gradient(with_identities)
    plain = meta_gradient(lambda weights: dense(weights, with_entropy=False))
    constant = meta_gradient(lambda weights: dense(weights, with_entropy=True))
    for got, want, same in zip(ours, plain, constant, strict=True):
        assert want.norm() > 1e-3
        assert distance(got, want) < EXACT
        assert distance(same, want) < EXACT


def test_initial_summary() -> None:
    """Reproducible by the generator, V untouched, scales as told, sizes as counted by hand."""
    config = SummaryConfig(users=40, length=50, user_rank=16, time_rank=4, initial_std=0.3)
    V = normal(0, 12, 7).float()
    one, same, other = (TuckerSummary.initial(config, V, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.V, V)
    for factor, again, different in zip(one.learned, same.learned, other.learned, strict=True):
        assert factor.dtype == torch.float32
        assert torch.equal(factor, again)
        assert not torch.equal(factor, different)
    assert [tuple(each.shape) for each in one.learned] == [(40, 16), (50, 4), (16, 4, 7), (50, 4)]
    # 40*16 + 50*4 + 16*4*7 + 50*4 = 640 + 200 + 448 + 200 = 1488 learned; V has 12*7 = 84.
    assert (one.numbers_learned, one.numbers_stored) == (1488, 1572)
    assert one.Y is not None
    assert torch.equal(one.Y, one.T)
    plain = TuckerSummary.initial(config.model_copy(update={"targets": "next"}), V, seeded(1))
    assert plain.Y is None
    assert plain.numbers_learned == 1288
    assert all(torch.equal(*pair) for pair in zip(plain.learned, one.learned, strict=False))
    # Kaiming's normal rule for (16, 4, 7): std = sqrt(2 / (4 * 7)), as torch's own initialiser.
    core = torch.nn.init.kaiming_normal_(torch.empty(16, 4, 7), generator=seeded(3)).std()
    assert float(core) == pytest.approx((2 / 28) ** 0.5, rel=0.1)
    for factor, std in zip(one.learned, (0.3, 0.3, float(core), 0.3), strict=True):
        assert float(factor.std()) == pytest.approx(std, rel=0.2)
        assert abs(float(factor.mean())) < 4 * std / factor.numel() ** 0.5


def test_targets_of_their_own_lie_behind_what_is_read() -> None:
    """Of both by the definition, with gradients; without Y targets are what is read.

    The first position, which has nothing before it, and the last one have but one query.
    """
    U, T, G, V = make_factors(5)
    (Y,) = leaves(normal(11, *T.shape))
    both = TuckerSummary(U, T, G, V, Y)
    read, predicted = temporal_factors(T, Y)
    assert distance(both.soft_sequences().inputs, query(U, read, G)) < EXACT
    assert distance(both.soft_sequences().targets, query(U, predicted, G)) < EXACT
    last = [part[:, -1] for part in (both.soft_sequences().inputs, both.soft_sequences().targets)]
    assert distance(*last) < EXACT
    assert both.positions == 2 * MU * ZETA
    found = expected_embeddings(query(*both.learned), V, V)
    wanted = torch.cat([dense_summary(U, each, G, V) @ V for each in (read, predicted)], 1)
    assert distance(found, wanted) < EXACT
    assert_same_gradients(found, wanted, [U, T, G, V, Y], normal(12, *wanted.shape))
    plain = TuckerSummary(U, T, G, V)
    assert torch.equal(plain.soft_sequences().targets, plain.soft_sequences().inputs)
    assert torch.equal(plain.soft_sequences().inputs, query(U, T, G))
    assert plain.positions == MU * ZETA
    assert [each is own for each, own in zip(both.learned, (U, T, G, Y), strict=True)] == [True] * 4
    moved = both.to(torch.device("cpu"))
    assert moved.Y is not None
    assert torch.equal(moved.Y, Y)
    assert torch.equal(moved.V, V)
    with pytest.raises(AssertionError):  # not one factor fewer, unnoticed
        both.with_learned(U, T, G)
