"""Stand-ins for tests of the agent: a hypervisor, a pod network and materials that keep everything in memory.

`StandInHypervisor` follows the contract's laws (Busy when started twice, NotFound for strangers, events) and counts
what was asked of it; `StandInMaterials` makes small real files, so that ownership and paths are checked for real.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from stead.agent.materials import File, RegistryAccess
from stead.hypervisor.contract import (
    Busy,
    Capabilities,
    DriverEvent,
    Failed,
    Machine,
    NotFound,
    Observed,
    State,
    StopReason,
)
from stead.network.attachment import Attached, Attachment

CAPABILITIES = Capabilities(
    driver="stand-in", version="1", hypervisor_version="1", architectures=("x86_64",), machine_types=("q35",),
    cpu_models=("qemu64", "Nehalem"), cpu_features=(), host_cpu_model="qemu64", host_cpu_vendor="AMD", features=(),
    software_emulation=True, software_emulation_reason="tests run without hardware acceleration",
)  # fmt: skip


class StandInHypervisor:
    """Machines in a dictionary. `obedient` guests power off when asked; `away` makes every call fail."""

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self.seen: dict[str, Observed] = {}
        self.starts: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.obedient = True
        self.away = False
        self.start_error: Exception | None = None
        self.define_error: Exception | None = None
        self.agent_answers: dict[str, Any] = {}
        self.agent_requests: list[tuple[str, dict[str, Any]]] = []
        self.pids = iter(range(1000, 10000))
        self._listeners: list[asyncio.Queue[DriverEvent]] = []

    def _check(self, call: str, uid: str) -> None:
        self.calls.append((call, uid))
        if self.away:
            raise Failed(f"{call} of {uid}: the hypervisor does not answer")

    async def open(self) -> None:
        self._check("open", "")

    async def close(self) -> None:
        pass

    async def capabilities(self) -> Capabilities:
        return CAPABILITIES

    async def define(self, machine: Machine) -> None:
        self._check("define", machine.uid)
        if self.define_error is not None:
            raise self.define_error
        self.machines[machine.uid] = machine
        self.seen[machine.uid] = Observed(
            uid=machine.uid, namespace=machine.namespace, name=machine.name, state=State.OFF, fingerprint="f"
        )

    async def start(self, uid: str, *, paused: bool = False) -> None:
        self._check("start", uid)
        if self.start_error is not None:
            raise self.start_error
        if self._get(uid).state is not State.OFF:
            raise Busy(f"start of {uid}: it is running")
        self.starts.append(uid)
        state, reason = (State.PAUSED, StopReason.USER) if paused else (State.RUNNING, StopReason.NONE)
        self.change(uid, state=state, reason=reason, pid=next(self.pids), machine_type="pc-q35-8.2")

    async def shutdown(self, uid: str) -> None:
        self._check("shutdown", uid)
        if self.obedient:
            self.change(uid, state=State.OFF, reason=StopReason.SHUTDOWN, pid=0, agent_connected=False)

    async def stop(self, uid: str) -> None:
        self._check("stop", uid)
        if uid in self.seen and self.seen[uid].state is not State.OFF:
            self.change(uid, state=State.OFF, reason=StopReason.DESTROYED, pid=0, agent_connected=False)

    async def pause(self, uid: str) -> None:
        self._check("pause", uid)
        self.change(uid, state=State.PAUSED, reason=StopReason.USER)

    async def resume(self, uid: str) -> None:
        self._check("resume", uid)
        self.change(uid, state=State.RUNNING, reason=StopReason.NONE)

    async def reset(self, uid: str) -> None:
        self._check("reset", uid)

    async def reboot(self, uid: str) -> None:
        self._check("reboot", uid)

    async def apply(self, machine: Machine) -> list[str]:
        return []

    async def resize_disk(self, uid: str, name: str, size_bytes: int) -> None:
        self._check(f"resize {name} {size_bytes}", uid)

    async def undefine(self, uid: str) -> None:
        self._check("undefine", uid)
        self.machines.pop(uid, None)
        self.seen.pop(uid, None)

    def _get(self, uid: str) -> Observed:
        if uid not in self.seen:
            raise NotFound(f"no machine {uid}")
        return self.seen[uid]

    async def observe(self, uid: str) -> Observed:
        if self.away:
            raise Failed("the hypervisor does not answer")
        return self._get(uid)

    async def list(self) -> list[Observed]:
        self._check("list", "")
        return list(self.seen.values())

    async def events(self) -> AsyncIterator[DriverEvent]:
        queue: asyncio.Queue[DriverEvent] = asyncio.Queue(maxsize=100)
        self._listeners.append(queue)
        while True:
            yield await queue.get()

    def change(self, uid: str, **changes: Any) -> None:
        """Something happens to a machine, and the hypervisor says so."""
        self.seen[uid] = msgspec.structs.replace(self.seen[uid], **changes)
        self.say(DriverEvent(uid=uid, kind="lifecycle"))

    def say(self, event: DriverEvent) -> None:
        for queue in self._listeners:
            queue.put_nowait(event)

    async def agent_command(self, uid: str, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self._check(command, uid)
        self.agent_requests.append((command, arguments or {}))
        if command not in self.agent_answers:
            raise Busy(f"{command}: the guest agent does not answer")
        return self.agent_answers[command]

    async def describe(self, uid: str) -> str:
        return f"<domain><uuid>{uid}</uuid></domain>"

    async def screenshot(self, uid: str) -> bytes:
        return b"\x89PNG"

    async def statistics(self, uid: str) -> dict[str, float]:
        return {"cpu_time_ns": 2e9, "block.root.rd_bytes": 7.0, "net.default.rx_bytes": 5.0}


class StandInNetworks:
    """A pod network that only takes notes."""

    def __init__(self) -> None:
        self.attached: dict[str, Attachment] = {}
        self.settled: list[str] = []
        self.silent: set[str] = set()

    async def attach(self, request: Attachment) -> Attached:
        self.attached[request.machine_uid] = request
        return Attached(
            nic_backend="tap", target=f"t{request.machine_uid[:8]}", mac=request.mac, mtu=1500, address=request.ipv4,
            netns=f"/run/netns/{request.machine_uid}",
        )  # fmt: skip

    async def settle(self, uid: str) -> None:
        self.settled.append(uid)

    async def announce(self, uid: str) -> None:
        self.silent.discard(uid)

    async def withdraw(self, uid: str) -> None:
        self.silent.add(uid)

    async def detach(self, uid: str) -> None:
        self.attached.pop(uid, None)

    async def list(self) -> set[str]:
        return set(self.attached)


class StandInMaterials:
    """Small real files below one folder. `missing_images` cannot be pulled."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.missing_images: set[str] = set()
        self.isos: dict[str, tuple[str, dict[str, bytes]]] = {}
        self.delay = 0.0

    def roots(self) -> tuple[Path, ...]:
        return (self.root,)

    async def volume(self, pool_uid: str, volume_uid: str) -> File:
        path = self.root / volume_uid / "disk.img"
        if not path.exists():
            raise FileNotFoundError(f"volume {volume_uid} is not in pool {pool_uid}")
        return File(path=str(path), format="raw", virtual_bytes=path.stat().st_size)

    def add_volume(self, volume_uid: str, size: int = 4096) -> Path:
        path = self.root / volume_uid / "disk.img"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\0" * size)
        return path

    async def container_disk(self, image: str, pull_policy: str, access: RegistryAccess, path: str) -> File:
        await asyncio.sleep(self.delay)
        if image in self.missing_images:
            raise LookupError(f"manifest of {image} is unknown")
        base = self.root / "base.img"
        base.write_bytes(b"\0" * 4096)
        return File(path=str(base), format="raw", virtual_bytes=4096, digest="sha256:" + "ab" * 32)

    async def container_files(
        self, image: str, pull_policy: str, access: RegistryAccess, paths: tuple[str, ...]
    ) -> tuple[str, ...]:
        return tuple(str(self.root / path.lstrip("/")) for path in paths)

    async def fetch(self, url: str, target: Path) -> None:
        target.write_bytes(url.encode())

    async def overlay(self, base: File, target: Path, owner: tuple[int, int]) -> None:
        target.write_bytes(b"overlay")

    async def empty(self, target: Path, size: int, owner: tuple[int, int]) -> None:
        target.write_bytes(b"empty")

    async def iso(self, files: Mapping[str, bytes], label: str, target: Path, owner: tuple[int, int]) -> None:
        self.isos[target.name] = (label, dict(files))
        target.write_bytes(b"iso")
