"""The libvirt driver: persistent domains named by `xml.domain_name`, uuid = the machine's uid, carrying our metadata.

Called by the agent through the `Hypervisor` contract, from one task a machine. Only domains whose metadata says that
they belong to this Stead are touched. Blocking calls run in the connection's thread pool. What is known of each domain
(`Known`) is a cache, dropped when libvirt's connection breaks or somebody changes the domain; libvirt itself is the
truth. Source: libvirt 9.0 API.

define + start are one call of libvirt each: the rest (limits, socket modes) are system calls of microseconds.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import json
import logging
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu  # type: ignore[import-untyped]  # libvirt-python has no types

from stead.hypervisor.contract import (
    BackupJob,
    Busy,
    Capabilities,
    Checkpoint,
    DriverEvent,
    Failed,
    Machine,
    NotFound,
    Observed,
    Unsupported,
)
from stead.hypervisor.libvirt import backups, domains, passage, process
from stead.hypervisor.libvirt import capabilities as capability_documents
from stead.hypervisor.libvirt.connection import Connection
from stead.hypervisor.libvirt.devices import GUEST_AGENT_CHANNEL
from stead.hypervisor.libvirt.domains import Known, emulation_detail, inactive_xml, lookup, subject_of
from stead.hypervisor.libvirt.emulation import probe
from stead.hypervisor.libvirt.events import lifecycle_detail, register_callbacks, state_from_libvirt
from stead.hypervisor.libvirt.firmware import choose_template, read_descriptors
from stead.hypervisor.libvirt.hotplug import apply_in_place
from stead.hypervisor.libvirt.moving import Moving
from stead.hypervisor.libvirt.screen import read_screen
from stead.hypervisor.libvirt.statistics import read_statistics
from stead.hypervisor.libvirt.xml import (
    Mark,
    definition_digest,
    fingerprint,
    mark_from_element,
    mark_from_xml,
)
from stead.hypervisor.subscribers import Subscribers

log = logging.getLogger(__name__)

START_SECONDS = 120.0
STOP_SECONDS = 20.0
PROBE_SECONDS = 120.0  # libvirt's own probe of QEMU is part of the first capabilities call
AGENT_SECONDS = 5


class LibvirtHypervisor(Moving):
    """`Hypervisor` on libvirt's QEMU driver. `state_dir` keeps the probe's answer over restarts (optional).

    Several Steads may share one libvirt: with `instance`, the domains of any other are foreign.
    """

    def __init__(self, uri: str = "qemu:///system", state_dir: str | Path | None = None, instance: str = "") -> None:
        self._instance = instance
        self._connection = Connection(uri, self._register, self._on_lost)
        self._uri = uri
        self._state_dir = Path(state_dir) if state_dir is not None else None
        self._subscribers = Subscribers()
        self._known: dict[str, Known] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._starting: set[str] = set()
        self._checks: set[asyncio.Task[None]] = set()
        self._capabilities: Capabilities | None = None

    async def open(self) -> None:
        await self._connection.open()
        try:
            if await asyncio.to_thread(passage.allow, self._uri, self._state_dir):
                log.info("machines may pass %s now", passage.FOLDER)
        except OSError as error:
            raise Failed(f"open {self._uri}: machines cannot be let through {passage.FOLDER}: {error}") from error

    async def close(self) -> None:
        for task in tuple(self._checks):
            task.cancel()
        await asyncio.gather(*self._checks, return_exceptions=True)
        await self._connection.close()

    # -- events ---------------------------------------------------------------------------------------------------

    def events(self) -> AsyncIterator[DriverEvent]:
        return self._subscribers.subscribe()

    def _register(self, connection: libvirt.virConnect) -> None:
        """In a pool thread: callbacks on a new connection; each only posts to the event loop."""
        post = self._connection.post
        register_callbacks(
            connection,
            lambda uid, event, detail: post(self._on_lifecycle, uid, event, detail),
            lambda uid, kind, detail: post(self._publish, uid, kind, detail),
        )

    def _publish(self, uid: str, kind: str, detail: str) -> None:
        """An event of a machine of ours. Events of domains that we have not seen are checked for our mark first."""
        if uid in self._known:
            self._subscribers.publish(DriverEvent(uid=uid, kind=kind, detail=detail))
        else:
            self._spawn(self._publish_if_ours(uid, kind, detail))

    async def _publish_if_ours(self, uid: str, kind: str, detail: str) -> None:
        with contextlib.suppress(NotFound, Failed, Busy):
            await self._mark(uid)
            self._subscribers.publish(DriverEvent(uid=uid, kind=kind, detail=detail))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    def _on_lifecycle(self, uid: str, event: int, detail: int) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_DEFINED:
            self._spawn(self._check_definition(uid))
        elif event == libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
            if self._known.pop(uid, None) is not None:  # our own undefine forgets it before it calls
                self._subscribers.publish(DriverEvent(uid=uid, kind="changed", detail="undefined"))
        else:
            self._publish(uid, "lifecycle", lifecycle_detail(event, detail))
            known = self._known.get(uid)
            if event == libvirt.VIR_DOMAIN_EVENT_STARTED and known is not None and known.mark.machine is not None:
                self._spawn(self._confine(known.mark.machine))
            if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
                process.release_limit(uid)

    async def _confine(self, machine: Machine) -> None:
        """Limits of a machine that somebody started by virsh: `start` itself sets them before it returns."""
        if machine.uid in self._starting:
            return
        with contextlib.suppress(NotFound, Failed, Busy, Unsupported, OSError):
            await self._connection.call(
                "limit", subject_of(machine), lambda c: domains.confine(lookup(c, machine.uid), machine)
            )

    async def _limit_memory(self, machine: Machine) -> None:
        """After a start, beside it: libvirt is busy with the new domain for some 20 ms more. A failure is kept for
        `observe` to tell.
        """
        known = self._known.get(machine.uid)
        try:
            await self._connection.call(
                "limit the memory",
                subject_of(machine),
                lambda c: domains.limit_memory(lookup(c, machine.uid), machine),
            )
        except NotFound:
            pass
        except (Failed, Busy, Unsupported) as error:
            if known is not None and known.pid:
                known.unconfined = str(error)

    async def _check_definition(self, uid: str) -> None:
        """Somebody defined a domain: if it is ours and not what we defined, say so."""
        async with self._lock(uid):
            known = self._known.get(uid)
            if known is None or known.changed:
                return
            with contextlib.suppress(NotFound, Failed, Busy, Unsupported):
                text = await self._connection.call("read", uid, lambda c: inactive_xml(lookup(c, uid)))
                if definition_digest(text) != known.digest:
                    known.changed = True
                    self._subscribers.publish(DriverEvent(uid=uid, kind="changed", detail="definition"))

    def _on_lost(self, detail: str) -> None:
        self._subscribers.publish(DriverEvent(uid="", kind="lost", detail=detail))

    def _lock(self, uid: str) -> asyncio.Lock:
        return self._locks.setdefault(uid, asyncio.Lock())

    # -- what there is --------------------------------------------------------------------------------------------

    async def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            host = await self._connection.call("capabilities", "the host", lambda c: c.getCapabilities(), PROBE_SECONDS)
            cache = self._state_dir / "kvm-probe.json" if self._state_dir else None
            found = await probe(capability_documents.emulator_from_documents(host), cache)
            documents = await self._connection.call(
                "capabilities",
                "the host",
                lambda c: capability_documents.read(c, found.software_emulation),
                PROBE_SECONDS,
            )
            self._capabilities = capability_documents.capabilities_from_documents(documents, found)
        return self._capabilities

    async def observe(self, uid: str) -> Observed:
        return await self._connection.call("observe", uid, lambda c: self._observe(lookup(c, uid)))

    async def list(self) -> builtins.list[Observed]:
        return await self._connection.call("list", "machines", self._list, START_SECONDS)

    def _list(self, connection: libvirt.virConnect) -> builtins.list[Observed]:
        found = []
        for domain in connection.listAllDomains():
            with contextlib.suppress(NotFound, libvirt.libvirtError):  # foreign, or gone meanwhile
                found.append(self._observe(domain))
        return found

    def _observe(self, domain: libvirt.virDomain) -> Observed:
        """In a pool thread. Raises NotFound for a foreign domain."""
        uid = domain.UUIDString()
        text = domain.XMLDesc(0)
        root = ET.fromstring(text)  # noqa: S314  # from libvirt itself
        mark = mark_from_element(root)
        if mark is None or not self._is_own(mark):
            raise NotFound(f"observe of {uid}: the domain {domain.name()} is not one of ours")
        state, reason = state_from_libvirt(*domain.state()[:2])
        active = domain.isActive() == 1
        known = self._known.setdefault(uid, Known(mark, ""))
        known.pid = process.find_pid(uid, domain.name(), known.pid) if active else 0
        digest = definition_digest(inactive_xml(domain))  # not every change by virsh makes an event
        known.digest = known.digest or digest
        changed = known.changed or known.digest != digest or not domain.isPersistent()
        known.changed = changed
        kind = root.find("os/type")
        channel = root.find(f"devices/channel/target[@name='{GUEST_AGENT_CHANNEL}']")
        return Observed(
            uid=uid,
            namespace=mark.namespace,
            name=mark.name,
            state=state,
            reason=reason,
            pid=known.pid,
            agent_connected=active and channel is not None and channel.get("state") == "connected",
            machine_type="" if kind is None else kind.get("machine", ""),
            fingerprint="" if changed else mark.fingerprint,
            detail="; ".join(filter(None, (emulation_detail(mark.machine), known.unconfined if active else ""))),
        )

    def _is_own(self, mark: Mark) -> bool:
        return not self._instance or mark.instance == self._instance

    async def _mark(self, uid: str) -> Mark:
        """Our mark of a domain, from the cache or libvirt. Raises NotFound for unknown and foreign ones."""
        known = self._known.get(uid)
        if known is not None:
            return known.mark
        text = await self._connection.call("look up", uid, lambda c: inactive_xml(lookup(c, uid)))
        mark = mark_from_xml(text)
        if mark is None or not self._is_own(mark):
            raise NotFound(f"look up of {uid}: the domain is not one of ours")
        self._known[uid] = Known(mark, definition_digest(text))
        return mark

    # -- definition -----------------------------------------------------------------------------------------------

    async def define(self, machine: Machine) -> None:
        async with self._lock(machine.uid):
            known = self._known.get(machine.uid)
            if known is not None and known.mark.fingerprint == fingerprint(machine) and await self._is_intact(known):
                return
            known = await self._connection.call("define", subject_of(machine), lambda c: domains.define(c, machine))
            self._known[machine.uid] = known

    async def _is_intact(self, known: Known) -> bool:
        """Whether libvirt still has the definition that we know: an event about its change may be under way."""
        uid = known.mark.uid
        try:
            text = await self._connection.call("read", uid, lambda c: inactive_xml(lookup(c, uid)))
        except NotFound:
            return False
        return not known.changed and definition_digest(text) == known.digest

    async def undefine(self, uid: str) -> None:
        async with self._lock(uid):
            try:
                mark = await self._mark(uid)
            except NotFound:
                return
            known = self._known.pop(uid, None)
            try:
                await self._connection.call("undefine", mark.name or uid, lambda c: domains.undefine(c, uid))
            except NotFound:
                pass
            except BaseException:
                if known is not None:
                    self._known[uid] = known
                raise
        self._locks.pop(uid, None)

    # -- running --------------------------------------------------------------------------------------------------

    async def start(self, uid: str, *, paused: bool = False) -> None:
        mark = await self._mark(uid)
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0

        def start(connection: libvirt.virConnect) -> int:
            domain = lookup(connection, uid)
            if mark.machine is not None and mark.machine.firmware.nvram:
                process.prepare_nvram(mark.machine, choose_template(mark.machine, read_descriptors()))
            try:
                domain.createWithFlags(flags)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID and mark.machine is not None:
                    process.remove_sockets(mark.machine)
                raise
            pid = process.find_pid(uid, domain.name())
            if mark.machine is not None:
                process.confine(mark.machine, pid)
            return pid

        self._starting.add(uid)
        try:
            pid = await self._connection.call("start", f"{mark.namespace}/{mark.name}", start, START_SECONDS)
        finally:
            self._starting.discard(uid)
        if (known := self._known.get(uid)) is not None:
            known.pid = pid
            if mark.machine is not None:
                self._spawn(self._limit_memory(mark.machine))

    async def shutdown(self, uid: str) -> None:
        await self._act("shut down", uid, lambda d: d.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN))

    async def stop(self, uid: str) -> None:
        """libvirt ends QEMU by SIGTERM, then SIGKILL; a suspended process, or a libvirt that hangs, we kill by pid."""
        try:
            mark = await self._mark(uid)
        except NotFound:
            return
        known = self._known.get(uid)
        name, pid = mark.domain, known.pid if known else 0

        def stop(connection: libvirt.virConnect) -> None:
            domain = lookup(connection, uid)
            found = process.find_pid(uid, domain.name(), pid)
            if found and process.is_stopped(found):
                process.kill(uid, domain.name(), found)
            try:
                domain.destroyFlags(0)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:  # it is off
                    raise
            process.release_limit(uid)

        try:
            await self._connection.call("stop", f"{mark.namespace}/{mark.name}", stop, STOP_SECONDS)
        except NotFound:
            return
        except (Busy, Failed):
            if not await asyncio.to_thread(process.kill, uid, name, pid):
                raise

    async def pause(self, uid: str) -> None:
        await self._act("pause", uid, lambda d: d.suspend())

    async def resume(self, uid: str) -> None:
        def resume(domain: libvirt.virDomain) -> None:
            if domain.state()[0] not in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED):
                domain.resume()

        await self._act("resume", uid, resume)

    async def reset(self, uid: str) -> None:
        await self._act("reset", uid, lambda d: d.reset(0))

    async def reboot(self, uid: str) -> None:
        await self._act("reboot", uid, lambda d: d.reboot(0))

    async def apply(self, machine: Machine) -> builtins.list[str]:
        mark = await self._mark(machine.uid)
        if mark.machine is None:
            return ["metadata"]
        async with self._lock(machine.uid):
            before = mark.machine
            left, known = await self._connection.call(
                "apply",
                subject_of(machine),
                lambda c: apply_in_place(lookup(c, machine.uid), before, machine),
            )
            if known is not None:
                made, digest = known
                self._known[machine.uid] = Known(made, digest)
            return left

    async def resize_disk(self, uid: str, name: str, size_bytes: int) -> None:
        mark = await self._mark(uid)
        subject = f"disk {name} of {mark.namespace}/{mark.name}"
        await self._connection.call(
            "resize", subject, lambda c: domains.resize_disk(domains.lookup(c, uid), name, size_bytes)
        )

    async def _act(self, operation: str, uid: str, action: Any) -> None:
        mark = await self._mark(uid)
        await self._connection.call(operation, f"{mark.namespace}/{mark.name}", lambda c: action(lookup(c, uid)))

    # -- looking inside -------------------------------------------------------------------------------------------

    async def agent_command(self, uid: str, command: str, arguments: dict[str, Any] | None = None) -> Any:
        mark = await self._mark(uid)
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        text = json.dumps(request)
        answer = await self._connection.call(
            f"guest agent command {command}",
            f"{mark.namespace}/{mark.name}",
            lambda c: libvirt_qemu.qemuAgentCommand(lookup(c, uid), text, AGENT_SECONDS, 0),
        )
        try:
            return json.loads(answer)["return"]
        except (ValueError, KeyError, TypeError) as error:
            raise Failed(f"guest agent command {command} of {mark.name}: unreadable answer {answer[:80]!r}") from error

    async def describe(self, uid: str) -> str:
        await self._mark(uid)
        return await self._connection.call("describe", uid, lambda c: str(lookup(c, uid).XMLDesc(0)))

    async def screenshot(self, uid: str) -> bytes:
        mark = await self._mark(uid)
        if mark.machine is not None and mark.machine.graphics is None:
            raise Unsupported(f"screenshot of {mark.namespace}/{mark.name}: the machine has no display", "graphics")
        return await self._connection.call("screenshot", mark.name, lambda c: read_screen(c, lookup(c, uid)))

    async def statistics(self, uid: str) -> dict[str, float]:
        mark = await self._mark(uid)
        return await self._connection.call("statistics", mark.name, lambda c: read_statistics(c, lookup(c, uid)))

    # -- backups --------------------------------------------------------------------------------------------------

    async def begin_backup(self, uid: str, job: BackupJob) -> None:
        mark = await self._mark(uid)
        machine = mark.machine
        if machine is None:
            raise Unsupported(f"backup of {mark.namespace}/{mark.name}: its definition is not known", "metadata")
        await self._connection.call(
            "backup", mark.name, lambda c: backups.begin(lookup(c, uid), machine, job), backups.BEGIN_SECONDS
        )

    async def end_backup(self, uid: str) -> None:
        await self._connection.call(
            "end of the backup", uid, lambda c: backups.end(lookup(c, uid)), 2 * backups.BEGIN_SECONDS
        )

    async def checkpoints(self, uid: str) -> tuple[Checkpoint, ...]:
        return await self._connection.call("checkpoints", uid, lambda c: backups.checkpoints(lookup(c, uid)))

    async def restore_checkpoints(self, uid: str, known: tuple[Checkpoint, ...]) -> bool:
        return await self._connection.call("checkpoints", uid, lambda c: backups.restore(lookup(c, uid), known))

    async def delete_checkpoint(self, uid: str, name: str) -> None:
        await self._connection.call("end of a checkpoint", uid, lambda c: backups.delete(lookup(c, uid), name))
