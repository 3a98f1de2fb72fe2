"""The VMI's status from what this host sees: a pure function, written by `machine.py` as one JSON patch when it
changed.

Fields that others write (the scheduler's conditions, nodeName, revision names) pass through untouched. Condition types
and reasons are KubeVirt's: Ready (GuestNotRunning, ReadinessGatesNotReady), Paused (PausedByUser, PausedIOError),
AgentConnected, LiveMigratable, Synchronized, SoftwareEmulation. `status.phase` only ever moves forward; each phase gets
one timestamp.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from stead.agent import vmi as reading
from stead.agent.credentials import Synced, missing_commands
from stead.agent.guestinfo import GuestInfo, GuestInterface
from stead.agent.prepared import Address, Prepared, PreparedVolume
from stead.hypervisor.contract import Capabilities, Observed, State, StopReason
from stead.kube.quantity import quantity_from_bytes

Object = dict[str, Any]


class Problem(msgspec.Struct, frozen=True):
    """Why the machine is not as declared: reason and message of Synchronized=False."""

    reason: str
    message: str


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How the run ended. `phase` is Succeeded or Failed; `reason` and `message` say why, for people."""

    phase: str
    reason: str = ""
    message: str = ""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the status is made from. `now` is RFC 3339 with seconds."""

    vmi: Object
    now: str
    host: str
    capabilities: Capabilities
    observed: Observed | None = None
    prepared: Prepared | None = None
    guest: GuestInfo | None = None
    problem: Problem | None = None
    ending: Ending | None = None
    ran: bool = False
    #: outcome of the readiness probe; None when there is no probe
    probe_ready: bool | None = None
    frozen: bool = False
    #: what the hypervisor said of the I/O error that halted the guest
    io_error: str = ""
    #: whether the guest has the credentials that go by its agent; None where none do, or none was tried yet
    credentials: Synced | None = None
    #: `migrationState` as the source of a migration tells it; None = it has nothing to say
    migration: Object | None = None


_ALIVE = (State.RUNNING, State.PAUSED, State.STOPPING)
_PHASES = ("", "Pending", "Scheduling", "Scheduled", "WaitingForSync", "Running", "Succeeded", "Failed")


def status_from(view: View) -> Object:
    """The complete new status. Equal input gives an equal value, so an unchanged machine causes no write."""
    status = dict(reading.status(view.vmi))
    _set_phase(status, view)
    status["nodeName"] = view.host
    status["conditions"] = _conditions(view)
    status["activePods"] = {reading.uid(view.vmi): view.host} if not view.ending else {}
    if view.migration is not None:
        status["migrationState"] = view.migration
    if view.ending and view.ending.reason:
        status["reason"] = view.ending.reason
    if view.prepared is not None:
        status["interfaces"] = _interfaces(view, view.prepared)
        status["volumeStatus"] = _volume_status(view, view.prepared)
        status["migrationMethod"] = _migration_method(view.prepared)
        status["migrationTransport"] = "Unix"
        _set_memory(status, view, view.prepared)
        if view.prepared.kernel.kernel or view.prepared.kernel.initrd:
            status.setdefault("kernelBootStatus", {})
    if view.observed is not None and view.observed.machine_type:
        status["machine"] = {"type": view.observed.machine_type}
    if view.prepared is not None and reading.tracks_changes(view.vmi) and status["phase"] == "Running":
        status["changedBlockTracking"] = {**status["changedBlockTracking"], "state": "Enabled"}
    sockets, cores, threads = reading.topology(view.vmi)
    status.setdefault("currentCPUTopology", {"sockets": sockets, "cores": cores, "threads": threads})
    if view.guest is not None:
        status["guestOSInfo"] = dict(view.guest.os)
    status.setdefault("guestOSInfo", {})
    if view.frozen:
        status["fsFreezeStatus"] = "frozen"
    else:
        status.pop("fsFreezeStatus", None)
    return status


def _set_phase(status: Object, view: View) -> None:
    current = str(status.get("phase", ""))
    wanted = current
    if view.ending is not None:
        wanted = view.ending.phase
    elif view.observed is not None and view.observed.state in _ALIVE:
        wanted = "Running"
    if current in reading.FINAL_PHASES or _PHASES.index(wanted) <= _rank(current):
        return
    status["phase"] = wanted
    stamps = list(status.get("phaseTransitionTimestamps") or [])
    if not any(s.get("phase") == wanted for s in stamps):
        stamps.append({"phase": wanted, "phaseTransitionTimestamp": view.now})
    status["phaseTransitionTimestamps"] = stamps


def _rank(phase: str) -> int:
    return _PHASES.index(phase) if phase in _PHASES else -1


class _Condition(msgspec.Struct, frozen=True):
    type: str
    status: bool
    reason: str = ""
    message: str = ""


def _conditions(view: View) -> list[Object]:
    """Merge our conditions into those present: a condition keeps its transition time while its status stays."""
    ours = {c.type: c for c in _wanted(view)}
    merged: list[Object] = []
    for present in reading.status(view.vmi).get("conditions") or []:
        kind = present.get("type")
        if kind in ours:
            merged.append(_render(ours.pop(kind), present, view.now))
        elif kind not in _OURS:
            merged.append(present)
    merged.extend(_render(wanted, None, view.now) for wanted in ours.values())
    return merged


def _render(wanted: _Condition, present: Object | None, now: str) -> Object:
    text = "True" if wanted.status else "False"
    since = now
    if present is not None and present.get("status") == text and present.get("lastTransitionTime"):
        since = present["lastTransitionTime"]
    rendered: Object = {"type": wanted.type, "status": text, "lastProbeTime": None, "lastTransitionTime": since}
    if wanted.reason:
        rendered["reason"] = wanted.reason
    if wanted.message:
        rendered["message"] = wanted.message
    return rendered


#: conditions that this module alone writes on a scheduled instance; one that is not wanted any more is removed
_OURS = (
    "Ready",
    "Paused",
    "AgentConnected",
    "AgentVersionNotSupported",
    "AccessCredentialsSynchronized",
    "LiveMigratable",
    "StorageLiveMigratable",
    "Synchronized",
    "SoftwareEmulation",
)


def _wanted(view: View) -> list[_Condition]:
    state = view.observed.state if view.observed else None
    alive = state in _ALIVE and view.ending is None
    wanted = [_ready(view, state, alive)]
    if alive and state is State.PAUSED and view.observed is not None:
        wanted.append(_paused(view.observed, view.io_error))
    if alive and view.observed is not None and view.observed.agent_connected:
        wanted.append(_Condition("AgentConnected", True))
        missing = missing_commands(view.vmi, view.guest.commands if view.guest else ())
        if missing:
            wanted.append(_Condition("AgentVersionNotSupported", True, missing))
    if alive and view.credentials is not None:
        wanted.append(
            _Condition("AccessCredentialsSynchronized", view.credentials.done, message=view.credentials.message)
        )
    wanted += _migratable(view)
    if view.problem is not None:
        wanted.append(_Condition("Synchronized", False, view.problem.reason, view.problem.message))
    elif alive:
        wanted.append(_Condition("Synchronized", True))
    if view.capabilities.software_emulation:
        reason = view.capabilities.software_emulation_reason or "this host cannot run guests with hardware acceleration"
        wanted.append(_Condition("SoftwareEmulation", True, "NoHardwareAcceleration", reason))
    return wanted


def _ready(view: View, state: State | None, alive: bool) -> _Condition:
    if not alive:
        message = view.ending.message if view.ending else "Guest VM is not reported as running"
        return _Condition("Ready", False, "GuestNotRunning", message or "Guest VM is not reported as running")
    if state is State.PAUSED and view.observed is not None:
        # KubeVirt makes this a readiness gate of the launcher pod (kubevirt.io/virtual-machine-unpaused).
        message = _paused(view.observed, view.io_error).message
        return _Condition("Ready", False, "ReadinessGatesNotReady", f"the guest is paused: {message}")
    if view.probe_ready is False:
        return _Condition("Ready", False, "ReadinessProbeFailed", "the readiness probe has not succeeded")
    return _Condition("Ready", True)


def _paused(observed: Observed, io_error: str) -> _Condition:
    if observed.reason is StopReason.IO_ERROR:
        message = "VMI was paused, low-level IO error detected" + (f": {io_error}" if io_error else "")
        return _Condition("Paused", True, "PausedIOError", message)
    if observed.reason is StopReason.MIGRATION:
        return _Condition("Paused", True, "PausedByMigrationMonitor", "VMI was paused by the migration monitor")
    return _Condition("Paused", True, "PausedByUser", "VMI was paused by user")


def _migratable(view: View) -> list[_Condition]:
    """LiveMigratable, with the true reason when it is not so."""
    if view.prepared is None:
        return []
    bound = _binds_to_host(view.vmi, view.prepared)
    if bound is None and not view.capabilities.live_migration:
        bound = "HypervisorNotLiveMigratable", f"the driver {view.capabilities.driver} does not move running machines"
    if bound is not None:
        return [_Condition("LiveMigratable", False, *bound)]
    return [_Condition("LiveMigratable", True)]


def _migration_method(prepared: Prepared) -> str:
    """KubeVirt's word for whether disks go along."""
    own = [volume for volume in prepared.volumes if not (volume.shared or volume.read_only)]
    return "BlockMigration" if own else "LiveMigration"


