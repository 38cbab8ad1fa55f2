"""The project's Markdown pages: which there are, and what in them is no prose."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^[ ]*(`{3,}|~{3,})(.*)$")


def name_of(page: Path) -> str:
    """Path of a page below the project's root."""
    return page.relative_to(ROOT).as_posix()


def split_fences(text: str) -> tuple[str, list[str]]:
    """Prose without fenced blocks (line numbers stay), and the language of each block."""
    prose, languages, fence = [], [], ""
    for line in text.splitlines():
        match = FENCE.match(line)
        if match and not fence:
            fence = match[1]
            languages.append(match[2].strip())
        elif match and line.strip() == fence:
            fence = ""
        elif not fence:
            prose.append(line)
            continue
        prose.append("")
    if fence:
        raise ValueError(f"a fenced block does not end: {fence}{languages[-1]}")
    return "\n".join(prose), languages
