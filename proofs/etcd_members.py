"""Members of an etcd cluster as processes: started, killed with SIGKILL, frozen, thawed, started again.

Debian's etcd with three members on loopback, TLS between all, client certificates required, as `docs/how-to/etcd.md`
shows it. Every member serves clients with a certificate that may also be a client's: its JSON gateway asks itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
from pathlib import Path

from stead import pki

START_SECONDS = 30.0


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Member:
    """One member: its ports, folder and process."""

    def __init__(self, root: Path, number: int) -> None:
        self.name = f"m{number}"
        self.folder = root / self.name
        self.client_port, self.peer_port = free_port(), free_port()
        self._log = root / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def peer(self) -> str:
        """Name and URL as `--initial-cluster` wants them."""
        return f"{self.name}=https://127.0.0.1:{self.peer_port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, tls: Path, peers: str) -> None:
        """Start it; it has what it had when it was killed."""
        client, peer = f"https://127.0.0.1:{self.client_port}", f"https://127.0.0.1:{self.peer_port}"
        words = [
            "--name", self.name, "--data-dir", str(self.folder), "--listen-client-urls", client,
            "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", peers, "--max-request-bytes", "2097152",
            "--cert-file", f"{tls}/etcd.crt", "--key-file", f"{tls}/etcd.key", "--client-cert-auth",
            "--trusted-ca-file", f"{tls}/ca.crt", "--peer-cert-file", f"{tls}/etcd.crt", "--peer-client-cert-auth",
            "--peer-key-file", f"{tls}/etcd.key", "--peer-trusted-ca-file", f"{tls}/ca.crt", "--logger", "zap",
            "--log-level", "warn",
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["etcd", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        """The end of what it has logged."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-1500:]


class Cluster:
    """So many members below a folder. `async with Cluster(root, 3) as cluster`."""

    def __init__(self, root: Path, size: int = 3) -> None:
        self.tls = root / "tls"
        self.members = [Member(root, number) for number in range(size)]

    async def __aenter__(self) -> Cluster:
        if shutil.which("etcd") is None:
            raise OSError("there is no etcd: apt-get install etcd-server")
        authority = pki.ensure_authority(self.tls, "etcd-ca")
        names = ("127.0.0.1", "localhost")
        for name, identity in (("etcd", pki.Identity("etcd", names=names)), ("client", pki.Identity("stead"))):
            pki.ensure_certificate(authority, pki.Pair(self.tls / f"{name}.crt", self.tls / f"{name}.key"), identity)
        try:
            for member in self.members:
                member.start(self.tls, self._peers)
            await self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def _peers(self) -> str:
        return ",".join(member.peer for member in self.members)

    @property
    def endpoints(self) -> list[str]:
        """host:port of each member, for clients."""
        return [f"127.0.0.1:{member.client_port}" for member in self.members]

    def url(self, name: str = "stead") -> str:
        """The value of the setting `store`."""
        return f"etcd://{','.join(self.endpoints)}/{name}"

    def settings(self, name: str = "stead") -> dict[str, str]:
        """The settings of a plane that keeps its state here."""
        return {
            "store": self.url(name), "store_ca_file": str(self.tls / "ca.crt"),
            "store_certificate_file": str(self.tls / "client.crt"), "store_key_file": str(self.tls / "client.key"),
        }  # fmt: skip

    def context(self) -> ssl.SSLContext:
        """TLS of a client."""
        return pki.client_context(self.tls / "ca.crt", pki.Pair(self.tls / "client.crt", self.tls / "client.key"))

    def start(self, member: Member) -> None:
        """Start one again."""
        member.start(self.tls, self._peers)

    async def wait_ready(self) -> None:
        """Return once every running member has seen a quorum. Raises TimeoutError."""
        from stead.store.contract import StoreFailure
        from stead.store.etcd_gateway import Gateway, RangeAnswer

        for member in self.members:
            if not member.is_running:
                continue
            gateway = Gateway([f"127.0.0.1:{member.client_port}"], self.context())
            try:
                async with asyncio.timeout(START_SECONDS):
                    while True:
                        with contextlib.suppress(StoreFailure):
                            await gateway.read("/v3/kv/range", {"key": "eA=="}, RangeAnswer)
                            break
                        await asyncio.sleep(0.1)
            except TimeoutError as error:
                raise TimeoutError(f"etcd member {member.name} is not ready; its log ends: {member.log()}") from error
            finally:
                await gateway.close()

    def close(self) -> None:
        """End all."""
        for member in self.members:
            member.kill()
