"""A hypervisor that runs nothing: machines are entries of a table, with scripted delays and failures.

For scale and fault tests; never chosen unless its name is given. It keeps the contract as the libvirt driver does (the
same suite runs on both), so that what is tested on it holds there. `script` says how long each operation takes and
which call of it fails. Everything happens on the event loop; no threads, no processes, no files.
"""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import random
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec

from stead.hypervisor.contract import (
    Busy,
    Capabilities,
    DriverError,
    DriverEvent,
    Failed,
    Machine,
    NotFound,
    Observed,
    State,
    StopReason,
    Unsupported,
)
from stead.hypervisor.migration import Order, Progress
from stead.hypervisor.subscribers import Subscribers

# A one-pixel PNG: what a screenshot of nothing looks like.
_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550"
    "000000049454e44ae426082"
)


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """How operations behave. `delays` are (least, most) seconds by operation, `*` for all others. `failures` map an
    operation to the numbers of the calls that fail (from 1, over all machines), with an error of `failure_kind`.
    """

    delays: Mapping[str, tuple[float, float]] = {}
    failures: Mapping[str, tuple[int, ...]] = {}
    failure_kind: str = "Failed"
    shutdown_seconds: float = 0.05  # how long a guest takes to power off when asked; negative: it ignores the request
    agent_seconds: float = 0.05  # from start until the guest's agent answers; negative: never
    seed: int = 0


class _Entry(msgspec.Struct):
    machine: Machine
    state: State = State.OFF
    reason: StopReason = StopReason.NONE
    pid: int = 0
    agent: bool = False
    changed: bool = False
    run: int = 0  # counts starts, so that a late timer of an earlier run does nothing


