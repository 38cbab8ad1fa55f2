"""Every relative link of README.md and docs/*.md leads to a file, and every anchor to a heading."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import PAGES, ROOT, name_of, split_fences

LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HEADING = re.compile(r"^#{1,6} +(.*?)(?: +#+)?$", re.MULTILINE)
CODE = re.compile(r"`[^`]*`")
# A page that somebody may have bookmarked, or that code and comments name.
NAMED = re.compile(r"docs/[a-z-]+\.(?:md|json|svg)(?:#[\w-]+)?")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    result: set[str] = set()
    for heading in HEADING.findall(split_fences(page.read_text())[0]):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
        number = 1
        unique = slug
        while unique in result:
            unique, number = f"{slug}-{number}", number + 1
        result.add(unique)
    return result


def links(page: Path) -> list[str]:
    """Targets of a page's links that are not on the web."""
    prose = CODE.sub("", split_fences(page.read_text())[0])
    return [target for target in LINK.findall(prose) if not urlsplit(target).scheme]


def problem_of(page: Path, target: str) -> str | None:
    """What is wrong with a link from this page; None: nothing."""
    path, _, anchor = target.partition("#")
    goal = (page.parent / unquote(path)).resolve() if path else page
    if not goal.exists():
        return f"{target}: there is no such file"
    if not goal.is_relative_to(ROOT):
        return f"{target}: outside the project"
    if anchor and goal.suffix == ".md" and anchor not in anchors(goal):
        return f"{target}: no heading gives this anchor"
    return None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert [text for text in (problem_of(page, link) for link in links(page)) if text] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        goals = ((page.parent / link.partition("#")[0]).resolve() for link in links(page))
        waiting += {goal for goal in goals if goal.suffix == ".md" and goal.is_file()} - reached
    assert {name_of(page) for page in PAGES} - {name_of(page) for page in reached} == set()


@pytest.mark.parametrize("room", ["app", "benchmarks", "td3engine", "worker", "tests"])
def test_pages_that_code_names_are_there(room: str) -> None:
    named = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / room).rglob("*.py")
        if path != Path(__file__)
        for name in NAMED.findall(path.read_text())
    }
    missing = [pair for pair in sorted(named) if problem_of(ROOT / "README.md", pair[1])]
    assert missing == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = ROOT / "README.md"
    assert problem_of(page, "docs/no-such-page.md") is not None
    assert problem_of(page, "docs/method.md#no-such-heading") is not None
    assert problem_of(page, "docs/method.md") is None


def test_paths_named_in_documents_exist() -> None:
    named = re.compile(r"`((?:td3engine|app|worker|benchmarks|tests|findings)/[\w/.-]+\w)`")
    # What moved is named on purpose by pages of the past, and NAME is a reader's own.
    pages = [page for page in PAGES if page.name not in {"changelog.md", "notebook.md"}]
    missing = [
        f"{page.name}: {path}"
        for page in pages
        for path in named.findall(page.read_text())
        if "NAME" not in path and not (ROOT / path).exists()
    ]
    assert missing == []
