"""Which fields of a VMI this release honours: anything else that is set is refused by its path, never ignored.

`HONOURED` is a tree of the VMI's spec: a dictionary lists known fields, `ANY` accepts the whole subtree, a list's
entries are checked against the same tree. Values that say nothing (None, False, "", []) never count. Pure; used by
`plan.py`.
"""

from __future__ import annotations

from typing import Any

from stead.agent.prepared import Unsupported

ANY: Any = object()

_BUS: dict[str, Any] = {"bus": ANY, "readonly": ANY, "pciAddress": ANY, "tray": ANY}
_DISK: dict[str, Any] = {
    "name": ANY, "disk": _BUS, "cdrom": _BUS, "lun": _BUS, "serial": ANY, "bootOrder": ANY, "cache": ANY, "io": ANY,
    "errorPolicy": ANY, "dedicatedIOThread": ANY, "tag": ANY, "shareable": ANY,
    "blockSize": {"custom": {"logical": ANY, "physical": ANY}, "matchVolume": {}},
}  # fmt: skip
_INTERFACE: dict[str, Any] = {
    "name": ANY, "model": ANY, "macAddress": ANY, "masquerade": {}, "bridge": {}, "ports": ANY, "bootOrder": ANY,
    "pciAddress": ANY, "acpiIndex": ANY, "tag": ANY, "state": ANY, "dhcpOptions": ANY,
}  # fmt: skip
_DEVICES: dict[str, Any] = {
    "disks": _DISK, "interfaces": _INTERFACE, "inputs": ANY, "rng": {}, "tpm": ANY, "sound": ANY, "video": ANY,
    "watchdog": ANY, "panicDevices": ANY, "autoattachGraphicsDevice": ANY, "autoattachSerialConsole": ANY,
    "autoattachMemBalloon": ANY, "autoattachInputDevice": ANY, "autoattachPodInterface": ANY,
    "networkInterfaceMultiqueue": ANY, "disableHotplug": ANY, "logSerialConsole": ANY,
}  # fmt: skip
_AMOUNTS: dict[str, Any] = {"cpu": ANY, "memory": ANY}
_DOMAIN: dict[str, Any] = {
    "cpu": {"sockets": ANY, "cores": ANY, "threads": ANY, "maxSockets": ANY, "model": ANY, "features": ANY},
    "memory": {"guest": ANY, "maxGuest": ANY, "hugepages": ANY},
    "machine": {"type": ANY},
    "firmware": {
        "uuid": ANY, "serial": ANY, "bootloader": {"bios": {"useSerial": ANY}, "efi": {"secureBoot": ANY}},
        "kernelBoot": ANY, "acpi": ANY,
    },
    "clock": ANY,
    "features": ANY,
    "chassis": ANY,
    "resources": {"requests": _AMOUNTS, "limits": _AMOUNTS, "overcommitGuestOverhead": ANY},
    "devices": _DEVICES,
    "ioThreadsPolicy": ANY,
    "ioThreads": {"supplementalPoolThreadCount": ANY},
    "rebootPolicy": ANY,
}  # fmt: skip
HONOURED: dict[str, Any] = {
    "domain": _DOMAIN,
    "volumes": {
        "name": ANY, "persistentVolumeClaim": ANY, "dataVolume": ANY, "containerDisk": ANY, "emptyDisk": ANY,
        "ephemeral": ANY, "cloudInitNoCloud": ANY, "cloudInitConfigDrive": ANY, "secret": ANY, "configMap": ANY,
        "downwardAPI": ANY, "serviceAccount": ANY, "sysprep": ANY, "hostDisk": ANY,
    },
    "networks": {"name": ANY, "pod": ANY, "multus": ANY},
    "accessCredentials": {
        "sshPublicKey": {"source": ANY, "propagationMethod": {"noCloud": ANY, "configDrive": ANY}},
    },
    # placement and the control plane honour these; nothing of them reaches a host
    "affinity": ANY, "nodeSelector": ANY, "tolerations": ANY, "topologySpreadConstraints": ANY, "schedulerName": ANY,
    "priorityClassName": ANY, "evictionStrategy": ANY, "architecture": ANY,
    "startStrategy": ANY, "terminationGracePeriodSeconds": ANY, "hostname": ANY, "subdomain": ANY, "dnsPolicy": ANY,
    "dnsConfig": ANY, "livenessProbe": ANY, "readinessProbe": ANY,
}  # fmt: skip


def check_honoured(spec: dict[str, Any]) -> None:
    """Raise Unsupported for the first field of `spec` (a VMI's spec) that this release does not honour."""
    path = _first_unknown(spec, HONOURED, "spec")
    if path:
        raise Unsupported(path, "is not honoured by this release of Stead")


def _first_unknown(value: Any, tree: Any, path: str) -> str:
    if tree is ANY or value is None or value is False or value == "" or value == []:
        return ""
    if isinstance(value, list):
        entries = (_first_unknown(entry, tree, f"{path}[{index}]") for index, entry in enumerate(value))
        return next((found for found in entries if found), "")
    if not isinstance(value, dict):
        return ""
    for field, inner in value.items():
        if field not in tree:
            if inner is None or inner is False or inner == "" or inner == []:
                continue
            return f"{path}.{field}"
        found = _first_unknown(inner, tree[field], f"{path}.{field}")
        if found:
            return found
    return ""
