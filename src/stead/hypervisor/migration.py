"""Live migration: a small contract that a driver may offer beside `Hypervisor`; `Capabilities.live_migration` says so.

The source's driver does the work, driven by the agent of the source in the machine's own task; the target's only says
where it is reached and, at the end, confines what has arrived. Memory and the content of local disks go from process
to process, encrypted; how the two hypervisors talk about it is the driver's (`Order.peer` is a unix socket that the
agents join with the one that `peer_socket` names on the target). A machine runs on exactly one side at any time: when
`migrate` raises, it still runs at the source (or is lost there, which `observe` tells), and nothing is at the target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from stead.hypervisor.contract import Machine, Value


class Order(Value, frozen=True):
    """One migration as the source's driver is to do it. `machine` is the machine as the target has prepared it: same
    guest, the target's paths, user and ports. `bandwidth` is bytes a second, 0 = unlimited.
    """

    uid: str
    machine: Machine
    peer: str  # unix socket here that leads to the target's hypervisor
    address: str  # where the target's process listens
    server_name: str  # what the target's certificate must be for
    copied_disks: tuple[str, ...] = ()  # names of disks whose content goes along
    bandwidth: int = 0
    auto_converge: bool = False
    post_copy: bool = False  # may be switched to (`start_post_copy`)
    connections: int = 0  # parallel connections; 0 = one
    max_downtime_ms: int = 0  # 0 = the hypervisor's default


class Progress(Value, frozen=True):
    """How far a migration is. Sizes in bytes, of memory and disks together; rates in bytes a second."""

    total: int = 0
    processed: int = 0
    remaining: int = 0
    memory_remaining: int = 0
    transfer_rate: int = 0
    dirty_rate: int = 0
    downtime_ms: int = 0  # expected, or measured once it is over
    elapsed_ms: int = 0
    post_copy: bool = False


@runtime_checkable
class Migrating(Protocol):
    """What a driver offers. Every method may raise the four kinds of `DriverError`."""

    async def peer_socket(self) -> str:
        """The unix socket of this host's hypervisor that a source's is joined with. Unsupported when there is none."""
        ...

    def peer_gate(self, machine: Machine) -> Callable[[bytes], bytes]:
        """For what a source says through that socket about a machine that was prepared here: called with what
        arrives, it returns what may go on, and raises Unsupported for what is no part of its migration.
        """
        ...

    async def migrate(self, order: Order) -> None:
        """Move a running machine; returns once it runs at the target and nothing of it runs here."""
        ...

    async def migration_progress(self, uid: str) -> Progress | None:
        """None when no migration of it is under way."""
        ...

    async def abort_migration(self, uid: str) -> None:
        """Ask for the end of a migration; `migrate` then raises. Busy when it cannot be ended any more."""
        ...

    async def start_post_copy(self, uid: str) -> None:
        """Run at the target from now on, memory following. There is no way back."""
        ...

    async def received(self, machine: Machine) -> None:
        """At the target, once it runs: limits that the source could not set."""
        ...
