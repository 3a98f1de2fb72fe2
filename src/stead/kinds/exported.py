"""What a VirtualMachineExport offers, from its source: the names of the disks and what each is. Pure.

Asked by the export controller, which puts URLs into the status, and by the server, which serves them: both must mean
the same disks.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stead.kinds.register import MACHINE_SNAPSHOT, PERSISTENT_VOLUME_CLAIM, VIRTUAL_MACHINE

Object = dict[str, Any]

PATH = "/api/export.kubevirt.io/v1beta1/namespaces"
TOKEN_HEADER = "x-kubevirt-export-token"  # noqa: S105 - a header's name, no secret
DISKS = {"raw": "disk.img", "gzip": "disk.img.gz"}
MANIFESTS = {"all": "manifests/all", "auth-header-secret": "manifests/secret"}


class Disk(msgspec.Struct, frozen=True):
    """One disk: its name in links, and the claim or (`is_snapshot`) VolumeSnapshot that holds it."""

    name: str
    held_by: str
    is_snapshot: bool = False


def claims_of(machine: Object) -> list[tuple[str, str]]:
    """(volume, claim) of each volume of a VirtualMachine that lies in a claim."""
    template = (machine.get("spec") or {}).get("template") or {}
    found = []
    for volume in (template.get("spec") or {}).get("volumes") or ():
        name = (volume.get("dataVolume") or {}).get("name")
        name = name or (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if name:
            found.append((str(volume["name"]), str(name)))
    return found


def disks_of(export: Object, machine: Object | None, content: Object | None) -> list[Disk]:
    """The disks. `machine` is the source VirtualMachine, `content` that of a source snapshot; where there is one."""
    source = (export.get("spec") or {}).get("source") or {}
    kind = source.get("kind")
    if kind == PERSISTENT_VOLUME_CLAIM.kind:
        return [Disk(str(source["name"]), str(source["name"]))]
    if kind == VIRTUAL_MACHINE.kind and machine is not None:
        return [Disk(claim, claim) for _, claim in claims_of(machine)]
    if kind == MACHINE_SNAPSHOT.kind and content is not None:
        backups = (content.get("spec") or {}).get("volumeBackups") or ()
        return [
            Disk(str(b["persistentVolumeClaim"]["metadata"]["name"]), str(b["volumeSnapshotName"]), True)
            for b in backups
        ]
    return []


def path_of(export: Object, rest: str) -> str:
    """The path of something that an export offers."""
    metadata = export["metadata"]
    return f"{PATH}/{metadata['namespace']}/virtualmachineexports/{metadata['name']}/{rest}"


def ca_name(export: Object) -> str:
    """Name of the ConfigMap, in manifests, that holds the CA to trust."""
    return f"export-ca-cm-{export['metadata']['name']}"


def header_name(export: Object) -> str:
    """Name of the Secret, in manifests, that holds the header to send."""
    return f"header-secret-{export['metadata']['name']}"
