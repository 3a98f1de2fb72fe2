"""Both sides of the API benchmarks: a Stead plane and the bare server, and connections to them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from stead import pki
from stead.client.kubeconfig import load, tls_context

from . import http, rig, stamped
from .figures import Request

PATH = "/api/v1/namespaces/default/configmaps"


class Side(msgspec.Struct, frozen=True):
    """Where one is reached, with what (`files`: CA, certificate, key; "" = none), and where it writes commits down."""

    host: str
    port: int
    context: ssl.SSLContext
    files: tuple[str, str, str]
    commits: Path


class Sides(msgspec.Struct, frozen=True):
    """Both. `pid` is our plane's, 0 when it is not ours to look at."""

    ours: Side
    rival: Side
    folder: Path
    pid: int = 0

    async def connect(self, side: str) -> http.Connection:
        """A connection to `ours` or `rival`."""
        at: Side = getattr(self, side)
        return await http.Connection(at.host, at.port, at.context).open()


@contextlib.asynccontextmanager
async def sides(request: Request) -> AsyncIterator[Sides]:
    """Start both (ours only without --kubeconfig) and end them."""
    with rig.isolation.scratch() as folder:
        folder.chmod(0o711)
        for name in ("ours", "rival"):
            (folder / name).mkdir()
            (folder / name).chmod(0o777)  # the account of the plane writes here; nothing of worth lies in it
        commits = folder / "ours" / "commits"
        if request.kubeconfig:
            chosen = rig.running(request.kubeconfig, "", None)
        else:
            chosen = rig.plane(stamped.__file__, str(commits))
        async with chosen as stead, _bare(folder / "rival") as rival:
            pid = stead.pids()["plane"] if stead.settings is not None else 0
            yield Sides(_ours(stead.kubeconfig, folder, commits), rival, folder, pid)


def _ours(kubeconfig: Path, folder: Path, commits: Path) -> Side:
    endpoint = load(kubeconfig)
    url, context = urlsplit(endpoint.server), tls_context(endpoint)
    if context is None or not (endpoint.certificate and endpoint.key and endpoint.ca):
        raise OSError(f"{kubeconfig}: api and watch need https and a client certificate")
    files = []
    for name, content in (("ca", endpoint.ca), ("crt", endpoint.certificate), ("key", endpoint.key)):
        files.append(folder / f"client.{name}")
        files[-1].touch(0o600)
        files[-1].write_bytes(content)
    ca, certificate, key = map(str, files)
    return Side(url.hostname or "127.0.0.1", url.port or 6443, context, (ca, certificate, key), commits)


@contextlib.asynccontextmanager
async def _bare(root: Path) -> AsyncIterator[Side]:
    authority = pki.ensure_authority(root / "pki", "bench")
    pair = pki.Pair(root / "rival.crt", root / "rival.key")
    pki.ensure_certificate(authority, pair, pki.Identity("rival", names=("127.0.0.1",)))
    commits = root / "commits"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", http.__file__, str(pair.certificate), str(pair.key), str(root / "log"), str(commits),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 20))
        context = pki.client_context(authority.certificate)
        yield Side("127.0.0.1", port, context, (str(authority.certificate), "", ""), commits)
    finally:
        process.kill()
        await process.wait()


def config_map(name: str, text: str = "") -> bytes:
    """An object of about 2 KiB."""
    data = {"stamp": text, "text": "x" * 1800}
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": data}
    return msgspec.json.encode(item)