def _binds_to_host(vmi: Object, prepared: Prepared) -> tuple[str, str] | None:
    """(reason, message) of the first thing that cannot move, in KubeVirt's order; None when all could."""
    for volume in prepared.volumes:
        if volume.claim and "ReadWriteMany" not in volume.access_modes:
            return "DisksNotLiveMigratable", (
                f"cannot migrate VMI: PVC {volume.claim} is not shared, live migration requires that all PVCs must be "
                "shared (using ReadWriteMany access mode)"
            )
        if volume.tracking:
            return (
                "DisksNotLiveMigratable",
                f"cannot migrate VMI: changed blocks of {volume.name} are kept on this host",
            )
        if volume.kind == "ephemeral":
            return "DisksNotLiveMigratable", f"cannot migrate VMI: the base of volume {volume.name} is not shared"
        if volume.kind == "hostDisk":
            return "DisksNotLiveMigratable", f"cannot migrate VMI with non-shared HostDisk {volume.name}"
    pods = {network["name"] for network in reading.spec(vmi).get("networks") or [] if "pod" in network}
    for interface in reading.devices(vmi).get("interfaces") or []:
        if "bridge" in interface and interface["name"] in pods:
            return "InterfaceNotLiveMigratable", (
                "cannot migrate VMI which does not use masquerade, bridge with kubevirt.io/allow-pod-bridge-network-"
                "live-migration VM annotation or a migratable plugin to connect to the pod network"
            )
    if prepared.persistent:
        return "DisksNotLiveMigratable", "UEFI variables or TPM state that outlive the instance are kept on this host"
    if reading.devices(vmi).get("filesystems"):
        return "VirtIOFSNotLiveMigratable", "VMI uses virtiofs"
    if reading.devices(vmi).get("hostDevices") or reading.devices(vmi).get("gpus"):
        return "HostDeviceNotLiveMigratable", "VMI uses a host device passthrough"
    if (reading.domain(vmi).get("cpu") or {}).get("model") == "host-passthrough":
        return "CPUModeLiveMigratable", "cannot migrate VMI: the CPU model host-passthrough is that of this host"
    return None


