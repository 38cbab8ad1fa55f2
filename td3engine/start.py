"""The summary before distilling: real histories in Tucker form, or noise.

Distilling from noise spends most of its steps on finding out what sequences look like. Real
histories are a far better start, and the Tucker form is no obstacle: every event becomes the query
that points at its item, and the queries' tensor C is factored by the higher-order singular value
decomposition (De Lathauwer, De Moor, Vandewalle, 2000), which keeps what users have in common and
drops what only one of them did.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from td3engine.config import DistillConfig, SummaryConfig
from td3engine.interactions import Split
from td3engine.seeding import Purpose, generator, numpy_generator
from td3engine.summary import Summary


def initial_summary(config: DistillConfig, split: Split, V_ND: Tensor) -> Summary:
    """The summary before distilling, from the configuration's seed.

    Args:
        config: size and start of the summary, seed.
        split: the log, whose training histories a start from `users` is made of.
        V_ND: the teacher's item table, (n, d).
    """
    draw = generator(config.seed, Purpose.SUMMARY_INITIAL, device=V_ND.device.type)
    noise = Summary.initial(config.summary, V_ND, draw)
    if config.summary.start == "random":
        return noise
    rng = numpy_generator(config.seed, Purpose.SUMMARY_INITIAL)
    items_UT = real_histories(split, config.summary, rng)
    C_UTD = pointing_queries(torch.from_numpy(items_UT).to(V_ND.device), V_ND, config.summary)
    return factored(C_UTD, noise, config.summary.initial_std)


def real_histories(
    split: Split, config: SummaryConfig, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The last zeta training events of mu random users, as items (mu, zeta).

    A shorter history is repeated until it fills its row; users are, where the log has too few.
    """
    first, ends = split.offsets[:-1], split.training_ends
    able = np.flatnonzero(ends - first >= 2)  # users with a transition
    users = rng.choice(able, config.users, replace=len(able) < config.users)
    rows = np.empty((config.users, config.length), np.int64)
    for row, user in zip(rows, users, strict=True):
        events = split.histories[first[user] : ends[user]]
        row[::-1] = np.resize(events[::-1], config.length)
    return rows


def pointing_queries(items_UT: Tensor, V_ND: Tensor, config: SummaryConfig) -> Tensor:
    """Queries C (mu, zeta, d) of one length that point at the items' rows of V.

    Their length is such that an event's item scores log(n) + `sharpness` above the mean item, on
    average; at a sharpness of zero it has about the weight of all others together.
    """
    centred_ND = V_ND - V_ND.mean(0)
    rows_UTD = centred_ND[items_UT]
    lengths_UT = rows_UTD.norm(dim=-1).clamp(min=torch.finfo(V_ND.dtype).eps)
    norm = (math.log(len(V_ND)) + config.sharpness) / float(lengths_UT.mean())
    queries: Tensor = rows_UTD * (norm / lengths_UT[..., None])
    return queries


def factored(C_UTD: Tensor, noise: Summary, std: float) -> Summary:
    """C as near as the ranks allow, by the truncated higher-order singular value decomposition.

    Args:
        C_UTD: queries, (mu, zeta, d).
        noise: a summary of the wanted ranks; columns of U and T beyond C's own rank stay its.
        std: scale of U's and T's entries; the core takes up the rest.
    """
    users, length, _ = C_UTD.shape
    left_UA, left_TB = _left_vectors(C_UTD), _left_vectors(C_UTD.transpose(0, 1))
    U, T, G = noise.U.clone(), noise.T.clone(), torch.zeros_like(noise.G)
    a, b = min(left_UA.shape[1], U.shape[1]), min(left_TB.shape[1], T.shape[1])
    # Orthonormal columns of m entries have entries of size 1 / sqrt(m).
    scale_U, scale_T = std * users**0.5, std * length**0.5
    U[:, :a], T[:, :b] = scale_U * left_UA[:, :a], scale_T * left_TB[:, :b]
    core_ABD = torch.einsum("utd,ua,tb->abd", C_UTD, left_UA[:, :a], left_TB[:, :b])
    G[:a, :b] = core_ABD / (scale_U * scale_T)
    return noise.with_learned(U, T, G)


def _left_vectors(C: Tensor) -> Tensor:
    """Left singular vectors of C unfolded along its first dimension m, by falling value: (m, m)
    (or fewer columns, where the others together are fewer than m)."""
    vectors: Tensor = torch.linalg.svd(C.flatten(1), full_matrices=False)[0]
    return vectors
