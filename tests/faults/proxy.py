"""A TCP proxy in front of the database, to cut connections, refuse them, or fall silent."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

_BYTES = 65536


class Proxy:
    """Passes bytes between its own port and a server's. Every connection has two threads."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._refusing = False
        self._flowing = threading.Event()
        self._flowing.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self.thaw()
        self.cut()

    def cut(self) -> None:
        """Close all connections, in whatever state they are."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """Cut all connections, and close new ones at once."""
        self._refusing = True
        self.cut()

    def admit(self) -> None:
        """The end of `refuse`."""
        self._refusing = False

    def freeze(self) -> None:
        """Let no byte through, and keep everybody waiting."""
        self._flowing.clear()

    def thaw(self) -> None:
        """The end of `freeze`: what came in meanwhile goes on."""
        self._flowing.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            if self._refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=pair, name="pump", daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_BYTES):
                self._flowing.wait()
                target.sendall(data)
        # One side is gone: so is the other. Both pumps come by here; the second closes.
        for connection in (source, target):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with self._lock:
            if source not in self._open:
                source.close()
                target.close()
            self._open -= {source, target}
