"""Slow definitions of what the engine computes fast, for its tests: dense, in loops, in float64.

Nothing here calls the engine (a split of given histories apart), so that a mistake in it cannot
hide on both sides of a comparison.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor

from td3engine.interactions import Split

torch.set_num_threads(1)  # tiny tensors: more threads only cost


@contextmanager
def default_double() -> Iterator[None]:
    """New tensors are float64 in this block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def normal(seed: int, *shape: int, std: float = 1.0) -> Tensor:
    """N(0, std^2) in float64."""
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64) * std


def seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def leaves(*tensors: Tensor) -> list[Tensor]:
    """Copies that gradients are taken with respect to."""
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative error in the Euclidean norm. NaN if either has one."""
    return float((found - wanted).detach().norm() / wanted.detach().norm())


def dense_summary(U: Tensor, T: Tensor, G: Tensor, V: Tensor) -> Tensor:
    """S = softmax over items of G x1 U x2 T x3 V, (mu, zeta, n), a term of the core at a time."""
    logits = U.new_zeros(len(U), len(T), len(V))
    for i in range(U.shape[1]):
        for j in range(T.shape[1]):
            relation = (V * G[i, j]).sum(-1)
            logits = logits + U[:, i, None, None] * T[None, :, j, None] * relation
    weights = (logits - logits.detach().amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def dense_kl(target_KN: Tensor, logits_KN: Tensor) -> Tensor:
    """KL(target || softmax(logits)) per row, by its definition."""
    peak = logits_KN.detach().amax(-1, keepdim=True)
    log_model = logits_KN - peak - (logits_KN - peak).exp().sum(-1, keepdim=True).log()
    return (target_KN * (target_KN.log() - log_model)).sum(-1)


def entropy(target_KN: Tensor) -> Tensor:
    return -(target_KN * target_KN.log()).sum(-1)


def make_split(histories: Sequence[Sequence[int]], n_items: int) -> Split:
    """A split with these users' items, in time order."""
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])])
    return Split(
        histories=np.array([item for history in histories for item in history], dtype=np.int32),
        offsets=offsets.astype(np.int64),
        item_ids=[f"i{item}" for item in range(n_items)],
        user_ids=[f"u{user}" for user in range(len(histories))],
    )
