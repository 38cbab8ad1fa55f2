"""`td3 check`, and the options of a log that all commands have."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from td3engine.cli.main import app
from tests.td3engine.small import set_options, write_small_log

runner = CliRunner()
RATINGS = "".join(
    f"{u}::{(u * 3 + n) % 11}::5::{978300760 + 60 * n}\n" for u in range(9) for n in range(7)
)
OPTIONS = ["--columns", "user=1", "--columns", "item=2", "--columns", "time=4"]


def checked(*arguments: str, code: int = 0) -> str:
    done = runner.invoke(app, ["check", *arguments])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def test_a_log_is_shown_as_it_is_read(tmp_path: Path) -> None:
    path, out = tmp_path / "ratings.dat", tmp_path / "out.json"
    path.write_text(RATINGS)
    said = checked(str(path), *OPTIONS, "--delimiter", "::", "--json", str(out))
    assert "format: text delimiter: :: header: no time: 4 (asked for)" in said
    assert "times: seconds since 1970" in said
    assert "user: 1" in said
    assert "0 │ 0 │ 978300760" in said
    assert "the log: 9 users, 11 items, 63 interactions" in said
    assert "after the filter: 9 users" in said
    assert "note: 11 items are left" in said
    written = json.loads(out.read_text())
    assert written["reading"]["columns"] == ["1", "2", "4"]
    assert written["facts"]["repeat_share"] == 0
    assert written["filter"]["users"] == 9
    assert "exists already" in checked(str(path), *OPTIONS, "--json", str(out), code=65)


def test_the_advice_of_a_refusal_can_be_pasted(tmp_path: Path) -> None:
    import shlex

    path = tmp_path / "ratings.dat"
    path.write_text(RATINGS)
    said = checked(str(path), code=65)
    advice = shlex.split(said.split("perhaps: ")[1])
    assert "the log: 9 users" in checked(str(path), *advice)


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (
            ["--columns", "user=1", "--columns", "item=2", "--columns", "time=9"],
            65,
            "column 9 of 4",
        ),
        (["--columns", "rating=1"], 2, "rating"),
        (["--delimiter", "much too long"], 2, "delimiter"),
        ([*OPTIONS, "--time-format", "%Q"], 65, "no directive '%Q'"),
        ([*OPTIONS, "--header", "--no-header", "--delimiter", "|"], 65, "column 2 of 1"),
    ],
)
def test_wrong_options_are_one_line(
    tmp_path: Path, arguments: list[str], code: int, why: str
) -> None:
    path = tmp_path / "ratings.dat"
    path.write_text(RATINGS)
    done = runner.invoke(app, ["check", str(path), *arguments])
    assert done.exit_code == code, done.output
    assert why in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_every_command_reads_such_logs(tmp_path: Path) -> None:
    small = write_small_log(tmp_path / "small.csv")
    _, *lines = small.read_text().splitlines()
    path = tmp_path / "small.dat"
    path.write_text("\n".join("::".join(line.split(",")) for line in lines))
    read = ["--columns", "user=1", "--columns", "item=2", "--columns", "time=3"]
    read += ["--delimiter", "::"]
    out = tmp_path / "out"
    for command in (
        ["distill", str(path), "--out", str(out), *set_options()],
        ["train", str(out), "--log", str(path), "--seeds", "1", "--mode", "shared-items"],
        ["baselines", str(path), "--no-network", *set_options()],
    ):
        done = runner.invoke(app, [*command, *read])
        assert done.exit_code == 0, done.output
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["statistics"]["columns"] == "1, 2, 3"
    # The summary of the same events, read from another file, is the same.
    done = runner.invoke(
        app, ["distill", str(small), "--out", str(tmp_path / "csv"), *set_options()]
    )
    assert done.exit_code == 0, done.output
    same = [
        json.loads((folder / "manifest.json").read_text()) for folder in (out, tmp_path / "csv")
    ]
    assert same[0]["fingerprint"] == same[1]["fingerprint"]
    assert same[0]["checksums"] == same[1]["checksums"]


def test_notes_of_a_log_are_said_by_the_commands_that_use_it(tmp_path: Path) -> None:
    small = write_small_log(tmp_path / "small.csv")
    header, *lines = small.read_text().splitlines()
    noted = tmp_path / "noted.csv"
    anonymous = [f"NA,i{n % 40},{n}" for n in range(len(lines) // 2)]
    noted.write_text("\n".join([header, *lines, *anonymous]))
    said = "of rows have a user id such as NA, null or unknown"
    assert said in checked(str(noted))
    for more, told in ([], True), (["--set", "data.missing_ids=drop"], False):
        done = runner.invoke(app, ["baselines", str(noted), "--no-network", *set_options(), *more])
        assert done.exit_code == 0, done.output
        output = " ".join(done.output.split())
        assert (said in output) == told
        assert ("an id that looks like a missing value" in output) != told
