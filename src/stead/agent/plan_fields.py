"""What becomes of every field of a VMI's spec on a host: planned, honoured elsewhere, or refused by its path.

`REFUSED` names what this release cannot do, with the reason; a machine that asks for it is not started. `ELSEWHERE`
names what needs nothing of the machine's plan, and who honours it. Everything else that a VMI can hold is planned:
a test sets each field of the kinds alone and looks whether it changes what is made. Paths are dotted, without list
indexes; an entry holds for all below it. Fields that the kinds do not know are refused, too. Values that say nothing
(None, False, "", []) never count. Pure; used by `plan.py`.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, get_args, get_origin

import msgspec

from stead.agent.prepared import Unsupported
from stead.kinds.machine import VirtualMachineInstanceSpec

REFUSED: dict[str, str] = {
    "domain.cpu.dedicatedCpuPlacement": "host CPUs are shared; none is given to one machine alone",
    "domain.cpu.isolateEmulatorThread": "host CPUs are shared; none is given to one machine alone",
    "domain.cpu.numa": "the host's memory zones are not shown to guests",
    "domain.cpu.realtime": "virtual CPUs get no real-time scheduling",
    "domain.memory.reservedOverhead": "memory beyond the guest's is not reserved",
    "domain.launchSecurity": "confidential guests (SEV, SEV-SNP, TDX, Secure Execution) are not started",
    "domain.devices.clientPassthrough": "USB devices of clients are not passed through",
    "domain.devices.downwardMetrics": "the host's metrics are not shown to guests",
    "domain.devices.filesystems": "virtiofs is not offered",
    "domain.devices.gpus": "devices of the host are not passed through",
    "domain.devices.hostDevices": "devices of the host are not passed through",
    "domain.devices.useVirtioTransitional": "virtio devices are modern ones",
    "domain.devices.disks.changedBlockTracking": "changed blocks are not recorded",
    "domain.devices.disks.lun.reservation": "persistent reservations are not offered",
    "domain.devices.disks.blockSize.matchVolume": "block sizes are given by number only (blockSize.custom)",
    "domain.devices.disks.blockSize.custom.discardGranularity": "the granularity of discards is the disk's own",
    "domain.devices.interfaces.binding": "binding plug-ins are not offered",
    "domain.devices.interfaces.macvtap": "bindings are masquerade and bridge",
    "domain.devices.interfaces.passt": "bindings are masquerade and bridge",
    "domain.devices.interfaces.passtBinding": "bindings are masquerade and bridge",
    "domain.devices.interfaces.slirp": "bindings are masquerade and bridge",
    "domain.devices.interfaces.sriov": "bindings are masquerade and bridge",
    "domain.devices.interfaces.portRanges": "ports are listed one by one (ports)",
    "networks.multus.default": "the default network is the pod network",
    "networks.resourceClaim": "network devices of resource claims are not offered",
    "volumes.containerPath": "there is no container whose folder could be shown",
    "volumes.downwardMetrics": "the host's metrics are not shown to guests",
    "volumes.memoryDump": "memory dumps are not offered",
    "volumes.downwardAPI.fields.resourceFieldRef": "only fields of the instance's metadata are known",
    "resourceClaims": "resource claims are not offered",
    "utilityVolumes": "utility volumes are not offered",
}

_PLACEMENT = "placement reads it"
_NAME = "a name for people and references"
_PROBE = "`probes.py` asks while the guest runs"
_DETACHABLE = "says that the volume may be detached later; nothing to do at the start"
ELSEWHERE: dict[str, str] = {
    "affinity": _PLACEMENT,
    "nodeSelector": _PLACEMENT,
    "tolerations": _PLACEMENT,
    "topologySpreadConstraints": _PLACEMENT,
    "schedulerName": _PLACEMENT,
    "priorityClassName": _PLACEMENT,
    "evictionStrategy": "decided by the plane when the host is drained",
    "serviceAccountName": "the identity of a launcher pod, of which there is none on a host of ours",
    "startStrategy": "`bringup.start` starts the guest paused",
    "terminationGracePeriodSeconds": "`ending.py` counts it",
    "livenessProbe": _PROBE,
    "readinessProbe": _PROBE,
    "dnsPolicy": "the resolver on the pod network answers for cluster and world; dnsConfig replaces it",
    "dnsConfig.options": "options of a pod's resolv.conf, which DHCP cannot carry (KubeVirt drops them, too)",
    "subdomain": "there is no cluster domain below which it could be a name",
    "accessCredentials.sshPublicKey.propagationMethod.qemuGuestAgent": "`credentials.py`, once the agent answers",
    "accessCredentials.userPassword": "`credentials.py`, once the agent answers",
    "domain.resources.overcommitGuestOverhead": _PLACEMENT,
    "domain.resources.requests.cpu": "admission makes sockets of it where none are given; placement counts it",
    "domain.resources.limits.cpu": "admission makes sockets of it where none are given",
    "domain.devices.autoattachPodInterface": "admission has added the interface",
    "domain.devices.disableHotplug": "room for devices plugged in later is not kept",
    "domain.devices.sound.name": _NAME,
    "domain.devices.watchdog.name": _NAME,
    "domain.devices.inputs.name": _NAME,
    "domain.devices.interfaces.ports.name": _NAME,
    "domain.memory.maxGuest": "a bound for memory plugged in later",
    "volumes.persistentVolumeClaim.hotpluggable": _DETACHABLE,
    "volumes.dataVolume.hotpluggable": _DETACHABLE,
    "volumes.ephemeral.persistentVolumeClaim.hotpluggable": _DETACHABLE,
    "volumes.ephemeral.persistentVolumeClaim.readOnly": "the base of an ephemeral disk is never written",
    "volumes.hostDisk.shared": "says that other hosts see the same file; a matter of migration",
    "volumes.downwardAPI.fields.mode": "the guest mounts the disk as it likes",
    "volumes.downwardAPI.fields.fieldRef.apiVersion": "there is one version",
}

#: resources that a request or limit may name; others are devices of a kind that is not handed out
_RESOURCES = ("cpu", "memory", "ephemeral-storage")


def check_honoured(spec: dict[str, Any]) -> None:
    """Raise Unsupported for the first field of `spec` (a VMI's spec) that this release does not honour."""
    _check(spec, _known(VirtualMachineInstanceSpec), "spec", "")
    resources = (spec.get("domain") or {}).get("resources") or {}
    for kind in ("requests", "limits"):
        for name, amount in (resources.get(kind) or {}).items():
            if name not in _RESOURCES and str(amount) != "0":
                raise Unsupported(f"spec.domain.resources.{kind}.{name}", "this host hands out no such resource")


def _check(value: Any, tree: Any, shown: str, path: str) -> None:
    if isinstance(value, list):
        for index, entry in enumerate(value):
            _check(entry, tree, f"{shown}[{index}]", path)
    elif isinstance(value, dict) and tree is not None:
        for field, inner in value.items():
            if inner is None or inner is False or inner == "" or inner == []:
                continue
            where, full = f"{shown}.{field}", f"{path}.{field}" if path else field
            if field not in tree:
                raise Unsupported(where, "is not honoured by this release of Stead: the field is not known")
            if full in REFUSED:
                raise Unsupported(where, f"is not honoured by this release of Stead: {REFUSED[full]}")
            _check(inner, tree[field], where, full)


@functools.cache
def _known(kind: type) -> dict[str, Any]:
    """Field name → tree of what lies below it; None for plain values and free maps."""
    tree: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        inner = struct_of(field.type)
        tree[field.encode_name] = _known(inner) if inner is not None else None
    return tree


def struct_of(annotation: Any) -> type | None:
    """The Struct that a field holds, alone or in a list; None for anything else."""
    if get_origin(annotation) is Annotated:
        return struct_of(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    if get_origin(annotation) is dict:
        return None
    found = (struct_of(argument) for argument in get_args(annotation))
    return next((kind for kind in found if kind is not None), None)
