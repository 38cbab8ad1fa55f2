"""How large a summary is, before it is made, and what fits into a budget. Imports no torch.

Numbers on a grid of step s (in standard deviations) have an entropy of about log2(sqrt(2 pi e) / s)
bits if they are normal: 4.4 bits at 0.2, 3.0 at 0.5. The files' coder needs some more, and steps
are rounded down to three significant bits.
"""

import math
from dataclasses import dataclass, replace

from td3engine.errors import ConfigError

LARGEST_SHARE = 0.28  # of a log's own normalised Parquet, that a summary takes by default
MOST_USERS = 100  # by default: with more, learners gain little on any log of docs/results.md
LABELS_SUFFICE = 1000  # positions, from which on distilling adds less than its seconds are worth
COARSEST_TABLE = 0.4  # steps of the item table: quality falls from here on
MANIFEST_BYTES = 16_000
BITS_OVER_ENTROPY = 0.3  # a number: LZMA's part, and that of steps rounded down
LONG_STEPS = 60  # outer steps of summaries that are small for their log
INNER_STEP_SECONDS = 0.002  # of one core: what a step costs whatever its sizes
NUMBERS_A_SECOND = 2e7  # of hidden states and trained tables that steps go through


@dataclass(frozen=True)
class Sizes:
    """What decides a summary's bytes.

    Attributes:
        items: n.
        users, length, width: mu, zeta and d.
        table_step, label_step: of rounding, in standard deviations; 0 is float32.
        id_bytes: of the item ids, compressed.
    """

    items: int
    users: int
    length: int
    width: int
    table_step: float
    label_step: float
    id_bytes: int

    @property
    def table(self) -> float:
        """Bytes of the item table."""
        return self.items * self.width * bits(self.table_step) / 8

    @property
    def sequence(self) -> float:
        """Bytes of one sequence."""
        labels = (self.length - 1) * self.width * bits(self.label_step)
        return (labels + self.length * math.log2(max(2, self.items))) / 8

    @property
    def total(self) -> int:
        """Bytes of the whole bundle, roughly."""
        return math.ceil(self.fixed + self.users * self.sequence)

    @property
    def fixed(self) -> float:
        """Bytes of all but the sequences."""
        return self.table + self.id_bytes + MANIFEST_BYTES


def bits(step: float) -> float:
    """Of a normal number on a grid of this step."""
    if not step:
        return 32.0
    return max(0.5, math.log2(math.sqrt(2 * math.pi * math.e) / step)) + BITS_OVER_ENTROPY


def fitted(sizes: Sizes, most_bytes: int, coarsest: float = COARSEST_TABLE) -> Sizes:
    """The sizes with as many users as `most_bytes` hold, at most those given.

    Where those would have fewer than `LABELS_SUFFICE` positions, the item table's steps grow, up to
    `coarsest`, since a table takes most of a small summary.

    Raises:
        ConfigError: not even one sequence fits; the message says what would.
    """
    step = sizes.table_step
    while True:
        coarse = replace(sizes, table_step=step)
        left = most_bytes - coarse.fixed
        users = min(sizes.users, math.floor(left / sizes.sequence))
        enough = users >= sizes.users or users * sizes.length >= LABELS_SUFFICE
        if enough or step >= coarsest or not step:
            break
        step = min(coarsest, round(step + 0.05, 2))
    if users < 1:
        needed = replace(coarse, users=1).total
        raise ConfigError(
            f"{most_bytes:,} bytes cannot hold a summary of {sizes.items:,} items: the smallest "
            f"takes about {needed:,}; give budget.bytes more, or backbone.hidden less"
        )
    return replace(coarse, users=users)


def outer_step_seconds(
    sizes: Sizes, *, batch: int, window: int, learners: int, trains_table: bool
) -> float:
    """What one outer step takes on one core of the benchmarks' machine, roughly.

    A rule and not a measurement, so that a budget of seconds gives the same steps everywhere.
    """
    numbers: float = min(batch, sizes.users) * sizes.length * sizes.width
    if trains_table:
        numbers += sizes.items * sizes.width / 2
    # Forward, back, and the way back through both.
    return 3 * window * learners * (INNER_STEP_SECONDS + numbers / NUMBERS_A_SECOND)
