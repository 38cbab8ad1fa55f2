"""Every snippet of README.md and docs/*.md runs, in the order of its document.

| language | what the test does |
|---|---|
| `python` | runs it; one document's snippets share their names |
| `console` | runs what stands behind `$ `; shown output must be printed (`...`: anything) |
| `sh` | runs every line |
| `json` | parses it |
| `text`, `csv` | nothing: it is output, data or a signature |
| `nginx` | nothing here: `tests/e2e/test_nginx.py` runs it |

Commands run as they are written, on a small log and with the presets of `tests.docs.small_presets`.
`tests.docs.shell` lists those that are only looked up, because they take minutes or do not end:
`make`, benchmarks, `td3 serve`. `http://127.0.0.1:8000` stands for the service of the tests.
"""

import json
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from tests.docs.kit import write_ratings
from tests.docs.pages import PAGES, name_of, split_fences
from tests.docs.shell import Shell, commands
from tests.docs.small_presets import environment

SERVICE = "http://127.0.0.1:8000"
RUN = ("python", "console", "sh", "json")
SHOWN = ("text", "csv", "nginx")


class DocumentRun:
    """A document whose snippets run in a folder, against a service where it needs one."""

    def __init__(self, page: Path, folder: Path, url: str) -> None:
        self.url = url
        self.shell = Shell(folder, environment())
        evaluators = (self._python, self._console, self._sh, self._json)
        parsers = [CodeBlockParser(*pair) for pair in zip(RUN, evaluators, strict=True)]
        self.document = Sybil([*parsers, SkipParser()], pattern="*.md").parse(page)

    def run(self) -> None:
        """Evaluate the document's snippets."""
        for example in self.document.examples():
            example.evaluate()

    def _python(self, example: Example) -> None:
        # The blank lines have a traceback name the document's own line.
        code = "\n" * example.line + self._text(example)
        exec(compile(code, example.path, "exec", dont_inherit=True), example.namespace)  # noqa: S102

    def _console(self, example: Example) -> str | None:
        return self._shell(example, prompted=True)

    def _sh(self, example: Example) -> str | None:
        return self._shell(example, prompted=False)

    def _shell(self, example: Example, *, prompted: bool) -> str | None:
        try:
            for command in commands(self._text(example), prompted=prompted):
                self.shell.run(command)
        except AssertionError as failure:
            return str(failure)  # Sybil names the document and the line
        return None

    def _json(self, example: Example) -> None:
        json.loads(self._text(example))

    def _text(self, example: Example) -> str:
        return str(example.parsed).replace(SERVICE, self.url)


def run_page(page: Path, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a document's snippets in a folder that has `ratings.csv`."""
    folder.mkdir(exist_ok=True)
    write_ratings(folder / "ratings.csv")
    monkeypatch.chdir(folder)
    DocumentRun(page, folder, url).run()


def _with_snippets(*, service: bool) -> list[Path]:
    """The documents with snippets that do, or do not, talk to a service."""
    texts = {page: page.read_text() for page in PAGES}
    return [
        page
        for page, text in texts.items()
        if set(split_fences(text)[1]) & set(RUN) and (SERVICE in text) == service
    ]


@pytest.mark.parametrize("page", _with_snippets(service=False), ids=name_of)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, tmp_path, SERVICE, monkeypatch)


def test_snippets_that_need_a_service_run(
    service_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test for all of these documents, so that one service serves them."""
    for page in _with_snippets(service=True):
        run_page(page, tmp_path / page.stem, service_url, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_names_its_language(page: Path) -> None:
    """A block without a language, or with an unknown one, would not be run."""
    languages = split_fences(page.read_text())[1]
    assert set(languages) <= {*RUN, *SHOWN}
