"""The forms of an export: each has its function, and the command offers what is there."""

from inspect import signature
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from td3engine.cli.main import app
from td3engine.export.registry import FORMATS, ExportOptions, Format, export_to
from td3engine.summary.bundle import Bundle

OPTIONS = ExportOptions(
    top_k=3, renormalise=False, copies=1, temperature=1.0, guidance=None, repeats=True, seed=0
)
CPU = torch.device("cpu")


def export_words(bundle: Bundle, out: Path, options: ExportOptions, device: torch.device) -> str:
    """A form of this test's own."""
    out.write_text(f"{bundle} {options.seed} {device}")
    return "one line"


def test_a_new_form_is_a_function_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "words", Format("words", f"{__name__}:export_words"))
    out = tmp_path / "out"
    bundle: Bundle = "a bundle"  # type: ignore[assignment]
    assert export_to("words", bundle, out, OPTIONS, CPU) == "one line"
    assert out.read_text() == "a bundle 0 cpu"


@pytest.mark.parametrize("name", FORMATS)
def test_every_form_has_its_function(name: str) -> None:
    from importlib import import_module

    module, function = FORMATS[name].function.split(":")
    export = getattr(import_module(module), function)
    assert list(signature(export).parameters) == ["bundle", "out", "options", "device"]
    assert export.__doc__


def test_the_command_names_the_forms_that_there_are(tmp_path: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["export", "--help"], env={"COLUMNS": "200"}).output
    for name, form in FORMATS.items():
        assert f"{name}: " in shown
        assert form.help.split(",")[0] in shown
    out = tmp_path / "out"
    refused = runner.invoke(
        app, ["export", "summary", "--out", str(out), "--format", "xml"], env={"COLUMNS": "200"}
    )
    assert refused.exit_code == 2
    assert f"'xml' is none of {', '.join(FORMATS)}" in refused.output
    assert not out.exists()