class SimulatedHypervisor:
    """`Hypervisor` without a hypervisor. `crash` and `change_out_of_band` are what tests do to its machines."""

    #: drivers of one process by what `peer_socket` calls them
    _peers: weakref.WeakValueDictionary[str, SimulatedHypervisor] = weakref.WeakValueDictionary()

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self._machines: dict[str, _Entry] = {}
        self.disk_sizes: dict[tuple[str, str], int] = {}  # what guests were told while they ran, in bytes
        self._subscribers = Subscribers()
        self._calls: Counter[str] = Counter()
        self._random = random.Random(self.script.seed)  # noqa: S311  # delays, not secrets
        self._timers: set[asyncio.TimerHandle] = set()
        self._moving: dict[str, asyncio.Event] = {}  # set = to be aborted
        self._peers[f"simulated-{id(self)}"] = self
        self._next_pid = 1_000_000_000  # above any real pid: nobody may signal one by mistake

    async def open(self) -> None: ...

    async def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    async def _operation(self, name: str, subject: str) -> None:
        """Count the call, take its time, fail if the script says so."""
        self._calls[name] += 1
        number = self._calls[name]
        least, most = self.script.delays.get(name, self.script.delays.get("*", (0.0, 0.0)))
        await asyncio.sleep(self._random.uniform(least, most))
        if number in self.script.failures.get(name, ()):
            kinds: dict[str, type[DriverError]] = {"NotFound": NotFound, "Busy": Busy, "Unsupported": Unsupported}
            raise kinds.get(self.script.failure_kind, Failed)(f"{name} of {subject}: scripted failure of call {number}")

    def _entry(self, uid: str, operation: str) -> _Entry:
        try:
            return self._machines[uid]
        except KeyError:
            raise NotFound(f"{operation} of {uid}: no such machine") from None

    def _running(self, uid: str, operation: str) -> _Entry:
        entry = self._entry(uid, operation)
        if entry.state not in (State.RUNNING, State.PAUSED, State.STOPPING):
            raise Busy(f"{operation} of {entry.machine.namespace}/{entry.machine.name}: the machine is not running")
        return entry

    def _publish(self, uid: str, kind: str, detail: str = "") -> None:
        self._subscribers.publish(DriverEvent(uid=uid, kind=kind, detail=detail))

    def _later(self, seconds: float, work: Any, *arguments: Any) -> None:
        def run() -> None:
            self._timers.discard(timer)
            work(*arguments)

        timer = asyncio.get_running_loop().call_later(seconds, run)
        self._timers.add(timer)

    async def capabilities(self) -> Capabilities:
        return Capabilities(
            driver="simulated",
            version="1",
            hypervisor_version="none",
            architectures=("x86_64",),
            machine_types=("q35", "pc-q35-7.2"),
            cpu_models=("qemu64",),
            cpu_features=(),
            host_cpu_model="simulated",
            host_cpu_vendor="none",
            features=tuple(sorted(Machine.__struct_fields__)),
            software_emulation=True,
            software_emulation_reason="the simulated driver runs no guests at all",
            live_migration=True,
        )

    async def define(self, machine: Machine) -> None:
        subject = f"{machine.namespace}/{machine.name}"
        entry = self._machines.get(machine.uid)
        if entry is not None and entry.machine == machine and not entry.changed:
            return
        await self._operation("define", subject)
        if entry is not None and entry.pid:
            raise Busy(f"define of {subject}: the machine is running")
        self._machines[machine.uid] = _Entry(machine)

    async def start(self, uid: str, *, paused: bool = False) -> None:
        entry = self._entry(uid, "start")
        if entry.pid:
            raise Busy(f"start of {entry.machine.namespace}/{entry.machine.name}: the machine is already running")
        await self._operation("start", uid)
        self._next_pid += 1
        entry.pid, entry.run = self._next_pid, entry.run + 1
        entry.state, entry.reason = (State.PAUSED, StopReason.USER) if paused else (State.RUNNING, StopReason.NONE)
        self._publish(uid, "lifecycle", "started")
        if entry.machine.guest_agent and self.script.agent_seconds >= 0:
            self._later(self.script.agent_seconds, self._agent_comes, uid, entry.run)

    def _agent_comes(self, uid: str, run: int) -> None:
        entry = self._machines.get(uid)
        if entry is not None and entry.pid and entry.run == run:
            entry.agent = True
            self._publish(uid, "agent", "connected")

    def _end(self, uid: str, reason: StopReason, run: int = 0) -> None:
        entry = self._machines.get(uid)
        if entry is None or not entry.pid or (run and entry.run != run):
            return
        entry.pid, entry.agent, entry.reason = 0, False, reason
        entry.state = State.CRASHED if reason is StopReason.CRASHED else State.OFF
        self._publish(uid, "lifecycle", f"stopped: {reason.value}")

    async def shutdown(self, uid: str) -> None:
        entry = self._running(uid, "shutdown")
        await self._operation("shutdown", uid)
        if self.script.shutdown_seconds >= 0:
            self._later(self.script.shutdown_seconds, self._end, uid, StopReason.SHUTDOWN, entry.run)

    async def stop(self, uid: str) -> None:
        if uid in self._machines:
            await self._operation("stop", uid)
            self._end(uid, StopReason.DESTROYED)

    async def pause(self, uid: str) -> None:
        entry = self._running(uid, "pause")
        await self._operation("pause", uid)
        entry.state, entry.reason = State.PAUSED, StopReason.USER
        self._publish(uid, "lifecycle", "suspended")

    async def resume(self, uid: str) -> None:
        entry = self._running(uid, "resume")
        await self._operation("resume", uid)
        if entry.state is State.PAUSED:
            entry.state, entry.reason = State.RUNNING, StopReason.NONE
            self._publish(uid, "lifecycle", "resumed")

    async def reset(self, uid: str) -> None:
        self._running(uid, "reset")
        await self._operation("reset", uid)
        self._publish(uid, "reboot")

    async def reboot(self, uid: str) -> None:
        self._running(uid, "reboot")
        await self._operation("reboot", uid)
        self._publish(uid, "reboot")

    async def apply(self, machine: Machine) -> builtins.list[str]:
        entry = self._running(machine.uid, "apply")
        await self._operation("apply", machine.uid)
        return [name for name in Machine.__struct_fields__ if getattr(entry.machine, name) != getattr(machine, name)]

    async def resize_disk(self, uid: str, name: str, size_bytes: int) -> None:
        entry = self._running(uid, "resize_disk")
        if name not in [disk.name for disk in entry.machine.disks]:
            raise NotFound(f"resize_disk of {entry.machine.namespace}/{entry.machine.name}: no disk {name}")
        await self._operation("resize_disk", uid)
        self.disk_sizes[uid, name] = size_bytes

    async def undefine(self, uid: str) -> None:
        entry = self._machines.get(uid)
        if entry is None:
            return
        if entry.pid:
            raise Busy(f"undefine of {entry.machine.namespace}/{entry.machine.name}: the machine is running")
        await self._operation("undefine", uid)
        self._machines.pop(uid, None)

    async def observe(self, uid: str) -> Observed:
        entry = self._entry(uid, "observe")
        await self._operation("observe", uid)
        return _observed(entry)

    async def list(self) -> builtins.list[Observed]:
        await self._operation("list", "machines")
        return [_observed(entry) for entry in self._machines.values()]

    def events(self) -> AsyncIterator[DriverEvent]:
        return self._subscribers.subscribe()

    async def agent_command(self, uid: str, command: str, arguments: dict[str, Any] | None = None) -> Any:
        entry = self._running(uid, command)
        await self._operation("agent_command", uid)
        if not entry.agent:
            raise Busy(f"guest agent command {command} of {entry.machine.name}: no agent answers")
        return {"host-name": entry.machine.name} if command == "guest-get-host-name" else {}

    async def describe(self, uid: str) -> str:
        return msgspec.json.format(msgspec.json.encode(self._entry(uid, "describe").machine)).decode()

    async def screenshot(self, uid: str) -> bytes:
        entry = self._running(uid, "screenshot")
        if entry.machine.graphics is None:
            raise Unsupported(f"screenshot of {entry.machine.name}: the machine has no display", "graphics")
        return _PIXEL

    async def statistics(self, uid: str) -> dict[str, float]:
        entry = self._running(uid, "statistics")
        names = [f"block.{disk.name}.{way}_bytes" for disk in entry.machine.disks for way in ("rd", "wr")]
        found = {"cpu_time_ns": 0.0, "memory_rss_bytes": float(entry.machine.memory.size), **dict.fromkeys(names, 0.0)}
        return {**found, "balloon_bytes": float(entry.machine.memory.size)}

    # -- live migration -------------------------------------------------------------------------------------------

    async def peer_socket(self) -> str:
        return f"simulated-{id(self)}"

    def peer_gate(self, machine: Machine) -> Callable[[bytes], bytes]:
        return lambda data: data

    async def migrate(self, order: Order) -> None:
        entry = self._running(order.uid, "migrate")
        target = self._peers.get(order.peer)
        subject = f"{entry.machine.namespace}/{entry.machine.name}"
        if target is None:
            raise Failed(f"migrate of {subject}: nobody answers at {order.peer}")
        aborted = self._moving[order.uid] = asyncio.Event()
        try:
            await self._operation("migrate", order.uid)
            if aborted.is_set():
                raise Failed(f"migrate of {subject}: it was aborted")
        finally:
            del self._moving[order.uid]
        target.receive(order.machine, entry.state, entry.reason)
        self._end(order.uid, StopReason.MIGRATED)
        self._machines.pop(order.uid, None)

    def receive(self, machine: Machine, state: State, reason: StopReason) -> None:
        """The other side of `migrate`: the machine runs here now."""
        self._next_pid += 1
        entry = _Entry(machine, state=state, reason=reason, pid=self._next_pid, run=1)
        self._machines[machine.uid] = entry
        for detail in ("started", "resumed"):
            self._publish(machine.uid, "lifecycle", detail)
        if machine.guest_agent and self.script.agent_seconds >= 0:
            self._later(self.script.agent_seconds, self._agent_comes, machine.uid, entry.run)

    async def migration_progress(self, uid: str) -> Progress | None:
        return Progress(total=1, remaining=1) if uid in self._moving else None

    async def abort_migration(self, uid: str) -> None:
        if uid not in self._moving:
            raise Busy(f"abort of the migration of {uid}: none is under way")
        self._moving[uid].set()

    async def start_post_copy(self, uid: str) -> None:
        if uid not in self._moving:
            raise Busy(f"switch to post-copy of {uid}: no migration is under way")

    async def received(self, machine: Machine) -> None:
        self._running(machine.uid, "received")

    # -- what tests do to machines --------------------------------------------------------------------------------

    def crash(self, uid: str) -> None:
        """The machine's process dies."""
        self._end(uid, StopReason.CRASHED)

    def power_off(self, uid: str) -> None:
        """The guest powers itself off."""
        self._end(uid, StopReason.SHUTDOWN)

    def change_out_of_band(self, uid: str) -> None:
        """Somebody edits the definition."""
        self._entry(uid, "change").changed = True
        self._publish(uid, "changed", "definition")

    def lose_connection(self) -> None:
        """As when libvirtd restarts: everything must be observed again."""
        self._publish("", "lost", "scripted")


def _observed(entry: _Entry) -> Observed:
    machine = entry.machine
    encoded = msgspec.json.encode(machine, order="deterministic")
    return Observed(
        uid=machine.uid,
        namespace=machine.namespace,
        name=machine.name,
        state=entry.state,
        reason=entry.reason,
        pid=entry.pid,
        agent_connected=entry.agent,
        machine_type=machine.machine_type,
        fingerprint="" if entry.changed else hashlib.sha256(encoded).hexdigest()[:32],
    )
