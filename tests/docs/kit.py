"""The log that the documents' commands find in their folder."""

from pathlib import Path

import numpy as np

USERS, ITEMS, EVENTS = 120, 150, 12


def write_ratings(path: Path) -> None:
    """Users who walk along a ring of items: 1,440 rows, `user_id,item_id,timestamp`."""
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for user in range(USERS):
        item = int(rng.integers(ITEMS))
        for time in range(EVENTS):
            lines.append(f"u{user},i{item},{time}")
            item = (item + int(rng.integers(1, 4))) % ITEMS
    path.write_text("\n".join(lines) + "\n")
