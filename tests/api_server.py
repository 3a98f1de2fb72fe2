"""A whole API server on loopback for tests: TLS, a temporary SQLite store, an administrator's kubeconfig.

`async with running_server() as s:` gives `s.url`, `s.client` (a client with all rights, in process), `s.kubeconfig`
(a path for kubectl), `s.api` (the `ApiServer`), `s.directory` and `s.ssl` (a TLS context with the administrator's
certificate). `s.certificate(user, groups)` makes another identity. Several may run at once.
"""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import yaml
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from stead import pki
from stead.client.contract import Client
from stead.kinds import register
from stead.kinds.resource import Resource
from stead.server.api import ApiServer, Settings
from stead.server.audit_policy import USUAL, Policy
from stead.server.joins import Signing
from stead.server.oidc import OidcSettings
from stead.server.serve import Listener, Listening
from stead.store.sqlite import SqliteStore


class RunningServer(msgspec.Struct, kw_only=True):
    """A server that runs, and what is needed to talk to it."""

    url: str
    port: int
    api: ApiServer
    listener: Listener
    client: Client
    directory: Path
    kubeconfig: Path
    authority: pki.Pair
    ssl: Any

    def certificate(self, user: str, groups: tuple[str, ...] = ()) -> pki.Pair:
        """A client certificate for another identity."""
        name = user.replace(":", "-").replace("/", "-")
        pair = pki.Pair(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        pki.ensure_certificate(self.authority, pair, pki.Identity(user, groups))
        return pair

    def context(self, user: str, groups: tuple[str, ...] = ()) -> ssl.SSLContext:
        """A TLS context that shows the certificate of another identity."""
        return pki.client_context(self.authority.certificate, self.certificate(user, groups))

    def anonymous(self) -> ssl.SSLContext:
        """A TLS context without a certificate."""
        return pki.client_context(self.authority.certificate)

    def kubeconfig_for(self, pair: pki.Pair, name: str) -> Path:
        """A kubeconfig that uses a client certificate."""
        path = self.directory / f"{name}.kubeconfig"
        write_kubeconfig(path, self.url, self.authority.certificate, pair)
        return path


def write_kubeconfig(path: Path, url: str, ca: Path, pair: pki.Pair) -> None:
    """A kubeconfig with one context."""
    path.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": str(ca)}}],
        "users": [{"name": "admin", "user": {
            "client-certificate": str(pair.certificate), "client-key": str(pair.key),
        }}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin", "namespace": "default"}}],
    }))  # fmt: skip


@contextlib.asynccontextmanager
async def running_server(
    *,
    resources: Iterable[Resource] = register.ALL,
    agent_tls: ssl.SSLContext | None = None,
    audit: bool = False,
    oidc: OidcSettings | None = None,
    audit_policy: Policy = USUAL,
    floor: int = 0,
) -> AsyncIterator[RunningServer]:
    """Start a server, give it, stop it and remove its files. Its revisions begin above `floor`."""
    with tempfile.TemporaryDirectory(prefix="stead-api-") as temporary:
        directory = Path(temporary)
        authority = pki.ensure_authority(directory / "pki", "stead-test")
        serving = pki.Pair(directory / "server.crt", directory / "server.key")
        pki.ensure_certificate(authority, serving, pki.Identity("stead", names=("127.0.0.1", "localhost")))
        admin = pki.Pair(directory / "admin.crt", directory / "admin.key")
        pki.ensure_certificate(authority, admin, pki.Identity("admin", ("system:masters",)))
        pki.ensure_key(directory / "tokens.key")
        token_key: Any = load_pem_private_key((directory / "tokens.key").read_bytes(), None)
        store = await SqliteStore.open(directory / "store.db")
        if floor:
            await store.close()
            with contextlib.closing(sqlite3.connect(directory / "store.db")) as connection, connection:
                connection.execute("INSERT INTO meta (name, number) VALUES ('floor', ?)", (floor,))
            store = await SqliteStore.open(directory / "store.db")
        settings = Settings(
            token_key=token_key, address="127.0.0.1", agent_tls=agent_tls, resources=resources, oidc=oidc,
            audit_path=directory / "audit.log" if audit else None, audit_policy=audit_policy,
            signing=Signing(authority, datetime.timedelta(days=1), frozenset({"stead", "192.0.2.1", "127.0.0.1"})),
        )  # fmt: skip
        api = ApiServer(store, settings)
        await api.start()
        listening = Listening(certificate=serving.certificate, key=serving.key, client_ca=authority.certificate)
        listener = Listener(api.app, listening)
        await listener.start()
        url = f"https://127.0.0.1:{listener.port}"
        kubeconfig = directory / "kubeconfig"
        write_kubeconfig(kubeconfig, url, authority.certificate, admin)
        try:
            yield RunningServer(
                url=url, port=listener.port, api=api, listener=listener, client=api.local_client(), directory=directory,
                kubeconfig=kubeconfig, authority=authority, ssl=pki.client_context(authority.certificate, admin),
            )  # fmt: skip
        finally:
            api.app.stop()
            await listener.stop()
            await api.stop()
            await store.close()
