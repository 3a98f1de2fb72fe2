"""Rules about snapshots of machines, restores and snapshots of volumes.

Texts, order and codes are KubeVirt's (`vmsnapshot-admitter`, `vmrestore-admitter`; notes 6.68, recordings
`snapshot-*`, `restore-*`). A restore's patch may hold any JSON value, where KubeVirt's own check stumbles over a colon.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from stead.kinds import register
from stead.kube.duration import seconds_from_duration
from stead.server.admission.contract import Json, Lookup
from stead.server.admission.findings import NOT_FOUND, REQUIRED, Findings, bad_request

_GATE = "Snapshot"
_PATCHABLE = ("/spec/", "/metadata/labels/", "/metadata/annotations/")
#: what a machine may name only by a right of its writer (`server/references.py`): a patch, which our controller applies
#: in its own name, may not touch it
_RIGHTS_OF_THEIR_OWN = ("kernelBoot", "dataVolumeTemplates")
_OWN_PREFIX = "stead.io/"
_RESTORE_POLICIES = ("RandomizeNames", "InPlace", "PrefixTargetName")
_OWNERSHIP_POLICIES = ("Vm", "None")


def check_unchanged(obj: Json, old: Json, findings: Findings) -> None:
    """The spec of these kinds never changes."""
    if obj.get("spec") != old.get("spec"):
        findings.add("spec", "spec in immutable after creation")


def check_duration(text: str | None) -> None:
    """Raise the 400 of a duration that is none."""
    if text is None:
        return
    try:
        seconds_from_duration(text)
    except ValueError as error:
        raise bad_request(str(error)) from error


def check_snapshot(snapshot: Json, old: Json | None, lookup: Lookup, findings: Findings) -> None:
    """A VirtualMachineSnapshot on creation, or on update against `old`."""
    spec: Json = snapshot.get("spec") or {}
    check_duration(spec.get("failureDeadline"))
    if old is not None:
        check_unchanged(snapshot, old, findings)
        return
    if _GATE not in lookup.gates():
        raise bad_request("snapshot feature gate not enabled")
    _check_machine_reference("spec.source", spec.get("source") or {}, findings)


def _check_machine_reference(field: str, reference: Json, findings: Findings) -> None:
    group = reference.get("apiGroup")
    if group is None:
        findings.add(f"{field}.apiGroup", "missing apiGroup", NOT_FOUND)
    elif group != "kubevirt.io":
        findings.add(f"{field}.apiGroup", "invalid apiGroup")
    elif reference.get("kind") != "VirtualMachine":
        findings.add(f"{field}.kind", "invalid kind")


def check_restore(restore: Json, old: Json | None, lookup: Lookup, namespace: str, findings: Findings) -> None:
    """A VirtualMachineRestore on creation, or on update against `old`."""
    spec: Json = restore.get("spec") or {}
    if old is not None:
        check_unchanged(restore, old, findings)
        return
    if _GATE not in lookup.gates():
        raise bad_request("Snapshot/Restore feature gate not enabled")
    target: Json = spec.get("target") or {}
    _check_machine_reference("spec.target", target, findings)
    if not findings.causes:
        _check_backend_storage(spec, lookup, namespace, findings)
    for patch in spec.get("patches") or ():
        _check_patch(patch, findings)
    _check_overrides(spec.get("volumeRestoreOverrides") or (), findings)
    policy, ownership = spec.get("volumeRestorePolicy"), spec.get("volumeOwnershipPolicy")
    if policy is not None and policy not in _RESTORE_POLICIES:
        findings.add("spec.volumeRestorePolicy", f'volume restore policy "{policy}" doesn\'t exist')
    if ownership is not None and ownership not in _OWNERSHIP_POLICIES:
        findings.add("spec.volumeOwnershipPolicy", f'volume ownership policy "{ownership}" doesn\'t exist')
    for other in lookup.list(register.MACHINE_RESTORE, namespace):
        if (other.get("spec") or {}).get("target") == target and is_restore_open(other):
            findings.add("spec.target", f'VirtualMachineRestore "{other["metadata"]["name"]}" in progress')


def is_restore_open(restore: Json) -> bool:
    """Whether it is neither complete nor failed."""
    status: Json = restore.get("status") or {}
    failed = any(c.get("type") == "Failure" and c.get("status") == "True" for c in status.get("conditions") or ())
    return not status.get("complete") and not failed


def _check_backend_storage(spec: Json, lookup: Lookup, namespace: str, findings: Findings) -> None:
    """State of a TPM or of EFI variables belongs to one machine."""
    snapshot = lookup.get(register.MACHINE_SNAPSHOT, namespace, str(spec.get("virtualMachineSnapshotName")))
    status: Json = (snapshot or {}).get("status") or {}
    name = str(status.get("virtualMachineSnapshotContentName") or "")
    content = lookup.get(register.MACHINE_SNAPSHOT_CONTENT, namespace, name) if name else None
    machine: Json = (((content or {}).get("spec") or {}).get("source") or {}).get("virtualMachine") or {}
    if not machine or not has_backend_storage(machine):
        return
    target = lookup.get(register.VIRTUAL_MACHINE, namespace, str(spec["target"].get("name")))
    if target is None or target["metadata"].get("uid") != (machine.get("metadata") or {}).get("uid"):
        text = "Restore to a different VM is not supported when snapshotted VM has backend storage"
        findings.add("spec.target", f"{text} (persistent TPM or EFI)")


def has_backend_storage(machine: Json) -> bool:
    """Whether a machine keeps the state of its TPM or EFI variables."""
    domain: Json = (((machine.get("spec") or {}).get("template") or {}).get("spec") or {}).get("domain") or {}
    tpm: Json = (domain.get("devices") or {}).get("tpm") or {}
    efi: Json = ((domain.get("firmware") or {}).get("bootloader") or {}).get("efi") or {}
    return bool(tpm.get("persistent") or efi.get("persistent"))


def _check_patch(patch: str, findings: Findings) -> None:
    try:
        step = msgspec.json.decode(patch, type=dict[str, object])
    except msgspec.DecodeError:
        for part in patch.strip("{}").split(","):
            if part.count(":") != 1:
                text = f'patch format is not valid - one ":" expected in a single key-value json patch: {part}'
                findings.add("spec.patches", text)
        return
    path = str(step.get("path", ""))
    if not path.startswith(_PATCHABLE):
        shown = next((p for p in patch.strip("{}").split(",") if '"path"' in p), patch)
        findings.add("spec.patches", f"patching is valid only for elements under /spec/ only: {shown}")
    elif word := untouchable(step):
        findings.add("spec.patches", f"a patch may not touch {word}: change the machine itself")


def untouchable(step: Json) -> str:
    """What in a JSON patch step takes a right of its own; "" if nothing does."""
    path = [part.replace("~1", "/").replace("~0", "~") for part in str(step.get("path", "")).split("/")]
    for word in (*path, *_keys(step.get("value"))):
        if word in _RIGHTS_OF_THEIR_OWN or word.startswith(_OWN_PREFIX):
            return word
    return ""


def _keys(value: object) -> Iterator[str]:
    """All keys in a value, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