def _interfaces(view: View, prepared: Prepared) -> list[Object]:
    """One entry a network of the VMI, with the guest's own view joined by MAC, then links that only the guest knows."""
    links = {link.mac: link for link in (view.guest.interfaces if view.guest else ())}
    entries = [_interface(address, links.pop(address.mac.lower(), None), view) for address in prepared.addresses]
    for link in links.values():
        if not link.mac:
            continue
        extra: Object = {"interfaceName": link.name, "mac": link.mac, "infoSource": "guest-agent"}
        if link.addresses:
            extra |= {"ipAddress": link.addresses[0], "ipAddresses": list(link.addresses)}
        entries.append(extra)
    return entries


def _interface(address: Address, link: GuestInterface | None, view: View) -> Object:
    entry: Object = {
        "name": address.network,
        "mac": address.mac,
        "infoSource": "domain, guest-agent" if link else "domain",
        "queueCount": address.queues,
        "linkState": "up",
        "podInterfaceName": address.interface or "eth0",
    }
    # Behind masquerade the guest sees an inner address; clients want the one that reaches it from outside.
    addresses = [address.ipv4] if address.ipv4 else list(link.addresses if link else ())
    if addresses and not view.ending:
        entry |= {"ipAddress": addresses[0], "ipAddresses": addresses}
    if link:
        entry["interfaceName"] = link.name
    return entry


