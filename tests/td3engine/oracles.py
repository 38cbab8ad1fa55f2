"""Slow definitions of what the engine computes fast, for its tests: dense, in loops, in float64.

Nothing here calls the engine (a split of given histories apart), so that a mistake in it cannot
hide on both sides of a comparison.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from td3engine.config import BackboneConfig
from td3engine.data.split import Split

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


def temporal_factors(T: Tensor, Y: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows of what is read and of what is to be predicted, position by position."""
    if Y is None:
        return T, T
    last = len(T) - 1
    read = [Y[at] if at == last else T[at] for at in range(len(T))]
    predicted = [T[at] if at == 0 else Y[at] for at in range(len(T))]
    return torch.stack(read), torch.stack(predicted)


def dense_kl(target_KN: Tensor, logits_KN: Tensor) -> Tensor:
    """KL(target || softmax(logits)) per row, by its definition."""
    peak = logits_KN.detach().amax(-1, keepdim=True)
    log_model = logits_KN - peak - (logits_KN - peak).exp().sum(-1, keepdim=True).log()
    return (target_KN * (target_KN.log() - log_model)).sum(-1)


def entropy(target_KN: Tensor) -> Tensor:
    return -(target_KN * target_KN.log()).sum(-1)


@dataclass(frozen=True)
class Textbook:
    """A recommender by its definition: logits h E^T + b, targets dense, real rows one by one.

    Attributes:
        encode: (encoder parameters, embedded rows, dropout masks) -> hidden states; causal.
        size: how many numbers of theta are the encoder's; E and b follow, where they are trained.
        V: the summary's item table.
        own_table: trains an item table E of its own; else E is V.
        biased: trains an item bias b; else b is zero.
    """

    encode: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    size: int
    V: Tensor
    own_table: bool
    biased: bool

    def parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encoder parameters, item table E, item bias b."""
        n, d = self.V.shape
        rest = theta[self.size :]
        assert len(rest) == n * d * self.own_table + n * self.biased
        E = rest[: n * d].reshape(n, d) if self.own_table else self.V
        b = rest[len(rest) - n :] if self.biased else torch.zeros(n, dtype=theta.dtype)
        return theta[: self.size], E, b

    def summary_loss(
        self,
        theta: Tensor,
        S_BTN: Tensor,
        dropout: Tensor | None,
        places: Sequence[Sequence[int]] | None,
        targets_BTN: Tensor | None = None,
    ) -> Tensor:
        """Mean KL of the positions (of each row those given, or all but the first).

        Each position's target is of `targets_BTN`, or what is read there.
        """
        targets_BTN = S_BTN if targets_BTN is None else targets_BTN
        divergence = dense_kl(targets_BTN[:, 1:], self.summary_scores(theta, S_BTN, dropout))
        return mean_at(divergence, places)

    def scored_loss(
        self,
        theta: Tensor,
        S_BTN: Tensor,
        dropout: Tensor | None,
        places: Sequence[Sequence[int]] | None,
        queries_BTD: Tensor,
    ) -> Tensor:
        """Mean squared difference of scores over all items, up to one number on all of a position's
        scores; a query scores by V, and that of the first position counts for nothing."""
        ours = self.summary_scores(theta, S_BTN, dropout)
        theirs = queries_BTD[:, 1:] @ self.V.T
        apart = (ours - ours.mean(-1, keepdim=True)) - (theirs - theirs.mean(-1, keepdim=True))
        return mean_at(apart.square().mean(-1), places)

    def summary_scores(self, theta: Tensor, S_BTN: Tensor, dropout: Tensor | None) -> Tensor:
        """Of all items; column t is of predicting position t + 1."""
        encoder, E, b = self.parts(theta)
        return self.encode(encoder, (S_BTN @ E)[:, :-1], dropout) @ E.T + b

    def real_losses(self, theta: Tensor, events: Tensor, unseen: bool = False) -> Tensor:
        """Cross-entropy of each event of one real row but the first, among all items; or, of each
        that has not come before in its row, among the items that have not."""
        _, E, b = self.parts(theta)
        found = []
        for at, state in enumerate(self.real_states(theta, events), start=1):
            before = events[:at].tolist() if unseen else []
            left = [item for item in range(len(E)) if item not in before]
            if int(events[at]) in left:
                scores = E[left] @ state + b[left]
                place = torch.tensor(left.index(int(events[at])))
                found.append(functional.cross_entropy(scores, place))
        return torch.stack(found) if found else theta.new_zeros(0)

    def real_states(self, theta: Tensor, events: Tensor) -> Tensor:
        """The hidden states that predict those events."""
        encoder, E, _ = self.parts(theta)
        return self.encode(encoder, E[events[:-1]][None], None)[0]

    def real_loss(self, theta: Tensor, rows: Sequence[Tensor], unseen: bool = False) -> Tensor:
        """Mean over all counted events of all rows."""
        return torch.cat([self.real_losses(theta, events, unseen) for events in rows]).mean()


def mean_at(losses: Tensor, places: Sequence[Sequence[int]] | None) -> Tensor:
    """Mean over the positions that are asked of each row, of which the first is none; None: all."""
    if places is None:
        return losses.mean()
    rows = zip(losses, places, strict=True)
    return torch.stack([row[place - 1] for row, asked in rows for place in asked]).mean()


@dataclass(frozen=True)
class TapeAdam:
    """A learner in training with everything on autograd's tape; Adam is written out."""

    theta: Tensor
    m: Tensor
    v: Tensor
    age: int

    def step(self, loss: Tensor, lr: float, weight_decay: float, beta2: float) -> "TapeAdam":
        (g,) = torch.autograd.grad(loss, self.theta, create_graph=True)
        g = g + weight_decay * self.theta
        age = self.age + 1
        m = 0.9 * self.m + 0.1 * g
        v = beta2 * self.v + (1 - beta2) * g**2
        # sqrt() has no derivative at zero: where no gradient has ever come, nothing flows back.
        moved = v > 0
        root = torch.where(moved, torch.where(moved, v, 1.0) / (1 - beta2**age), 0.0)
        root = torch.where(moved, torch.where(moved, root, 1.0).sqrt(), 0.0)
        theta = self.theta - lr * (m / (1 - 0.9**age)) / (root + 1e-8)
        return TapeAdam(theta, m, v, age)


