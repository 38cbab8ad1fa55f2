"""Running the shell commands of a document, each with the variables of those before it."""

import doctest
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from td3engine.cli.main import app
from tests.docs.pages import ROOT
from tests.docs.small_presets import environment

SECONDS = 60
# These commands replace their process by a server's program.
OF_THE_APP = ("serve", "gc", "keys")
PROBLEM = "urn:td3:problem:"
_LOOSELY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Command:
    """A command as the document has it, and the output shown below it ("" where none is shown)."""

    text: str
    output: str = ""


def commands(block: str, *, prompted: bool) -> list[Command]:
    """The commands of a block.

    Args:
        block: text of the fenced block.
        prompted: whether commands stand behind `$ ` and all other lines are output (`console`), or
            every line is a command (`sh`). A backslash at a line's end continues a command.
    """
    result: list[Command] = []
    continued = False
    for line in block.splitlines():
        if continued:
            result[-1] = Command(f"{result[-1].text}\n{line}")
        elif line.startswith("$ ") or (not prompted and line.strip()):
            result.append(Command(line.removeprefix("$ ")))
        elif line.strip():
            if not result:
                raise ValueError(f"output without a command: {line}")
            last = result[-1]
            result[-1] = Command(last.text, f"{last.output}{line}\n")
            continue
        else:
            continue
        continued = line.endswith("\\")
    return result


class Shell:
    """A shell in a folder. Every command gets the variables that the ones before it have set.

    A plain `td3` command runs in this process, which imports torch once; the folder must be the
    working directory.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = dict(variables)
        self._saved = folder / ".environment"

    def run(self, command: Command) -> None:
        """Run a command, or check that it could be, where running it would take too long.

        A command must succeed, unless the output that is shown begins with `error:`.

        Raises:
            AssertionError: it does not, or prints something else than the document shows.
        """
        check = _check_instead_of(command.text)
        if check is not None:
            check(command.text)
            return
        arguments = _plain_arguments(command.text)
        code, printed = self._bash(command.text) if arguments is None else _td3(arguments)
        shown = f"$ {command.text}\nexit code {code}\n{printed}"
        assert (code != 0) == command.output.startswith("error:"), shown
        if command.output:
            same = doctest.OutputChecker().check_output(command.output, printed, _LOOSELY)
            assert same, f"{shown}\nThe document shows:\n{command.output}"
        else:
            assert PROBLEM not in printed, shown

    def _bash(self, text: str) -> tuple[int, str]:
        """Exit code of a command, and what it printed."""
        done = subprocess.run(
            ["bash", "-c", f"set -aeuo pipefail\n{text}\nenv -0 > {self._saved}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode == 0:
            pairs = (pair.partition("=") for pair in self._saved.read_text().split("\0") if pair)
            self.environment = {name: value for name, _, value in pairs}
        return done.returncode, done.stdout


def _plain_arguments(text: str) -> list[str] | None:
    """Arguments of a `td3` command that needs no shell; None for all others."""
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    plain = words[0] == "td3" and words[1] not in OF_THE_APP
    return words[1:] if plain and not set("|&;<>$`") & set("".join(words)) else None


def _td3(arguments: list[str]) -> tuple[int, str]:
    done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def _check_instead_of(text: str) -> Callable[[str], None] | None:
    """What is done in place of running a command; None: it runs."""
    first = text.removeprefix("sudo ")
    return next((check for start, check in _NOT_RUN.items() if first.startswith(start)), None)


def _make_target_exists(text: str) -> None:
    target = text.split()[1]
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), text


def _extras_exist(text: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"\[(.*?)\]", text):
        assert set(extras.split(",")) <= set(project["optional-dependencies"]), text


def _module_has_options(text: str) -> None:
    """The module is there, and so is every option, in its source or its package's."""
    module = re.findall(r"-m (\S+)", text)[-1]
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None, text
    origin = Path(found.origin)
    files = [origin] if module.startswith("app") else [*origin.parent.glob("*.py")]
    source = "".join(path.read_text() for path in files)
    command = re.sub(r"'[^']*'|#.*", "", text.rpartition(module)[2])
    for option in re.findall(r"(?<!\S)(--[a-z-]+)", command):
        assert f'"{option}"' in source, f"{text}: {module} has no {option}"


def _command_has_options(text: str) -> None:
    """`td3 COMMAND --help` names every option."""
    words = text.partition("#")[0].split()
    start = words.index("td3") if "td3" in words else words.index("td3engine.cli")
    words = words[start + 1 :]
    shown = subprocess.run(
        [sys.executable, "-m", "td3engine.cli", words[0], "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    ).stdout
    for option in (word for word in words if word.startswith("--")):
        assert option in shown, f"{text}: {words[0]} has no {option}"


def _services_exist(text: str) -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    for service in re.findall(r"(?:exec|--scale) (\w+)", text):
        assert re.search(rf"^  {service}:", compose, re.MULTILINE), text


# Commands that a test does not run, by how they begin: they take minutes, do not end by themselves,
# or need what a test machine does not have (Docker, a registry, a used database, a GPU).
_NOT_RUN: dict[str, Callable[[str], None]] = {
    "make ": _make_target_exists,
    "pip install ": _extras_exist,
    "python -m benchmarks.": _module_has_options,
    "python -m app.": _module_has_options,
    "python -m tests.": _module_has_options,
    "td3 serve": _command_has_options,
    "td3 demo": _command_has_options,
    "td3 gc": _command_has_options,
    "torchrun ": _command_has_options,
    "docker compose ": _services_exist,
}
