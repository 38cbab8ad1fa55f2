"""The table of renamed terms names what the code has, and not what it had."""

import re

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "concepts.md"
ROOMS = ("app", "td3engine", "worker")
# Words of a language, which other parts of the code use in their own sense.
COMMON = frozenset(
    {"Reader", "Patience", "noise", "along", "between", "mark", "leaf", "each", "few", "whole"}
)


def test_renamed_terms_are_those_of_the_code() -> None:
    table = PAGE.read_text().partition("## Renamed terms")[2]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")][1:]
    now = {name for _, cell in rows for name in re.findall(r"`(\w+)(?:\.\w+)?`", cell)}
    before = {name for cell, _ in rows for name in re.findall(r"`(\w+)(?:\.\w+)?`", cell)}
    source = "\n".join(path.read_text() for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    words = set(re.findall(r"\w+", source))
    assert now - words == set(), "names that the page calls today's and the code does not have"
    old_classes = {name for name in before - COMMON - now if re.search(rf"class {name}\b", source)}
    assert old_classes == set(), "names that the page calls old and the code still has"
