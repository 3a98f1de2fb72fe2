"""Servers for image tests, on loopback: a web server with the faults that a test asks for, and Debian's
docker-registry.

Both are started on free ports and ended by their context managers. The registry is the real one; pushing to it is done
with the distribution API by hand, since the project has no push client.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import hashlib
import http.client
import http.server
import io
import json
import shutil
import socket
import ssl
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

LOOPBACK = ("127.0.0.0/8",)


class Web:
    """What the server does; change it during a test. `files` by path; `seen` lists (path, headers) of requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | Path] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.redirects: dict[str, str] = {}
        self.basic = ""  # "user:password" that is asked for
        self.cut_after: list[int] = []  # one entry a response: close the connection after that many bytes
        self.ranges = True
        self.port = 0
        self.slow_seconds = 0.0
        self.bytes_a_second = 0  # 0 = as fast as it goes
        self.vanish_after_cut = False  # after a cut the file is not there any more

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, web: Web, *args: Any) -> None:
        self.web = web
        super().__init__(*args)

    def log_message(self, *_args: Any) -> None:
        return

    def do_GET(self) -> None:
        web, name = self.web, self.path.lstrip("/")
        web.seen.append((name, dict(self.headers)))
        if name in web.redirects:
            self._answer(302, b"", {"Location": web.redirects[name]})
            return
        if web.basic and self.headers.get("Authorization") != "Basic " + base64.b64encode(web.basic.encode()).decode():
            self._answer(401, b"", {"WWW-Authenticate": "Basic"})
            return
        if name not in web.files:
            self._answer(404, b"gone", {})
            return
        found = web.files[name]
        data = found if isinstance(found, bytes) else found.read_bytes()
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}
        wanted = self.headers.get("Range", "")
        if wanted and web.ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._answer(206, data[start:], headers)
        else:
            self._answer(200, data, headers)

    def _answer(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        cut = self.web.cut_after.pop(0) if data and self.web.cut_after else -1
        if self.web.slow_seconds:
            time.sleep(self.web.slow_seconds)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._send(memoryview(data) if cut < 0 else memoryview(data)[:cut])
        if cut >= 0:
            self.close_connection = True
            if self.web.vanish_after_cut:
                self.web.files.clear()

    def _send(self, data: memoryview) -> None:
        rate = self.web.bytes_a_second
        step = max(1, rate // 40) if rate else len(data)
        for start in range(0, len(data), step or 1):
            self.wfile.write(data[start : start + step])
            if rate:
                time.sleep(step / rate)


@contextlib.contextmanager
def web_server() -> Iterator[Web]:
    """A server on a free port."""
    web = Web()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, web))
    server.daemon_threads = True
    web.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


class Registry:
    """A running docker-registry."""

    def __init__(self, port: int, ca: Path | None = None, login: str = "", address: str = "127.0.0.1") -> None:
        self.host = f"{address}:{port}"
        self._tls = ssl.create_default_context(cafile=str(ca)) if ca else None
        self.bearer = ""
        self._login = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}

    def push(self, name: str, tag: str, layers: list[bytes], environment: tuple[str, ...] = ()) -> str:
        """Push an image of these layers (tar, tar.gz or tar.zst) under the platform index; its digest is answered."""
        config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Env": list(environment)}}).encode()
        descriptors = [self._blob(name, layer, "application/vnd.oci.image.layer.v1.tar+gzip") for layer in layers]
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": self._blob(name, config, "application/vnd.oci.image.config.v1+json"),
                "layers": descriptors,
            }
        ).encode()
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        kind = "application/vnd.oci.image.manifest.v1+json"
        self._call("PUT", f"/v2/{name}/manifests/{digest}", manifest, kind)
        entry = {"mediaType": kind, "digest": digest, "size": len(manifest)}
        index = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": [
                    {**entry, "platform": {"architecture": "amd64", "os": "linux"}},
                ],
            }
        ).encode()
        self._call("PUT", f"/v2/{name}/manifests/{tag}", index, "application/vnd.oci.image.index.v1+json")
        return f"sha256:{hashlib.sha256(index).hexdigest()}"

    def _blob(self, name: str, data: bytes, kind: str) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        location = self._call("POST", f"/v2/{name}/blobs/uploads/", b"", "application/octet-stream")
        path = location.partition(self.host)[2]
        self._call("PUT", f"{path}{'&' if '?' in path else '?'}digest={digest}", data, "application/octet-stream")
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def _call(self, method: str, path: str, body: bytes, kind: str) -> str:
        if self._tls:
            connection = http.client.HTTPSConnection(self.host, timeout=60, context=self._tls)
        else:
            connection = http.client.HTTPConnection(self.host, timeout=60)
        sent = {"Content-Type": kind, "Content-Length": str(len(body)), **self._login}
        if self.bearer:
            sent["Authorization"] = f"Bearer {self.bearer}"
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"registry: {method} {path}: {answer.status} {text[:200]!r}")
        return answer.headers.get("Location") or ""


def layer(files: dict[str, bytes | Path], compression: str = "gz", links: dict[str, str] | None = None) -> bytes:
    """A layer with these files (and symbolic links), as the curated container disks have them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uid = len(data), 0o444, 107
            archive.addfile(member, io.BytesIO(data))
    data = out.getvalue()
    if compression == "gz":
        return gzip.compress(data, 1)
    if compression == "zst":
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    return data


def registry_program() -> str | None:
    """Debian's docker-registry, when installed."""
    return shutil.which("docker-registry")


class Guarded(msgspec.Struct, frozen=True, kw_only=True):
    """How a registry is guarded. `tls`: certificate, key and CA; `login`: "user:password" with its `htpasswd` line;
    `auth`: an `auth` section of the registry's own.
    """

    tls: tuple[Path, Path, Path] | None = None
    login: str = ""
    htpasswd: str = ""
    auth: str = ""


_OPEN = Guarded()


@contextlib.contextmanager
def registry(guarded: Guarded = _OPEN, port: int = 0, address: str = "127.0.0.1") -> Iterator[Registry]:
    """A docker-registry on a free port, its data in a folder that is removed."""
    program = registry_program()
    if program is None:
        raise RuntimeError("docker-registry is not installed (apt-get install docker-registry)")
    with tempfile.TemporaryDirectory(prefix="stead-registry-") as folder, socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        port = probe.getsockname()[1]
        probe.close()
        config = Path(folder) / "config.yml"
        text = (
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
            f"http:\n  addr: '{address}:{port}'\n"
        )
        if guarded.tls:
            text += f"  tls: {{certificate: {guarded.tls[0]}, key: {guarded.tls[1]}}}\n"
        if guarded.htpasswd:
            (Path(folder) / "htpasswd").write_text(guarded.htpasswd)
            text += f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
        text += guarded.auth
        config.write_text(text)
        process = subprocess.Popen(
            [program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _until_open(port, process, address)
            yield Registry(port, guarded.tls[2] if guarded.tls else None, guarded.login, address)
        finally:
            process.terminate()
            process.wait(10)


def _until_open(port: int, process: subprocess.Popen[bytes], address: str = "127.0.0.1") -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError("docker-registry did not start")
