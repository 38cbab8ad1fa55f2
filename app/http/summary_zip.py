"""The summary as one zip file: same artifacts, same bytes, made while it is sent."""

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# Written into the ETag: to be changed when the same files would become other bytes.
_LAYOUT = "td3 bundle 1"
_NO_TIME = (1980, 1, 1, 0, 0, 0)
_READABLE_BY_ALL = 0o100644 << 16
_UNIX = 3


@dataclass(frozen=True)
class Member:
    """A file of the bundle."""

    name: str
    bytes: int
    sha256: str


def bundle_etag(members: Sequence[Member]) -> str:
    """A (quoted) strong ETag: the sha256 of all that decides the zip's bytes."""
    lines = [_LAYOUT, *(f"{member.name} {member.bytes} {member.sha256}" for member in members)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f'"{digest}"'


def stream_zip(
    members: Sequence[Member], open_reader: Callable[[str], Iterator[bytes]]
) -> Iterator[bytes]:
    """The zip, stored uncompressed and without times, a chunk at a time.

    Args:
        members: its files, in this order.
        open_reader: gives the chunks of the bytes that have the sha256.
    """
    outlet = _Outlet()
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED) as archive:
        for member in members:
            entry = zipfile.ZipInfo(member.name, _NO_TIME)
            entry.external_attr = _READABLE_BY_ALL
            entry.create_system = _UNIX
            entry.file_size = member.bytes  # decides whether the 64-bit form is needed
            with archive.open(entry, "w") as file:
                for chunk in open_reader(member.sha256):
                    file.write(chunk)
                    yield outlet.take()
    yield outlet.take()


class _Outlet:
    """What `zipfile` writes to: it cannot seek, so nothing that was sent is ever changed."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is held open."""

    def take(self) -> bytes:
        """What was written since the last call."""
        data = bytes(self._written)
        self._written.clear()
        return data
