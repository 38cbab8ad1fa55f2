"""The least arithmetic of an outer step, and how fast this machine multiplies matrices.

Only products of matrices are counted, 2 operations a term, as `torch.utils.flop_counter` does (a
test compares the two). Softmax, GELU, layer norm, dropout and Adam are arithmetic too, but none of
it would take long in a program that kept its numbers in cache; so the limit is one that nobody
reaches. With y = A B of F operations, a gradient takes 2 F more (to A and to B), and a product with
the Hessian 6 F: both of those, differentiated in turn.
"""

import time
from dataclasses import dataclass

import torch

from td3engine.config import BackboneConfig, DistillConfig

GRADIENT, HESSIAN = 2, 6
RATE_SIZE, RATE_SECONDS = 1024, 0.5


@dataclass(frozen=True)
class Arithmetic:
    """Operations of an outer step of `shared-items` by part (the names that `speed` times)."""

    soft_sequences: int
    window: int
    real_batch: int
    reverse: int
    rest: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def outer_step(config: DistillConfig, n_items: int, real_targets: int) -> Arithmetic:
    """Operations of one outer step, with SASRec; the rows of its real batch are full.

    Args:
        config: the settings.
        n_items: n.
        real_targets: events of a learner's real batch that are predicted.
    """
    backbone, summary, learner, outer = (
        config.backbone,
        config.summary,
        config.learner,
        config.outer,
    )
    d, zeta = backbone.hidden, summary.length
    drawn = learner.objective == "last-and-augmented"
    targets = learner.batch * (1 + learner.augmented if drawn else zeta - 1)
    encoder = forward(backbone, learner.batch, zeta - 1, targets)
    scores = scoring(targets, n_items, d)
    history = config.learner_history
    real_encoder = forward(backbone, real_targets // history, history, real_targets)
    real_scores = scoring(real_targets, n_items, d)
    reading = scoring(summary.users * zeta * (2 if summary.targets == "own" else 1), n_items, d)
    return Arithmetic(
        soft_sequences=2 * reading,
        # The log-sum-exp gives P = softmax(h E^T) with its value; its gradient is P E.
        window=outer.learners * outer.window * ((1 + GRADIENT) * encoder + 2 * scores),
        # The teacher's states are one more forward pass.
        real_batch=outer.learners * ((1 + GRADIENT + 1) * real_encoder + 2 * real_scores),
        # Along v: Z = v E^T, then Q E (td3engine.losses.softmax).
        reverse=outer.learners * outer.window * (HESSIAN * encoder + 2 * scores),
        # To the queries of X = softmax(C V^T) V alone: dX V^T, then that times V.
        rest=2 * reading,
    )


def forward(config: BackboneConfig, rows: int, length: int, targets: int) -> int:
    """Operations of SASRec's forward pass; the last layer computes the asked positions alone, to
    which keys and values of all are needed."""
    d, positions = config.hidden, rows * length

    def layer(computed: int) -> int:
        keys_and_values = 2 * positions * 2 * d * d
        others = 2 * computed * d * (2 * d + 2 * config.inner)
        attention = 2 * 2 * computed * length * d
        return keys_and_values + others + attention

    return (config.layers - 1) * layer(positions) + layer(targets)


def scoring(states: int, n_items: int, d: int) -> int:
    """Operations of h E^T, or of P E."""
    return 2 * states * n_items * d


def matmul_rate(device: torch.device, rows: int = RATE_SIZE, d: int = RATE_SIZE) -> float:
    """Operations a second of (rows, d) times (d, d) in float32, over `RATE_SECONDS`."""
    a = torch.randn(rows, d, device=device)
    b = torch.randn(d, d, device=device)
    out = torch.empty(rows, d, device=device)
    at_once = max(1, 2**30 // (rows * d * d))
    count = 0
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < RATE_SECONDS or not count:
        for _ in range(at_once):
            torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += at_once
    return count * 2 * rows * d * d / spent
