"""Programs of Debian's that tests need: what is here, or is installed where that is allowed."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # of servers: not on everybody's PATH


class InstallError(Exception):
    """A package cannot be installed; says why."""


def program(name: str, package: str) -> str:
    """Path of a program; skips the test where there is none and `package` cannot be installed."""
    path = _find(name)
    if path is None:
        try:
            install(package)
        except InstallError as error:
            pytest.skip(f"{name} is not there (Debian's package: {package}): {error}")
        path = _find(name)
    assert path is not None, f"{package} has no {name}"
    return path


def install(package: str) -> None:
    """Install a package of Debian's. Does nothing if it is installed.

    Raises:
        InstallError: it cannot be.
    """
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise InstallError("only root installs packages, with apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Two test processes must not install at once.
    with (Path(tempfile.gettempdir()) / "td3-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (["update", "-qq"], ["install", "-qq", "-y", package]):
            done = subprocess.run(
                ["apt-get", *command],
                env=environment,
                capture_output=True,
                timeout=300,
                check=False,
            )
            if done.returncode != 0:
                raise InstallError(f"apt-get {command[0]}: {done.stderr.decode()[-500:]}")


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_FOLDERS]))
