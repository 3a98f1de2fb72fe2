"""Live migration by libvirt: peer to peer, with QEMU's and libvirt's native TLS. Blocking parts run in pool threads.

Mixed into the driver, which lends its connection. The source's libvirtd talks to the target's over a unix socket that
the agents join (calls of a few kilobytes); memory and disks go from QEMU to QEMU over TCP, under TLS with the
certificates that libvirt's `migrate_tls_x509_cert_dir` names: libvirt refuses a migration without them, and so do we.
Source: virDomainMigrateToURI3, virDomainGetJobStats (libvirt 9.0).
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt

from stead.hypervisor.contract import Busy, Machine, NotFound, Unsupported
from stead.hypervisor.libvirt import domains
from stead.hypervisor.libvirt.connection import Connection
from stead.hypervisor.libvirt.domains import Known, inactive_xml, lookup, subject_of
from stead.hypervisor.libvirt.gate import Gate
from stead.hypervisor.libvirt.handover import arriving_xml, copied_targets
from stead.hypervisor.libvirt.xml import definition_digest, domain_xml, mark_of
from stead.hypervisor.migration import Order, Progress

#: a migration has deadlines of its own, which the agent keeps
MIGRATE_SECONDS = 7 * 86400.0
#: sockets of the host's own libvirt: the split daemon's first
_SOCKETS = {"/system": ("/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock")}
_FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    | libvirt.VIR_MIGRATE_TLS
    # The agents know which disks both hosts see; libvirt would only trust a few file systems by name.
    | libvirt.VIR_MIGRATE_UNSAFE
)


def socket_of(uri: str) -> str:
    """The unix socket behind a connection URI. Raises Unsupported for a libvirt that is reached otherwise."""
    found = urllib.parse.urlsplit(uri)
    named = urllib.parse.parse_qs(found.query).get("socket")
    if named:
        return named[0]
    for path in _SOCKETS.get(found.path, ()) if not found.netloc else ():
        if Path(path).exists():
            return path
    raise Unsupported(f"migrate: no unix socket of libvirt at {uri}", "live_migration")


def peer_uri(socket: str) -> str:
    """How libvirtd reaches another one through a unix socket."""
    return f"qemu+unix:///system?socket={urllib.parse.quote(socket)}"


def flags_of(order: Order) -> int:
    """libvirt's flags for an order."""
    flags: int = _FLAGS
    if order.copied_disks:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_INC
    if order.auto_converge:
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if order.post_copy:
        flags |= libvirt.VIR_MIGRATE_POSTCOPY
    elif order.connections > 1:  # QEMU has no post-copy over parallel connections
        flags |= libvirt.VIR_MIGRATE_PARALLEL
    return flags


def parameters_of(order: Order, leaving: str) -> dict[str, Any]:
    """libvirt's typed parameters. `leaving` is the source's migratable description."""
    address = f"[{order.address}]" if ":" in order.address else order.address
    parameters: dict[str, Any] = {
        libvirt.VIR_MIGRATE_PARAM_URI: f"tcp:{address}" if ":" not in order.address else f"tcp://{address}",
        libvirt.VIR_MIGRATE_PARAM_LISTEN_ADDRESS: order.address,
        libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION: order.server_name,
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: arriving_xml(leaving, order.machine),
        libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: domain_xml(order.machine),
    }
    if order.copied_disks:
        parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = copied_targets(order.machine, order.copied_disks)
    if order.bandwidth:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = max(1, order.bandwidth >> 20)
    if order.connections > 1 and not order.post_copy:
        parameters[libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = order.connections
    return parameters


def progress_from(stats: dict[str, Any]) -> Progress | None:
    """The contract's figures from virDomainGetJobStats; None when no migration is under way."""
    if stats.get("type") not in (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED):
        return None
    page = int(stats.get("memory_page_size", 4096))
    return Progress(
        total=int(stats.get("data_total", 0)),
        processed=int(stats.get("data_processed", 0)),
        remaining=int(stats.get("data_remaining", 0)),
        memory_remaining=int(stats.get("memory_remaining", 0)),
        transfer_rate=int(stats.get("memory_bps", 0)) + int(stats.get("disk_bps", 0)),
        dirty_rate=int(stats.get("memory_dirty_rate", 0)) * page,
        downtime_ms=int(stats.get("downtime", 0)),
        elapsed_ms=int(stats.get("time_elapsed", 0)),
        post_copy=bool(stats.get("memory_postcopy_reqs", 0)),
    )


class Moving:
    """The driver's part for `Migrating`; see the module."""

    _connection: Connection
    _uri: str
    _known: dict[str, Known]

    async def peer_socket(self) -> str:
        return socket_of(self._uri)

    def peer_gate(self, machine: Machine) -> Callable[[bytes], bytes]:
        return Gate(machine).feed

    async def migrate(self, order: Order) -> None:
        subject = subject_of(order.machine)

        def move(connection: libvirt.virConnect) -> None:
            domain = lookup(connection, order.uid)
            leaving = str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE))
            parameters = parameters_of(order, leaving)
            if order.max_downtime_ms:
                domain.migrateSetMaxDowntime(order.max_downtime_ms, 0)
            domain.migrateToURI3(peer_uri(order.peer), parameters, flags_of(order))

        await self._connection.call("migrate", subject, move, MIGRATE_SECONDS)

    async def migration_progress(self, uid: str) -> Progress | None:
        try:
            return await self._connection.call(
                "migration progress", uid, lambda c: progress_from(lookup(c, uid).jobStats(0))
            )
        except (NotFound, Busy):  # it is not here any more
            return None

    async def abort_migration(self, uid: str) -> None:
        await self._connection.call("abort of the migration", uid, lambda c: lookup(c, uid).abortJob())

    async def start_post_copy(self, uid: str) -> None:
        await self._connection.call("switch to post-copy", uid, lambda c: lookup(c, uid).migrateStartPostCopy(0))

    async def received(self, machine: Machine) -> None:
        def confine(connection: libvirt.virConnect) -> Known:
            domain = lookup(connection, machine.uid)
            known = Known(mark_of(machine), definition_digest(inactive_xml(domain)))
            try:
                known.pid = domains.confine(domain, machine)
            except libvirt.libvirtError as error:  # a host without that controller: told by `observe`
                known.unconfined = str(error)
            return known

        self._known[machine.uid] = await self._connection.call("limit", subject_of(machine), confine)
