"""`td3 demo`: the main job, end to end, as a user does it.

It starts a service in a fresh folder, submits a log to `POST /jobs`, shows the job's events as
progress bars, downloads the summary, trains learners on it, and compares them with all baselines.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from td3engine.api.client import Client
from td3engine.cli.options import SettingsOption, config_of, console, exit_on_error
from td3engine.client import Job
from td3engine.config import MODES, DistillConfig, Preset
from td3engine.data.movielens import FetchError, cache_folder, fetch_ml100k
from td3engine.data.reading import read_log
from td3engine.errors import UnusableError

if TYPE_CHECKING:
    from td3engine.evaluation.table import Row

STOP_SECONDS = 30
Result = TypeVar("Result")


class DemoError(UnusableError):
    """A step of the demo failed; the message says which."""

    code = "demo_failed"


def demo(
    data: Annotated[
        Path | None, typer.Option(help="A log of your own; without it, MovieLens-100k is fetched.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="A fresh folder for everything that the demo makes.")
    ] = Path("demo-data"),
    preset: Annotated[Preset, typer.Option(help="How much work to put in.")] = "balanced",
    settings: SettingsOption = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """The main job, end to end: real service, real log, summary, table of results."""
    config = config_of(preset, settings or [], seed)

    exit_on_error(lambda: run_demo(data, out, config, console))


def run_demo(data: Path | None, out: Path, config: DistillConfig, console: Console) -> None:
    """Run the whole demo in a new folder below `out`.

    Raises:
        DemoError: the service did not start, the download of the log failed, or the job failed.
        LogError: the log cannot be used.
    """
    from td3engine.evaluation.table import results_table
    from td3engine.summary.bundle import load_bundle

    folder = _new_folder(out)
    seconds: dict[str, float] = {}
    console.print(f"[bold]1[/] a service of its own, in {folder}", soft_wrap=True)
    with _service(folder / "service", seconds) as url:
        console.print(f"[bold]2[/] the log goes to {url}/jobs")
        log = data or _timed(seconds, "fetching the log", _movielens)
        # An empty key, since the environment may have one of another service.
        with Client(url, api_key="") as client:
            job = _timed(seconds, "job", lambda: _follow(client, log, config, console))
            files = client.download_summary(job.id, folder / "summary")
    console.print(f"[bold]3[/] summary: {files[0].parent}; the service has stopped", soft_wrap=True)
    console.print("[bold]4[/] fresh learners, on the summary and on everything it must beat")
    metrics = job.metrics or {}
    rows = _timed(
        seconds, "measuring rows", lambda: _rows(folder / "summary", log, metrics, console)
    )
    seconds |= {f"job: {phase}": value for phase, value in metrics["seconds"].items()}
    console.print(results_table(rows))
    result = folder / "result.json"
    manifest = load_bundle(folder / "summary").manifest
    content = {
        "dataset": {"name": log.name, "fingerprint": manifest.fingerprint, **manifest.statistics},
        "config": manifest.config.model_dump(mode="json"),
        "seconds": seconds,
        "rows": rows,
    }
    result.write_text(json.dumps(content, indent=2) + "\n")
    console.print(str(result), soft_wrap=True, highlight=False)


def _follow(client: Client, log: Path, config: DistillConfig, console: Console) -> Job:
    """Submit the log, show the job's events, and return the job once it has succeeded."""
    job = client.create_job(file=log, config=config.model_dump(mode="json"), name="demo")
    job = client.follow(job.id, console)
    if job.status != "succeeded":
        raise DemoError(f"the job is {job.status}: {job.error}")
    return job


def _rows(summary: Path, log: Path, job_metrics: dict[str, Any], console: Console) -> "list[Row]":
    """All rows of the table: from the job, whose summary's rows are measured again here."""
    import torch

    from td3engine.evaluation.baselines import random_user_rows, summary_rows, zero_step_rows
    from td3engine.evaluation.benchmark import benchmark_for
    from td3engine.evaluation.table import SUMMARY
    from td3engine.pipeline.run import RESULT_SEEDS
    from td3engine.runtime.torch_setup import configure, pick_device
    from td3engine.summary.bundle import load_bundle

    bundle = load_bundle(summary)
    config = bundle.manifest.config
    device = pick_device(config.device)  # of this machine
    configure(device)
    if config.threads:
        torch.set_num_threads(config.threads)
    benchmark = benchmark_for(bundle, read_log(log), device)
    distilled = bundle.factors.to(device)
    seconds = job_metrics["seconds"]["distilling"]
    rows: list[Row] = [row for row in job_metrics["rows"] if row["name"] != SUMMARY]
    with console.status("zero steps") as status:
        rows += zero_step_rows(benchmark, distilled.V, RESULT_SEEDS)
        for mode in MODES:
            status.update(f"random users, {mode}")
            rows += random_user_rows(benchmark, mode, distilled.V, RESULT_SEEDS)
            status.update(f"{SUMMARY}, {mode}")
            rows += summary_rows(benchmark, SUMMARY, distilled, mode, RESULT_SEEDS, seconds)
    return rows


@contextmanager
def _service(folder: Path, seconds: dict[str, float]) -> Iterator[str]:
    """Run a service with embedded defaults for the duration of the block; yields its URL."""
    began = time.perf_counter()
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "td3engine.cli", "serve", "--data-dir", str(folder)]
    log = folder / "service.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*command, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # A session of its own: Ctrl-C reaches this process only, which then stops the service.
            start_new_session=True,
            # Without the TD3_ settings of other services in this shell.
            env={name: value for name, value in os.environ.items() if not name.startswith("TD3_")},
        )
        try:
            url = _wait_for_url(process, log)
            seconds["starting the service"] = time.perf_counter() - began
            yield url
        finally:
            _stop(process)


def _wait_for_url(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("listening on "):
            return line.removeprefix("listening on ").strip()
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    raise DemoError(f"the service did not start: {last[0]} (see {log})")


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        # Its children die with it (PR_SET_PDEATHSIG).
        process.kill()
        process.wait()


def _movielens() -> Path:
    try:
        return fetch_ml100k(cache_folder())
    except FetchError as error:
        raise DemoError(f"{error}; `td3 demo --data FILE` takes a log of your own") from error


def _new_folder(out: Path) -> Path:
    number = 1
    while (out / f"demo-{number}").exists():
        number += 1
    folder = out / f"demo-{number}"
    folder.mkdir(parents=True)
    return folder.resolve()


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Result]) -> Result:
    began = time.perf_counter()
    result = work()
    seconds[name] = time.perf_counter() - began
    return result
