"""Certificates, authorities and sealing keys change under a plane that runs: clients go on, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509

from api_server import running_server
from stead import installation, pki, run
from stead.cli import rotate
from stead.cli.main import main
from stead.client.contract import Selection
from stead.client.kubeconfig import Endpoint, load
from stead.client.remote import RemoteClient
from stead.config import Settings
from stead.kinds import register
from stead.kube.errors import ApiError

#: life of certificates in these tests, seconds
LIFE = 10
WORD = "correct-horse-battery-staple"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Plane:
    """A plane as `stead up` runs it: started anew when it ends, its certificates tended."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(
            state_dir=folder / "state", run_dir=folder / "run", user="", host_name="h", listen_port=free_port(),
            certificate_seconds=LIFE,
        )  # fmt: skip
        self.files = installation.Files.of(self.settings)
        self.starts = 0
        self._stopping = asyncio.Event()
        self._ending = False

    async def run(self) -> None:
        while not self._ending:
            self._stopping = asyncio.Event()
            self.starts += 1
            with installation.running(self.settings, "plane"):
                await run.serve_plane(self.settings, self._stopping)

    async def tend(self) -> None:
        while True:
            await asyncio.sleep(LIFE / 12)
            await asyncio.to_thread(installation.prepare, self.settings)

    def end(self, *, for_good: bool = True) -> None:
        self._ending = for_good
        self._stopping.set()

    async def restarted(self, work: Any) -> None:
        """Do something that makes the plane start anew, and wait until it serves again."""
        before = self.starts
        await work
        async with asyncio.timeout(20):
            while self.starts == before or not await self.answers():
                await asyncio.sleep(0.05)

    async def answers(self) -> bool:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", self.settings.listen_port)
            writer.close()
            return True
        return False

    def client(self, kubeconfig: Path | None = None) -> RemoteClient:
        return RemoteClient(load(kubeconfig or self.files.admin_kubeconfig))

    def serial(self) -> int:
        """That of the certificate which new connections are shown, verified with what this host trusts."""
        context = ssl.create_default_context(cafile=str(self.files.ca))
        with (
            socket.create_connection(("127.0.0.1", self.settings.listen_port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"").serial_number

    async def stead(self, *words: str) -> str:
        environ = {"STEAD_STATE_DIR": str(self.settings.state_dir), "STEAD_RUN_DIR": str(self.settings.run_dir),
                   "STEAD_USER": "", "STEAD_HOST_NAME": "h", "STEAD_LISTEN_PORT": str(self.settings.listen_port),
                   "STEAD_CERTIFICATE_SECONDS": str(LIFE), "KUBECONFIG": ""}  # fmt: skip
        result = await asyncio.to_thread(CliRunner().invoke, main, words, env=environ)
        assert result.exit_code == 0, result.output
        return result.output


@contextlib.asynccontextmanager
async def running_plane(folder: Path) -> AsyncIterator[Plane]:
    plane = Plane(folder)
    await asyncio.to_thread(installation.prepare, plane.settings)
    tasks = [asyncio.create_task(plane.run())]
    async with asyncio.timeout(20):
        while not await plane.answers():
            assert not tasks[0].done(), tasks[0].exception()
            await asyncio.sleep(0.02)
    try:
        yield plane
    finally:
        plane.end()
        await asyncio.wait_for(tasks[0], 20)


async def create(client: RemoteClient, name: str, kind: str = "ConfigMap", **fields: Any) -> None:
    resource = register.SECRET if kind == "Secret" else register.CONFIG_MAP
    await client.create(resource, {
        "apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "default"}, **fields,
    })  # fmt: skip


async def test_certificates_are_renewed_before_they_end_and_an_open_watch_goes_on(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        tending = asyncio.create_task(plane.tend())
        first, began = await asyncio.to_thread(plane.serial), time.monotonic()
        watcher = plane.client()
        seen: list[str] = []

        async def watch() -> None:
            async for event in watcher.watch(register.CONFIG_MAP, Selection(namespace="default"), "0"):
                seen.append(event.object["metadata"]["name"])

        watching = asyncio.create_task(watch())
        while time.monotonic() - began < LIFE + 2:
            await asyncio.to_thread(plane.serial)  # raises when an expired certificate is shown
            await asyncio.sleep(0.2)
        assert await asyncio.to_thread(plane.serial) != first
        client = plane.client()
        await create(client, "late")
        async with asyncio.timeout(10):
            while "late" not in seen:
                await asyncio.sleep(0.05)
        assert plane.starts == 1, "without a fresh start"
        tending.cancel()
        watching.cancel()
        await asyncio.gather(tending, watching, return_exceptions=True)
        await watcher.close()
        await client.close()


async def test_an_agents_client_shows_its_renewed_certificate_and_keeps_its_watches() -> None:
    async with running_server() as server:

        def pair() -> tuple[bytes, bytes]:
            return pki.issue_pair(server.authority, pki.Identity("system:node:h", ("system:masters",)))

        (certificate, key), (new, new_key) = pair(), pair()
        ca = server.authority.certificate.read_bytes()
        client = RemoteClient(Endpoint(server=server.url, ca=ca, certificate=certificate, key=key))
        resource = next(found for found in register.ALL if found.kind == "SelfSubjectReview")

        async def shown() -> str:
            review = await client.create(resource, {"apiVersion": resource.api_version, "kind": resource.kind})
            return str(review["status"]["userInfo"]["extra"])

        def digest(pem: bytes) -> str:
            der = ssl.PEM_cert_to_DER_cert(pem.decode())
            return hashlib.sha256(der).hexdigest()

        assert digest(certificate) in await shown()
        events = client.watch(register.CONFIG_MAP, Selection(namespace="default"))
        await create(client, "one")
        assert (await anext(events)).object["metadata"]["name"] == "one"
        client.renew(new, new_key)
        every = await asyncio.gather(*(shown() for _ in range(8)))
        assert any(digest(new) in found for found in every)
        await create(client, "two")
        assert (await anext(events)).object["metadata"]["name"] == "two"
        await events.aclose()  # type: ignore[attr-defined]  # an async generator behind the contract's iterator
        await client.close()


async def test_two_authorities_are_trusted_together_then_the_new_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotate.os, "geteuid", lambda: 0)
    async with running_plane(tmp_path) as plane:
        old = tmp_path / "old.kubeconfig"
        old.write_text(plane.files.admin_kubeconfig.read_text())
        await plane.restarted(plane.stead("rotate", "ca"))
        given = tmp_path / "alice.kubeconfig"
        await plane.stead("user", "add", "alice", "--group", "system:masters", "-o", str(given))
        alice = plane.client(given)
        await create(alice, "by-alice")
        await alice.close()
        client, after = plane.client(old), plane.client()
        await create(client, "by-the-old")
        await create(after, "by-both")
        await client.close()
        await after.close()
        first = pki.issuing(plane.files.authority).serial_number
        await plane.restarted(plane.stead("rotate", "ca", "--finish"))
        assert pki.issuing(plane.files.authority).serial_number != first
        assert len(pki.trusted(plane.files.authority)) == 1
        await asyncio.to_thread(plane.serial)
        alice = plane.client(given)
        await create(alice, "by-alice-again")
        await alice.close()
        new, late = plane.client(), plane.client(old)
        kept = (await new.list(register.CONFIG_MAP, Selection(namespace="default"))).items
        assert {"by-the-old", "by-both"} <= {item["metadata"]["name"] for item in kept}
        with pytest.raises((OSError, ApiError)):
            await create(late, "too-late")
        await new.close()
        await late.close()


async def test_a_plane_seals_secrets_and_takes_a_new_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotate.os, "geteuid", lambda: 0)

    def on_disk() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(plane.settings.plane_dir.glob("store.db*")))

    async with running_plane(tmp_path) as plane:
        client = plane.client()
        await create(client, "s", "Secret", stringData={"password": WORD})
        await client.close()
        assert b"default/s" in on_disk()
        assert (plane.settings.secrets_key.stat().st_mode & 0o777) == 0o600
        await plane.stead("rotate", "secrets-key")
        keys = plane.settings.secrets_key.read_text().splitlines()
        assert len(keys) == 2

        async def again() -> None:
            plane.end(for_good=False)

        await plane.restarted(again())
        plane.settings.secrets_key.write_text(keys[0] + "\n")
        await plane.restarted(again())
        client = plane.client()
        found = await client.get(register.SECRET, "default", "s")
        await client.close()
        assert found["data"]["password"]
        for form in (WORD, found["data"]["password"]):
            assert form.encode() not in on_disk()
