"""Fetches MovieLens-100k, the small public log of the demo and of the tests.

The source is the wheel of recbole, which ships the log as example data: an ordinary package index,
or a mirror of one, is enough. Nothing of the wheel is installed or run. MovieLens data are for
research and must not be passed on, so the log is fetched and is no part of this project.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "recbole==1.2.1"
MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"
SHA256 = "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"
PIP_SECONDS = 120


class FetchError(RuntimeError):
    """MovieLens-100k could not be fetched; the message says why."""


def cache_folder() -> Path:
    """Folder of fetched data: `$XDG_CACHE_HOME/td3engine`, or `~/.cache/td3engine`."""
    configured = os.environ.get("XDG_CACHE_HOME")
    return (Path(configured) if configured else Path.home() / ".cache") / "td3engine"


def fetch_ml100k(folder: Path) -> Path:
    """The RecBole `.inter` file of MovieLens-100k (100,000 ratings, 2 MB) in `folder`.

    pip downloads the file unless it is there already; either way its sha256 is checked.

    Raises:
        FetchError: pip failed (no network, no pip), or what it brought is not the expected file.
    """
    target = folder / Path(MEMBER).name
    if target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == SHA256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".ml100k-") as scratch:
        part = Path(scratch) / target.name
        part.write_bytes(_member_of(_download(Path(scratch))))
        # Moved into place whole: a reader beside us sees the old state or the new, never half.
        part.replace(target)
    return target


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary=:all:"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(scratch), REQUIREMENT],
            capture_output=True,
            text=True,
            timeout=PIP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"pip did not bring {REQUIREMENT} within {PIP_SECONDS} s") from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise FetchError(f"pip could not download {REQUIREMENT}: {last}")
    return wheels[0]


def _member_of(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(MEMBER)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"{wheel.name} does not hold {MEMBER}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise FetchError(f"{MEMBER} of {wheel.name} has the sha256 {digest}, not {SHA256}")
    return content
