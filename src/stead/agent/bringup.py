"""Brings one machine up and takes it away: prepare, define, start; stop, undefine, release. Steps of `machine.py`.

Each function is idempotent, so that whatever a crash of the agent interrupted is simply done again. What `prepare`
makes stays until `release`, except ports, which are taken back at once when preparing fails. Runs in the machine's
own tasks only.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from stead.agent import paths, tracking
from stead.agent import vmi as reading
from stead.agent.disks import Owner, Take, together
from stead.agent.plan import HostSide, field_path, machine_from, memory_overhead
from stead.agent.plan_fields import check_honoured
from stead.agent.prepared import Prepared, Unsupported
from stead.agent.record import Record
from stead.agent.workshop import Workshop
from stead.hypervisor import contract
from stead.hypervisor.contract import Machine

Object = dict[str, Any]


class _Places(msgspec.Struct, frozen=True):
    """Id and folders of a machine on this host."""

    number: int
    directory: Path
    run_dir: Path
    persistent: str


async def prepare(shop: Workshop, vmi: Object, *, standby: bool = False) -> Prepared:
    """Everything that the machine needs before it can be defined. Raises NotReady, Unsupported, ApiError, OSError.

    `standby`: its guest still runs on another host, so its port stays silent until `nets.announce`.
    """
    check_honoured(reading.spec(vmi))
    places = await asyncio.to_thread(_make_places, shop, vmi)
    owner = Owner(places.number, places.number, places.directory)
    try:
        volumes, kernel, tables, ports, _ = await together(
            shop.disks.prepare(vmi, owner, _taker(shop, vmi)),
            shop.disks.prepare_kernel(vmi, owner),
            shop.disks.prepare_acpi_tables(vmi, owner),
            shop.nets.prepare(vmi, places.number, standby=standby),
            asyncio.to_thread(shop.identities.keep),
        )
    except BaseException:
        await shop.nets.release(reading.uid(vmi))
        raise
    volumes = await tracking.prepare(vmi, volumes, places.persistent, owner.ids)
    return Prepared(
        uid=places.number, gid=places.number, directory=str(places.directory), run_dir=str(places.run_dir),
        volumes=volumes, nics=ports.nics, addresses=ports.addresses, kernel=kernel, acpi_tables=tables,
        memory_overhead=memory_overhead(vmi), persistent=places.persistent,
        vsock_cid=shop.identities.vsock_cid(places.number) if reading.has_vsock(vmi) else 0,
    )  # fmt: skip


def _make_places(shop: Workshop, vmi: Object) -> _Places:
    """Blocking."""
    uid = reading.uid(vmi)
    number = shop.identities.reserve(uid)
    shop.sockets_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    run_dir = paths.make_directory(shop.sockets_dir, uid, uid=number, gid=number, mode=0o700)
    persistent = shop.persistence.prepare(vmi, number, number)
    return _Places(number, shop.records.directory(uid), run_dir, persistent)


def _taker(shop: Workshop, vmi: Object) -> Take:
    """How a volume's disk is taken for this machine: NotReady while another machine of this host has it."""
    shareable = {d["name"] for d in reading.devices(vmi).get("disks") or [] if d.get("shareable")}
    return lambda path, name: shop.disks_in_use.take(reading.uid(vmi), path, shared=name in shareable)


def plan(shop: Workshop, vmi: Object, prepared: Prepared) -> Machine:
    """The hypervisor's machine. Raises Unsupported."""
    settings = shop.settings
    side = HostSide(
        instance=settings.instance,
        capabilities=shop.known_capabilities(),
        pids_limit=settings.pids_limit,
        vsock=shop.vsock,
    )
    return machine_from(vmi, prepared, side)


async def define(shop: Workshop, machine: Machine) -> None:
    """Define it; a field that the driver cannot honour is told by the VMI's path."""
    try:
        await shop.hypervisor.define(machine)
    except contract.Unsupported as error:
        raise Unsupported(field_path(error.field), str(error)) from error


async def start(shop: Workshop, vmi: Object, prepared: Prepared, machine: Machine) -> None:
    """Start what is defined. From the record on, this machine is never started a second time. Raises DriverError."""
    record = Record(uid=machine.uid, namespace=machine.namespace, name=machine.name, prepared=prepared, started=True)
    await asyncio.to_thread(shop.records.write, record)
    await shop.hypervisor.start(machine.uid, paused=reading.starts_paused(vmi))


async def release(shop: Workshop, uid: str, prepared: Prepared | None) -> None:
    """Leave nothing of a machine: its process, definition, ports, private files, uid. Its claims go back to root."""
    await shop.hypervisor.stop(uid)
    await shop.hypervisor.undefine(uid)
    await shop.nets.release(uid)
    shop.disks_in_use.free(uid)
    if prepared is not None:
        await asyncio.to_thread(tracking.note_end, prepared)
        await asyncio.to_thread(_take_back_disks, shop, prepared)
    await asyncio.to_thread(paths.remove_tree, shop.sockets_dir, uid)
    await asyncio.to_thread(shop.records.remove, uid)
    await asyncio.to_thread(shop.persistence.remove, uid)  # that of an instance without a VirtualMachine
    await asyncio.to_thread(shop.identities.free, uid)


async def leave(shop: Workshop, uid: str, prepared: Prepared | None) -> None:
    """As `release`, of a machine that runs on another host now: disks that both see are that host's."""
    await release(shop, uid, prepared.without_shared() if prepared is not None else None)


def _take_back_disks(shop: Workshop, prepared: Prepared) -> None:
    roots = (*shop.disks.roots(), *shop.settings.host_disk_roots)
    for volume in prepared.volumes:
        if not (volume.claim or volume.kind == "hostDisk") or volume.kind == "ephemeral":
            continue
        located = paths.below(Path(volume.path), roots)
        if located is not None:
            _give_to_root(*located)


def _give_to_root(root: Path, relative: str) -> None:
    try:
        paths.give(root, relative, 0, 0)
    except OSError:
        return  # the volume has been deleted meanwhile
