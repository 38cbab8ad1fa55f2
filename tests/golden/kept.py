"""The kept digests, and how new ones are held against them."""

import math
from pathlib import Path
from typing import Any

KEPT = Path(__file__).with_name("digests.json")
CLOSE = 0.05  # relative: another processor's last bits, through Adam's first steps


def compare(kept: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """A line for each difference: of bytes on a machine alike, of figures on another one."""
    differences = [
        f"{name}: kept {sorted(kept[name].keys() ^ found[name].keys())} in one of the two only"
        for name in ("digests", "figures")
        if kept[name].keys() != found[name].keys()
    ]
    if differences:
        return differences
    if kept["probe"] == found["probe"]:
        pairs = ((part, was, found["digests"][part]) for part, was in kept["digests"].items())
        return [f"{part}: was {was}, is {now}" for part, was, now in pairs if was != now]
    figures = ((part, was, found["figures"][part]) for part, was in kept["figures"].items())
    return [
        f"{part}: was {was:.6g}, is {now:.6g}"
        for part, was, now in figures
        if not math.isclose(was, now, rel_tol=CLOSE)
    ]