def _volume_status(view: View, prepared: Prepared) -> list[Object]:
    targets = {d["name"]: i for i, d in enumerate(reading.devices(view.vmi).get("disks") or [])}
    return [_volume(volume, targets.get(volume.name)) for volume in sorted(prepared.volumes, key=lambda v: v.name)]


def _volume(volume: PreparedVolume, index: int | None) -> Object:
    entry: Object = {"name": volume.name, "target": _target_name(index)}
    if volume.kind not in ("containerDisk", "persistentVolumeClaim", "dataVolume", "hostDisk"):
        entry["size"] = volume.size
    if volume.digest:
        entry["containerDiskVolume"] = {"checksum": checksum_of(volume.digest)}
    if volume.claim:
        claim: Object = {
            "claimName": volume.claim,
            "accessModes": list(volume.access_modes),
            "volumeMode": volume.volume_mode,
            "filesystemOverhead": "0",
        }
        if volume.capacity:
            claim |= {"capacity": {"storage": volume.capacity}, "requests": {"storage": volume.capacity}}
        entry["persistentVolumeClaimInfo"] = claim
    return entry


def _target_name(index: int | None) -> str:
    """`vda`, `vdb`, …: stable by position, as KubeVirt names targets."""
    if index is None:
        return ""
    letters = ""
    number = index + 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return f"vd{letters}"


def checksum_of(digest: str) -> int:
    """The 32-bit number that stands for a content digest ("sha256:…") in status; the API's field is an integer."""
    hexadecimal = digest.rpartition(":")[2]
    return int(hexadecimal[:8], 16) if hexadecimal else 0


def _set_memory(status: Object, view: View, prepared: Prepared) -> None:
    guest = str(quantity_from_bytes(reading.guest_memory(view.vmi)))
    memory = {"guestAtBoot": guest, "guestCurrent": guest, "guestRequested": guest} | dict(status.get("memory") or {})
    if prepared.memory_overhead:
        memory["memoryOverhead"] = str(quantity_from_bytes(prepared.memory_overhead))
    status["memory"] = memory


def patch_from(vmi: Object, status: Object) -> list[Object] | None:
    """The JSON patch that writes `status` if nobody wrote in between; None when there is nothing to write."""
    if status == reading.status(vmi):
        return None
    test = {"op": "test", "path": "/metadata/resourceVersion", "value": reading.resource_version(vmi)}
    verb = "replace" if "status" in vmi else "add"
    return [test, {"op": verb, "path": "/status", "value": status}]


def seconds_between(earlier: str, later: str) -> float:
    """Seconds from one RFC 3339 time to another; 0 when they do not parse or run backwards."""
    try:
        return max(0.0, (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds())
    except ValueError:
        return 0.0
