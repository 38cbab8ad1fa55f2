"""A reader of uploads that ends itself when the file tells it to; other files it reads as usual.

The file's first line is `end by SIGNAL`, `eat` (memory until there is none), `wait` (for ever) or
`full` (a disk without room). It stands in for whatever a parser of others may do to its process, so
that no test needs a file that does it.
"""

import errno
import os
import signal
import sys
from pathlib import Path

from td3engine.data import normalise


def main() -> int:
    """The normaliser's command line."""
    source = Path(sys.argv[1])
    match source.read_bytes()[:40].decode(errors="replace").split("\n")[0].split():
        case ["end", "by", name]:
            os.kill(os.getpid(), signal.Signals[name])
        case ["eat"]:
            eaten = []
            while True:
                eaten.append(bytearray(2**24))
        case ["wait"]:
            signal.pause()
        case ["full"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return normalise.main()


if __name__ == "__main__":
    raise SystemExit(main())