def make_split(histories: Sequence[Sequence[int]], n_items: int) -> Split:
    """A split with these users' items, in time order."""
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])])
    return Split(
        histories=np.array([item for history in histories for item in history], dtype=np.int32),
        offsets=offsets.astype(np.int64),
        times=np.arange(offsets[-1], dtype=np.int64),
        item_ids=[f"i{item}" for item in range(n_items)],
        user_ids=[f"u{user}" for user in range(len(histories))],
    )


def masks_at_all(
    config: BackboneConfig, selected_per_row: Tensor | None, places: list[list[int]], positions: int
) -> Tensor | None:
    """SASRec's masks for all positions, from those that hold only the last layer's at `places`
    (events, one more than positions), which are all unlike."""
    if selected_per_row is None:
        return None
    rows, count, width = len(places), len(places[0]), config.hidden
    assert all(len(set(row)) == count for row in places), "an event with two masks"
    a_layer = rows * positions * (config.heads * positions + 2 * width)
    before = rows * positions * width + (config.layers - 1) * a_layer
    sizes = [before, rows * config.heads * count * positions]
    earlier, attention, *others = selected_per_row.split(
        [*sizes, rows * count * width, rows * count * width]
    )
    whole = [
        torch.ones(rows, config.heads, positions, positions, dtype=selected_per_row.dtype),
        torch.ones(rows, positions, width, dtype=selected_per_row.dtype),
        torch.ones(rows, positions, width, dtype=selected_per_row.dtype),
    ]
    for row, events in enumerate(places):
        for nth, event in enumerate(events):
            asked = attention.view(rows, config.heads, count, positions)
            whole[0][row, :, event - 1] = asked[row, :, nth]
            for mask, other in zip(whole[1:], others, strict=True):
                mask[row, event - 1] = other.view(rows, count, width)[row, nth]
    return torch.cat([earlier, *(mask.flatten() for mask in whole)])
