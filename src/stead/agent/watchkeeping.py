"""What one machine's task keeps an eye on besides the hypervisor: room on the storage of a halted guest, and probes.

Both belong to one `Machine` and are touched from its task only. `Storage` decides when a guest that was halted by a
full disk may try again: as soon as every file system of its disks has room, at growing intervals if that does not
last.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from stead.agent import vmi as reading
from stead.agent.probes import Prober, Target
from stead.hypervisor.contract import State, StopReason

if TYPE_CHECKING:
    from stead.agent.machine import Machine

#: room that must be there before a halted guest is woken
ROOM_BYTES = 64 * 1024 * 1024
FIRST_INTERVAL = 2.0
LAST_INTERVAL = 60.0
#: a guest that ran this long after it was woken has recovered
RECOVERED_SECONDS = 60.0


class Storage:
    """Room for a guest that an I/O error has paused."""

    def __init__(self) -> None:
        self.watching = False
        self.space_returned = False
        self.interval = FIRST_INTERVAL
        self._resumed_at = float("-inf")

    def check(self, machine: Machine) -> None:
        """Look, if the guest is halted by its storage (statvfs does not block on local file systems)."""
        seen = machine.observed
        halted = seen is not None and seen.state is State.PAUSED and seen.reason is StopReason.IO_ERROR
        if halted and not self.watching:
            recovered = asyncio.get_running_loop().time() - self._resumed_at > RECOVERED_SECONDS
            self.interval = FIRST_INTERVAL if recovered else min(LAST_INTERVAL, self.interval * 2)
        self.watching = halted
        waited = asyncio.get_running_loop().time() - self._resumed_at >= self.interval
        self.space_returned = halted and waited and _has_room(machine)

    def resumed(self, machine: Machine) -> None:
        """The guest is being woken."""
        self._resumed_at = asyncio.get_running_loop().time()
        self.watching = self.space_returned = False


def _has_room(machine: Machine) -> bool:
    volumes = machine.prepared.volumes if machine.prepared else ()
    for volume in volumes:
        if volume.read_only or volume.source != "file":
            continue
        try:
            found = os.statvfs(volume.path)
        except OSError:
            return False
        if found.f_bavail * found.f_frsize < ROOM_BYTES:
            return False
    return True


class Probing:
    """Readiness and liveness of one machine. `ready` is None without a readiness probe."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._tasks: list[asyncio.Task[Any]] = []
        self.ready: bool | None = None

    def start(self) -> None:
        """The guest runs: begin probing, once."""
        if self._tasks:
            return
        spec = reading.spec(self._machine.vmi)
        if spec.get("readinessProbe"):
            self.ready = False
            self._run(Prober(spec["readinessProbe"], self._target(), healthy=False, changed=self._readiness).run())
        if spec.get("livenessProbe"):
            self._run(Prober(spec["livenessProbe"], self._target(), healthy=True, changed=self._liveness).run())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work, name=f"probe {self._machine.uid}"))

    def _target(self) -> Target:
        machine = self._machine

        async def ask(command: str, arguments: dict[str, Any] | None) -> Any:
            return await machine.shop.hypervisor.agent_command(machine.uid, command, arguments)

        return Target(
            ask,
            lambda: machine.address,
            lambda: machine.observed is not None and machine.observed.state is State.RUNNING,
        )

    def _readiness(self, healthy: bool) -> None:
        self.ready = healthy
        self._machine.wake()

    def _liveness(self, healthy: bool) -> None:
        if not healthy:
            self._run(self._machine.end.kill("Unhealthy", "the liveness probe failed: the machine is stopped"))

    def stop(self) -> None:
        """No more probing."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
