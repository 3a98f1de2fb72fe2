"""Installer trees on loopback, for `stead create --location`: a server of given paths, in a thread of its own."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator, Mapping

UBUNTU_NETBOOT = "/ubuntu/dists/noble/main/installer-amd64"
_FOLDER = f"{UBUNTU_NETBOOT}/current/legacy-images/netboot/ubuntu-installer/amd64"
#: paths of a tree as virt-install.txt names it
UBUNTU = {f"{_FOLDER}/linux": b"kernel", f"{_FOLDER}/initrd.gz": b"initrd"}


@contextlib.contextmanager
def serving(files: Mapping[str, bytes], status: int = 404) -> Iterator[str]:
    """A server of `files` (path → bytes); anything else is answered with `status`. Yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files.get(self.path)
            self.send_response(status if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """A server that takes connections and never answers. Yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def closed_url() -> str:
    """A URL on loopback where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
