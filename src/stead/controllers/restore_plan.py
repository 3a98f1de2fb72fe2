"""What a restore makes: names and claims of the new disks, and the machine that uses them. Pure.

Called by `controllers.restore` only. Every name follows from the restore's uid or its target's name, so that another
attempt finds what an earlier one made. Rules and annotations are KubeVirt's; a restored claim is a plain claim that is
filled from its VolumeSnapshot, also where the machine names it as a DataVolume.
"""

from __future__ import annotations

import copy
from typing import Any

import msgspec

from stead.controllers.conditions import annotations_of, labels_of, owner_reference, spec_of, status_of
from stead.controllers.disk_source import IMMEDIATE, PVC_PROTECTION
from stead.controllers.machine_status import run_strategy
from stead.controllers.snapshot import volumes_of
from stead.kinds.register import PERSISTENT_VOLUME_CLAIM, VIRTUAL_MACHINE, VOLUME_SNAPSHOT
from stead.kube import patch

Object = dict[str, Any]

#: on a restored claim: which restore made it
RESTORE_NAME = "restore.kubevirt.io/name"
#: on a restored machine: which restore it was
LAST_RESTORE = "restore.kubevirt.io/lastRestoreUID"
#: on a machine that is being restored: the run strategy that it will have
RUN_STRATEGY = "kubevirt.io/restore-run-strategy"
#: annotations that say how the old claim was filled, or that plane and agent write for each other
_NOT_COPIED = (
    "stead.io/", "volume.", "pv.", "cdi.kubevirt.io/storage.import", "cdi.kubevirt.io/storage.pod",
    "cdi.kubevirt.io/storage.condition",
)  # fmt: skip


def mark_of(restore: Object) -> str:
    """What tells this restore from others, in annotations."""
    return f"{restore['metadata']['name']}-{restore['metadata']['uid']}"


def target_name(restore: Object) -> str:
    """Name of the machine that is restored."""
    return str((spec_of(restore).get("target") or {}).get("name", ""))


def plan_volumes(restore: Object, content: Object) -> list[Object]:
    """`status.restores`: the claim of each volume."""
    spec, uid = spec_of(restore), restore["metadata"]["uid"]
    policy = spec.get("volumeRestorePolicy") or "RandomizeNames"
    named = {
        o["volumeName"]: o["restoreName"]
        for o in spec.get("volumeRestoreOverrides") or ()
        if o.get("volumeName") and o.get("restoreName")
    }
    planned = []
    for backup in spec_of(content).get("volumeBackups") or ():
        volume = backup["volumeName"]
        name = f"restore-{uid}-{volume}"
        if policy == "InPlace":
            name = backup["persistentVolumeClaim"]["metadata"]["name"]
        elif policy == "PrefixTargetName":
            name = f"{target_name(restore)}-{volume}"
        planned.append({
            "volumeName": volume,
            "persistentVolumeClaim": named.get(volume, name),
            "volumeSnapshotName": backup["volumeSnapshotName"],
        })  # fmt: skip
    return planned


def build_claim(restore: Object, backup: Object, planned: Object, snapshot: Object) -> Object:
    """The claim of one volume, owned by the restore until the machine has it."""
    kept: Object = backup["persistentVolumeClaim"]
    spec = copy.deepcopy(spec_of(kept))
    for field in ("volumeName", "dataSource", "dataSourceRef", "selector"):
        spec.pop(field, None)
    size = status_of(snapshot).get("restoreSize")
    asked = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    spec["resources"] = {"requests": {"storage": asked or size}}
    group = VOLUME_SNAPSHOT.group
    source = {"apiGroup": group, "kind": VOLUME_SNAPSHOT.kind, "name": planned["volumeSnapshotName"]}
    spec["dataSource"] = source
    spec["dataSourceRef"] = dict(source)
    overrides = spec_of(restore).get("volumeRestoreOverrides") or ()
    override: Object = next((o for o in overrides if o.get("volumeName") == planned["volumeName"]), {})
    wanted = {**annotations_of(kept), **(override.get("annotations") or {})}
    annotations = {k: v for k, v in wanted.items() if not k.startswith(_NOT_COPIED)}
    annotations |= {IMMEDIATE: "true", RESTORE_NAME: mark_of(restore)}
    labels = {**labels_of(kept), **(override.get("labels") or {})}
    return {
        "apiVersion": "v1",
        "kind": PERSISTENT_VOLUME_CLAIM.kind,
        "metadata": {
            "namespace": restore["metadata"]["namespace"],
            "name": planned["persistentVolumeClaim"],
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(restore)],
            "finalizers": [PVC_PROTECTION],
        },
        "spec": spec,
    }


