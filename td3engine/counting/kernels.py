"""Item-to-item kernels of a log's training events, (n, n): how much item j follows from item i.

| kernel | source |
|---|---|
| `transitions` | Markov chains; sequential rules (Ludewig and Jannach, 2018) |
| `cosine` | item-based nearest neighbours (Sarwar et al., 2001) |
| `ease` | EASE (Steck, 2019), in closed form |
"""

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from td3engine.data.split import Split

Kernel = sp.csr_array | NDArray[np.float32]
"""Sparse, or dense where a dense one is small; (n, n), row i is what item i contributes."""

# A dense kernel of this many numbers takes 64 MiB and scores several times as fast.
LARGEST_DENSE = 2**24
# Of a user with more training events only the last ones count: the cost is quadratic in them.
LONGEST_USER = 500


def transitions(split: Split, window: int, decay: float, shrinkage: float) -> Kernel:
    """Share of the events after i that are j, where an event `lag` later counts decay^(lag - 1).

    Args:
        split: the log.
        window: the largest lag.
        decay: of the weight, for each event between.
        shrinkage: added to each row's sum, so that rare items contribute less.
    """
    n = split.n_items
    owner = np.repeat(np.arange(split.n_users), split.lengths)
    trains = np.arange(len(split.histories)) < split.training_ends[owner]
    counts: Any = sp.csr_array((n, n), dtype=np.float32)
    for lag in range(1, window + 1):
        before = np.flatnonzero(trains[lag:] & (owner[lag:] == owner[:-lag]))
        pairs = split.histories[before], split.histories[before + lag]
        weights = np.full(len(before), decay ** (lag - 1), np.float32)
        counts += sp.csr_array((weights, pairs), shape=(n, n))
    # Sums of rows; `sum` has no fixed type.
    total = counts @ np.ones(n, np.float32) + shrinkage
    return _stored(_rows_scaled(counts, 1 / _positive(total)))


def cosine(together: sp.csr_array, exponent: float, *, itself: bool = False) -> Kernel:
    """Users who had both i and j, over (users of i)^exponent (users of j)^(1 - exponent).

    An exponent of 0.5 is the cosine; above it, popular neighbours gain.

    Args:
        together: `co_occurrences`.
        exponent: of the users of the item in the history.
        itself: whether an item is its own neighbour, of weight 1, as where users repeat; else the
            diagonal is zero.
    """
    users = _positive(together.diagonal())
    counted = together
    if not itself:
        counted = together.copy()
        counted.setdiag(0)
        counted.eliminate_zeros()
    scaled = _rows_scaled(counted, users**-exponent)
    scaled = _rows_scaled(scaled.T.tocsr(), users ** (exponent - 1)).T.tocsr()
    return _stored(scaled)


def ease(together: sp.csr_array, ridge: float) -> NDArray[np.float32]:
    """The ridge regression of each item on all others, dense; memory and time grow as n^2 and n^3.

    Args:
        together: `co_occurrences`, the Gram matrix.
        ridge: lambda, added to its diagonal.
    """
    gram = together.toarray()
    gram[np.diag_indices(len(gram))] += ridge
    inverse = torch.linalg.inv(torch.from_numpy(gram)).numpy()
    weights: NDArray[np.float32] = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def co_occurrences(split: Split) -> sp.csr_array:
    """How many users had both items in training, (n, n); on the diagonal, how many had the item."""
    ends = split.training_ends
    first = np.maximum(split.offsets[:-1], ends - LONGEST_USER)
    owner = np.repeat(np.arange(split.n_users), split.lengths)
    positions = np.arange(len(split.histories))
    counted = (positions >= first[owner]) & (positions < ends[owner])
    pairs = owner[counted], split.histories[counted]
    ones = np.ones(len(pairs[0]), np.float32)
    had = sp.csr_array((ones, pairs), shape=(split.n_users, split.n_items))
    had.sum_duplicates()
    had.data[:] = 1
    return (had.T @ had).tocsr()


def stored_bytes(kernel: Kernel) -> int:
    """What the kernel takes, uncompressed: 4 bytes a number, and 4 an index of a sparse one."""
    if isinstance(kernel, np.ndarray):
        # A sparse form is smaller where less than half is there.
        return min(kernel.nbytes, 8 * int(np.count_nonzero(kernel)) + 4 * (len(kernel) + 1))
    return 8 * int(kernel.nnz) + 4 * (kernel.shape[0] + 1)


def _positive(values: NDArray[Any]) -> NDArray[np.float32]:
    """The values, and 1 where they are zero, to divide by."""
    return np.where(values > 0, values, 1).astype(np.float32)


def _rows_scaled(matrix: sp.csr_array, factors: NDArray[Any]) -> sp.csr_array:
    scaled = matrix.copy()
    scaled.data = scaled.data * np.repeat(factors, np.diff(matrix.indptr)).astype(np.float32)
    return scaled


def _stored(kernel: sp.csr_array) -> Kernel:
    return kernel.toarray() if kernel.shape[0] ** 2 <= LARGEST_DENSE else kernel
