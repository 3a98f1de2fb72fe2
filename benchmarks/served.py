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

from . import http, rig
from .figures import Request

PATH = "/api/v1/namespaces/default/configmaps"


class Sides(msgspec.Struct, frozen=True):
    """Where both are reached."""

    ours: tuple[str, int, ssl.SSLContext]
    rival: tuple[str, int, ssl.SSLContext]
    folder: Path

    async def connect(self, side: str) -> http.Connection:
        """A connection to `ours` or `rival`."""
        return await http.Connection(*(self.ours if side == "ours" else self.rival)).open()


@contextlib.asynccontextmanager
async def sides(request: Request) -> AsyncIterator[Sides]:
    """Start both (ours only without --kubeconfig) and end them."""
    chosen = rig.running(request.kubeconfig, "", None) if request.kubeconfig else rig.plane()
    async with chosen as stead:
        endpoint = load(stead.kubeconfig)
        url = urlsplit(endpoint.server)
        context = tls_context(endpoint)
        if context is None or not endpoint.certificate:
            raise OSError(f"{stead.kubeconfig}: api and watch need https and a client certificate")
        async with _bare(stead.root) as rival:
            yield Sides((url.hostname or "127.0.0.1", url.port or 6443, context), rival, stead.root)


@contextlib.asynccontextmanager
async def _bare(root: Path) -> AsyncIterator[tuple[str, int, ssl.SSLContext]]:
    authority = pki.ensure_authority(root / "rival", "bench")
    pair = pki.Pair(root / "rival.crt", root / "rival.key")
    pki.ensure_certificate(authority, pair, pki.Identity("rival", names=("127.0.0.1",)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", http.__file__, str(pair.certificate), str(pair.key), str(root / "rival.log"),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 20))
        yield "127.0.0.1", port, pki.client_context(authority.certificate)
    finally:
        process.kill()
        await process.wait()


def config_map(name: str, text: str = "") -> bytes:
    """An object of about 2 KiB."""
    data = {"stamp": text, "text": "x" * 1800}
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": data}
    return msgspec.json.encode(item)