def restored_machine(restore: Object, content: Object, target: Object | None, known: set[str]) -> Object:
    """The machine as it is to be: a new object, or the changed `target`. Raises ValueError for a patch that does not
    fit. `known` are names of ControllerRevisions that exist. It does not run yet: its strategy waits in an annotation.
    """
    kept: Object = spec_of(content)["source"]["virtualMachine"]
    spec = copy.deepcopy(spec_of(kept))
    names = {r["volumeName"]: r["persistentVolumeClaim"] for r in status_of(restore).get("restores") or ()}
    renamed: dict[str, str] = {}
    for volume in volumes_of({"spec": spec}):
        new = names.get(volume["name"])
        if new is None:
            continue
        if "dataVolume" in volume:
            renamed[volume["dataVolume"]["name"]] = new
            volume["dataVolume"] = {**volume["dataVolume"], "name": new}
        else:
            volume["persistentVolumeClaim"] = {**volume["persistentVolumeClaim"], "claimName": new}
    for template in spec.get("dataVolumeTemplates") or ():
        metadata = template["metadata"]
        metadata["name"] = renamed.get(metadata["name"], metadata["name"])
    same = target is not None and target["metadata"]["uid"] == (kept.get("metadata") or {}).get("uid")
    for matcher in ("instancetype", "preference"):
        found = spec.get(matcher) or {}
        if found.get("revisionName") and (not same or found["revisionName"] not in known):
            spec[matcher] = {k: v for k, v in found.items() if k != "revisionName"}
    strategy = run_strategy({"spec": spec})
    spec.pop("running", None)
    spec["runStrategy"] = "Halted"
    made: Object = {"apiVersion": VIRTUAL_MACHINE.api_version, "kind": VIRTUAL_MACHINE.kind}
    made["metadata"] = {
        "namespace": restore["metadata"]["namespace"],
        "name": target_name(restore),
        "labels": dict(labels_of(kept)),
        "annotations": dict(annotations_of(kept)),
    }
    made["spec"] = spec
    made = _patched(made, spec_of(restore).get("patches") or ())
    wanted = made["spec"].get("runStrategy")
    # a patch may have chosen another strategy
    strategy = str(wanted) if wanted and wanted != "Halted" else strategy
    made["spec"]["runStrategy"] = "Halted"
    marks = {LAST_RESTORE: mark_of(restore)} | ({RUN_STRATEGY: strategy} if strategy != "Halted" else {})
    made["metadata"]["annotations"] = {**(made["metadata"].get("annotations") or {}), **marks}
    if target is None:
        return made
    metadata = {**target["metadata"], "labels": {**labels_of(target), **labels_of(made)}}
    metadata["annotations"] = {**annotations_of(target), **annotations_of(made)}
    return {**target, "metadata": metadata, "spec": made["spec"]}


def _patched(machine: Object, patches: list[str] | tuple[()]) -> Object:
    steps = []
    for text in patches:
        try:
            steps.append(msgspec.json.decode(text, type=dict[str, Any]))
        except msgspec.DecodeError as error:
            raise ValueError(f"spec.patches: {text[:200]} is no JSON patch: {error}") from error
    if not steps:
        return machine
    metadata = {"labels": {}, "annotations": {}, **machine["metadata"]}
    try:
        changed: Object = patch.json_patch({**machine, "metadata": metadata}, steps)
    except Exception as error:
        raise ValueError(f"spec.patches cannot be applied: {error}") from error
    return changed
