"""What an instance says of its own live migration (`status.migrationState`), and what two agents tell each other.

Pure. Who writes which field stands in docs/reference/ownership.md. Field meanings: KubeVirt's
VirtualMachineInstanceMigrationState.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stead.agent import vmi as reading
from stead.agent.prepared import Prepared
from stead.hypervisor.contract import Machine

Object = dict[str, Any]

TARGET_LABEL = "kubevirt.io/migrationTargetNodeName"
GIB = 1 << 30
#: KubeVirt's defaults of spec.configuration.migrations
COMPLETION_SECONDS_PER_GIB, PROGRESS_SECONDS = 150, 150


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What the source tells the target: its authority, and each volume's size (bytes) and content digest."""

    authority: str
    sizes: dict[str, int]
    digests: dict[str, str] = {}


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the target answers: the machine as it is prepared there, and how it is reached."""

    authority: str
    machine: Machine
    address: str
    copied: tuple[str, ...]


def state_of(vmi: Object) -> Object:
    """`status.migrationState`, or an empty dictionary."""
    return reading.status(vmi).get("migrationState") or {}


def is_over(state: Object) -> bool:
    """Nothing is to be done for it any more."""
    return bool(not state.get("migrationUid") or state.get("completed") or state.get("failed"))


def is_arriving(vmi: Object, host: str) -> bool:
    """The instance is on its way to this host, also when its move is through and it does not say yet whose it is."""
    state = state_of(vmi)
    bound = reading.status(vmi).get("nodeName")
    labelled = (vmi["metadata"].get("labels") or {}).get(TARGET_LABEL)
    coming = bool(state.get("migrationUid")) and not state.get("failed")
    return labelled == host and state.get("targetNode") == host and coming and bound != host


def is_leaving(vmi: Object, host: str) -> bool:
    """The instance is to leave this host now: the target waits for it."""
    state = state_of(vmi)
    return state.get("sourceNode") == host and bool(state.get("targetNodeAddress")) and not is_over(state)


def copied_disks(machine: Machine, prepared: Prepared) -> tuple[str, ...]:
    """Disks whose content goes along: those that the guest may have written, and that only the source has."""
    shared = {volume.name for volume in prepared.volumes if volume.shared}
    return tuple(
        disk.name
        for disk in machine.disks
        if disk.path and disk.device == "disk" and not disk.read_only and not disk.shareable and disk.name not in shared
    )


def offer_from(prepared: Prepared, authority: str) -> Offer:
    """The source's side of what is exchanged."""
    return Offer(
        authority=authority,
        sizes={volume.name: volume.size for volume in prepared.volumes},
        digests={volume.name: volume.digest for volume in prepared.volumes if volume.digest},
    )


def completion_seconds(configuration: Object, total_bytes: int) -> float:
    """How long a migration of so many bytes may take; no bound for 0."""
    per_gib = configuration.get("completionTimeoutPerGiB")
    per_gib = COMPLETION_SECONDS_PER_GIB if per_gib is None else int(per_gib)
    return per_gib * max(1.0, total_bytes / GIB) if per_gib > 0 else float("inf")


def progress_seconds(configuration: Object) -> float:
    """How long a migration may go on without less being left to move; no bound for 0."""
    seconds = configuration.get("progressTimeout")
    seconds = PROGRESS_SECONDS if seconds is None else int(seconds)
    return float(seconds) if seconds > 0 else float("inf")
