"""The summary before distilling: real histories in Tucker form, or noise.

Distilling from noise spends most of its steps on finding out what sequences look like. Real
histories are a far better start, and the Tucker form is no obstacle: every event becomes the query
that points at its item, and the queries' tensor C is factored by the higher-order singular value
decomposition (De Lathauwer, De Moor, Vandewalle, 2000), which keeps what users have in common and
drops what only one of them did. Targets of their own begin as the teacher's expectation at their
position: the inputs are real histories, and the teacher labels them.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from td3engine.config import DistillConfig, SummaryConfig
from td3engine.data.split import Split
from td3engine.runtime.seeding import Purpose, generator, numpy_generator
from td3engine.summary.labelled import AnySummary, LabelledSummary, pointing_queries
from td3engine.summary.packing import rounded
from td3engine.summary.tucker import TuckerSummary
from td3engine.teacher.training import TrainedOnLog

PREFIXES_AT_ONCE = 2**22  # numbers of the rows that a teacher reads at a time


def initial_summary(config: DistillConfig, split: Split, teacher: TrainedOnLog) -> AnySummary:
    """The summary before distilling, from the configuration's seed.

    Args:
        config: size, form and start of the summary, seed.
        split: the log, whose training histories a start from `users` is made of.
        teacher: its item table is V; targets of their own begin as what it expects.
    """
    if config.summary.inputs == "items":
        rng = numpy_generator(config.seed, Purpose.SUMMARY_INITIAL)
        return labelled(real_histories(split, config.summary, rng), config.summary, teacher)
    V_ND = item_factor(teacher, config.summary)
    draw = generator(config.seed, Purpose.SUMMARY_INITIAL, device=V_ND.device.type)
    noise = TuckerSummary.initial(config.summary, V_ND, draw)
    if config.summary.start == "random":
        return noise
    rng = numpy_generator(config.seed, Purpose.SUMMARY_INITIAL)
    items_UT = torch.from_numpy(real_histories(split, config.summary, rng)).to(V_ND.device)
    C_UTD = pointing_queries(items_UT, V_ND, config.summary.sharpness)
    if config.summary.targets == "own":
        C_UTD = torch.cat([C_UTD, C_UTD[:, :1], teachers_labels(items_UT, teacher)], 1)
    return factored(C_UTD, noise, config.summary.initial_std)


def real_histories(
    split: Split, config: SummaryConfig, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The last zeta training events of mu random users, as items (mu, zeta).

    A shorter history is repeated until it fills its row; users are, where the log has too few.
    """
    first, ends = split.offsets[:-1], split.training_ends
    eligible = np.flatnonzero(ends - first >= 2)  # users with a transition
    users = rng.choice(eligible, config.users, replace=len(eligible) < config.users)
    rows = np.empty((config.users, config.length), np.int64)
    for row, user in zip(rows, users, strict=True):
        events = split.histories[first[user] : ends[user]]
        row[::-1] = np.resize(events[::-1], config.length)
    return rows


def labelled(
    items_UT: NDArray[np.int64], config: SummaryConfig, teacher: TrainedOnLog
) -> LabelledSummary:
    """These sequences with the teacher's labels."""
    V_ND = item_factor(teacher, config)
    items = torch.from_numpy(items_UT).to(V_ND.device)
    return LabelledSummary(items, teachers_labels(items, teacher), V_ND, config.sharpness)


def item_factor(teacher: TrainedOnLog, config: SummaryConfig) -> Tensor:
    """V: the teacher's item table, without an item bias, rounded as a file will hold it."""
    width = teacher.model.backbone.config.hidden
    return rounded(teacher.model.table[:, :width], config.table_step)


def teachers_labels(items_UT: Tensor, teacher: TrainedOnLog) -> Tensor:
    """What the teacher expects at positions 1 to zeta - 1, (mu, zeta - 1, d).

    Its hidden states h after the items before, since it scores by h V^T (the item bias of a
    backbone that has one is left out).
    """
    length, width = items_UT.shape[1], teacher.model.backbone.config.hidden
    states = []
    for some_UT in items_UT.split(max(1, PREFIXES_AT_ONCE // length**2)):
        before = torch.arange(1, length).repeat(len(some_UT))
        states_KF = teacher.model.states(some_UT.repeat_interleave(length - 1, 0), before)
        states.append(states_KF.view(len(some_UT), length - 1, -1)[..., :width])
    return torch.cat(states)


def factored(C_UTD: Tensor, noise: TuckerSummary, std: float) -> TuckerSummary:
    """C as near as the ranks allow, by the truncated higher-order singular value decomposition.

    Args:
        C_UTD: queries, (mu, zeta, d), or (mu, 2 zeta, d) with those of targets of their own.
        noise: a summary of these ranks; columns of U, T and Y beyond C's own rank are kept from it.
        std: scale of U's, T's and Y's entries; the core takes up the rest.
    """
    users, positions, _ = C_UTD.shape
    left_UA, left_TB = _left_vectors(C_UTD), _left_vectors(C_UTD.transpose(0, 1))
    U, G = noise.U.clone(), torch.zeros_like(noise.G)
    T = torch.cat([noise.T, *([] if noise.Y is None else [noise.Y])])
    a, b = min(left_UA.shape[1], U.shape[1]), min(left_TB.shape[1], T.shape[1])
    # Orthonormal columns of m entries have entries of size 1 / sqrt(m).
    scale_U, scale_T = std * users**0.5, std * positions**0.5
    U[:, :a], T[:, :b] = scale_U * left_UA[:, :a], scale_T * left_TB[:, :b]
    core_ABD = torch.einsum("utd,ua,tb->abd", C_UTD, left_UA[:, :a], left_TB[:, :b])
    G[:a, :b] = core_ABD / (scale_U * scale_T)
    inputs, *targets = (part.clone() for part in T.split(len(noise.T)))
    return noise.with_learned(U, inputs, G, *targets)


def _left_vectors(C: Tensor) -> Tensor:
    """Left singular vectors of C unfolded along its first dimension m, by falling value: (m, m)
    (or fewer columns, where the others together are fewer than m)."""
    vectors: Tensor = torch.linalg.svd(C.flatten(1), full_matrices=False)[0]
    return vectors
