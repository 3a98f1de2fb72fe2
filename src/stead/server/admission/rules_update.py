"""What may change on a VirtualMachineInstance that exists: nothing by a person, hotplug by the control plane.

Texts are KubeVirt's (`vmi-update-admitter`; notes 6.5, 49, recordings `reject-updates`). Status that a person sends is
put back, silently, as upstream does. Pure.
"""

from __future__ import annotations

import copy

from stead.server.admission import rules_volumes
from stead.server.admission.contract import Json
from stead.server.admission.findings import NOT_SUPPORTED, Findings, refuse
from stead.server.admission.rules_instance import RESERVED_LABELS


def instance_with_old_status(instance: Json, old: Json) -> Json:
    """A new instance that keeps the stored status, for writers who may not change it."""
    made = copy.copy(instance)
    made.pop("status", None)
    if "status" in old:
        made["status"] = old["status"]
    return made


def check_instance_update(instance: Json, old: Json, own_account: bool) -> None:
    """Raise the 422 of a change that is not allowed."""
    if not own_account:
        _check_by_person(instance, old)
        return
    findings = Findings()
    _check_sizes(instance["spec"], old["spec"], findings)
    if not findings.causes:
        _check_storage(instance["spec"], old["spec"], old.get("status") or {}, findings)
    findings.refuse_if_any()


def _check_by_person(instance: Json, old: Json) -> None:
    if instance.get("spec") != old.get("spec"):
        raise refuse("", "update of VMI object is restricted", NOT_SUPPORTED)
    labels = (instance.get("metadata") or {}).get("labels") or {}
    old_labels = (old.get("metadata") or {}).get("labels") or {}
    if any(labels.get(label) != old_labels.get(label) for label in RESERVED_LABELS):
        text = "modification of the following reserved kubevirt.io/ labels on a VMI object is prohibited"
        raise refuse("metadata.labels", text, NOT_SUPPORTED)


def _check_sizes(spec: Json, old: Json, findings: Findings) -> None:
    before, after = old["domain"], spec["domain"]
    if (before.get("cpu") or {}).get("maxSockets") != (after.get("cpu") or {}).get("maxSockets"):
        findings.add("", "CPU topology maxSockets changed")
    had = (before.get("memory") or {}).get("maxGuest")
    if had is not None and had != (after.get("memory") or {}).get("maxGuest"):
        findings.add("", "Memory maxGuest changed")


def _by_name(entries: list[Json] | None) -> dict[str, Json]:
    return {str(e.get("name")): e for e in entries or ()}


def _check_storage(spec: Json, old: Json, status: Json, findings: Findings) -> None:
    """Volumes and disks: permanent ones stay as they are, others come and go if a guest can take them."""
    volumes, old_volumes = _by_name(spec.get("volumes")), _by_name(old.get("volumes"))
    disks = _by_name(spec["domain"]["devices"].get("disks"))
    old_disks = _by_name(old["domain"]["devices"].get("disks"))
    if volumes == old_volumes and disks == old_disks:
        return
    plugged = {s.get("name") for s in status.get("volumeStatus") or () if s.get("hotplugVolume") is not None}
    plugged |= {n for n, v in old_volumes.items() if _is_hotpluggable(v)}
    permanent = [n for n in old_volumes if n not in plugged]
    for name in permanent:
        if name not in volumes:
            findings.add("", "Number of permanent volumes has changed")
        elif volumes[name] != old_volumes[name]:
            findings.add("", f"permanent volume {name}, changed")
        elif name in old_disks and disks.get(name) != old_disks[name]:
            findings.add("", f"permanent disk {name}, changed")
        if findings.causes:
            return
    for name, volume in volumes.items():
        if name not in permanent:
            _check_plugged(name, volume, old_volumes.get(name), disks, findings)
        if findings.causes:
            return
    where = "spec.domain.devices.disks"
    rules_volumes.check_disks(where, list(disks.values()), findings)


def _is_hotpluggable(volume: Json) -> bool:
    sources = (volume.get("persistentVolumeClaim"), volume.get("dataVolume"), volume.get("memoryDump"))
    return any((source or {}).get("hotpluggable") for source in sources)


def _check_plugged(name: str, volume: Json, old: Json | None, disks: dict[str, Json], findings: Findings) -> None:
    is_dump = volume.get("memoryDump") is not None
    if not is_dump and volume.get("persistentVolumeClaim") is None and volume.get("dataVolume") is None:
        findings.add("", f"volume {name} is not a PVC or DataVolume")
        return
    if old is not None and old != volume:
        findings.add("", f"hotplug volume {name}, changed")
        return
    disk = disks.get(name)
    if disk is None:
        if not is_dump:
            findings.add("", f"Disk {name} does not exist")
        return
    bus = (disk.get("disk") or disk.get("lun") or {}).get("bus") or ""
    if disk.get("cdrom") is None and bus not in ("scsi", "virtio"):
        what = f"Hotplug configuration for disk [{name}]"
        findings.add("", f"{what} requires bus to be 'scsi' or 'virtio'. [{bus}] is not permitted.")
    elif disk.get("dedicatedIOThread") and bus != "virtio":
        findings.add("", f"Hotplug configuration for disk [{name}] requires virtio bus for IOThreads.")
