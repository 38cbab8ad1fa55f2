"""Starts a command that cannot outlive its parent.

    python -m app.processes.launch [options] -- command...

The limits must be set in the child, between fork and exec, and `preexec_fn` is not safe in a
process with threads. So this small program sets them and then becomes the command by `execvp`. The
process id that the parent knows is therefore the command's.

The kernel watches the *thread* that started the child, not the process. Start a child from a thread
that lives as long as the child should.
"""

import argparse
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def launch_command(command: Sequence[str], *, memory_bytes: int | None = None) -> list[str]:
    """`command`, wrapped so that the kernel kills it (SIGKILL) when the calling process ends.

    Args:
        command: program and arguments.
        memory_bytes: limit of the address space (RLIMIT_AS); None: no limit.
    """
    wrapped = [sys.executable, "-m", "app.processes.launch", "--parent", str(os.getpid())]
    if memory_bytes is not None:
        wrapped += ["--memory", str(memory_bytes)]
    return [*wrapped, "--", *command]


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends. The request survives exec.

    Args:
        parent: process id of the parent. This process exits if that one is gone already.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent:  # it ended before the kernel knew, so no signal will come
        sys.exit(f"app.processes.launch: the parent {parent} is gone")


def main() -> None:
    """Read the options, set the limits, become the command."""
    parser = argparse.ArgumentParser(prog="python -m app.processes.launch", description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="process id of the caller")
    parser.add_argument("--memory", type=int, help="limit of the address space, in bytes")
    parser.add_argument("command", nargs="+", help="after --: program and arguments")
    options = parser.parse_args()
    if options.memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (options.memory, options.memory))
    if sys.platform == "linux":
        die_with_parent(options.parent)
    os.execvp(options.command[0], options.command)


if __name__ == "__main__":
    main()
