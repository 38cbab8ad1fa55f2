"""Ids that look as if somebody's tool had written them for a value that is not there."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# In lower case. Words that pandas, R, SQL, JavaScript and Hive write; `-1` and `0` are often real.
MISSING_WORDS = frozenset(
    {"na", "n/a", "#n/a", "<na>", "nan", "-nan", "nat", "null", "(null)", "none", "nil", "\\n"}
    | {"undefined", "unknown", "anonymous", "missing", "-", "--", "?", "."}
)


def looks_missing(ids: Sequence[str]) -> NDArray[np.bool_]:
    """bool[I]: which ids look like a missing value, whatever their case."""
    return np.array([each.strip().lower() in MISSING_WORDS for each in ids], np.bool_)