def _check_overrides(overrides: list[Json] | tuple[()], findings: Findings) -> None:
    for index, override in enumerate(overrides):
        here = f"spec.volumeRestoreOverrides[{index}]"
        if not override.get("volumeName"):
            findings.add(f"{here}.volumeName", "must provide a volume name", REQUIRED)
        if owned := [key for key in override.get("annotations") or {} if key.startswith(_OWN_PREFIX)]:
            findings.add(f"{here}.annotations", f"annotation {owned[0]} is not for people")
        if not any(override.get(field) for field in ("restoreName", "labels", "annotations")):
            findings.add(here, "must provide at least one overriden field", REQUIRED)


def check_volume_snapshot(snapshot: Json, old: Json | None, findings: Findings) -> None:
    """A VolumeSnapshot: of a claim, and of the same one for ever."""
    spec: Json = snapshot.get("spec") or {}
    source: Json = spec.get("source") or {}
    if old is not None:
        if source != ((old.get("spec") or {}).get("source") or {}):
            findings.add("spec.source", "source is immutable")
        return
    if source.get("volumeSnapshotContentName"):
        text = "VolumeSnapshotContents are not served: name a persistentVolumeClaimName"
        findings.add("spec.source.volumeSnapshotContentName", text)
    elif not source.get("persistentVolumeClaimName"):
        findings.add("spec.source.persistentVolumeClaimName", "exactly one source must be specified", REQUIRED)


def check_volume_snapshot_class(snapshot_class: Json, findings: Findings) -> None:
    """A class of ours cannot keep data without its object."""
    if snapshot_class.get("driver") == "stead.io" and snapshot_class.get("deletionPolicy") == "Retain":
        text = "Retain is not supported by driver stead.io: there would be no VolumeSnapshotContent to find the data by"
        findings.add("deletionPolicy", text)
