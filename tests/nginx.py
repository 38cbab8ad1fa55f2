"""An nginx of the tests' own, with servers that the test configures."""

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.app.http.kit import wait_for
from tests.packages import program


@contextmanager
def nginx(servers: str, *ports: int) -> Iterator[None]:
    """Debian's nginx with these blocks `server`, once these ports answer; skips without one."""
    binary = program("nginx", "nginx-light")
    with tempfile.TemporaryDirectory(prefix="td3-nginx-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # its workers are another user's
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        configuration = folder / "nginx.conf"
        configuration.write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
            f"events {{}}\nhttp {{ access_log off;\n{temporary}{servers}\n}}\n"
        )
        log = folder / "error.log"
        command = [binary, "-c", str(configuration), "-e", str(log)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            try:
                wait_for(lambda: all(map(_answers, ports)) or process.poll() is not None)
                assert process.poll() is None, log.read_text()
                yield
            finally:
                process.terminate()  # its workers end with it
                process.wait(10)


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
