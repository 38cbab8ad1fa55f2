"""The summary as one zip file, made while it is sent. Equal artifacts give equal bytes."""

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# Part of the ETag. Change it with any change of the zip's bytes for the same files.
_LAYOUT = "td3 bundle 1"
_NO_TIME = (1980, 1, 1, 0, 0, 0)
_READABLE_BY_ALL = 0o100644 << 16
_UNIX = 3


@dataclass(frozen=True)
class Member:
    """A file of the zip; its blob has this sha256."""

    name: str
    bytes: int
    sha256: str


def zip_etag(members: Sequence[Member]) -> str:
    """The strong ETag, quoted: the sha256 of everything that determines the zip's bytes."""
    lines = [_LAYOUT, *(f"{member.name} {member.bytes} {member.sha256}" for member in members)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f'"{digest}"'


def stream_zip(
    members: Sequence[Member], open_reader: Callable[[str], Iterator[bytes]]
) -> Iterator[bytes]:
    """The zip in chunks, uncompressed and without times.

    Args:
        members: its files, in order.
        open_reader: gives the chunks of the blob with this sha256.
    """
    buffer = _Buffer()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for member in members:
            entry = zipfile.ZipInfo(member.name, _NO_TIME)
            entry.external_attr = _READABLE_BY_ALL
            entry.create_system = _UNIX
            entry.file_size = member.bytes  # zipfile chooses the 64-bit form by it
            with archive.open(entry, "w") as file:
                for chunk in open_reader(member.sha256):
                    file.write(chunk)
                    yield buffer.take()
    yield buffer.take()


class _Buffer:
    """The file that `zipfile` writes to. It cannot seek, so bytes that were sent never change."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def flush(self) -> None:
        """Does nothing: every write is complete."""

    def close(self) -> None:
        """Does nothing: there is nothing to close."""

    def take(self) -> bytes:
        """The bytes written since the last call."""
        data = bytes(self._written)
        self._written.clear()
        return data
