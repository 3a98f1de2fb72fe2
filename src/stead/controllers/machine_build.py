"""What a VirtualMachine gives rise to: its instance, its DataVolumes, its ControllerRevisions. Pure.

Called by `controllers.machine` only. Names, labels and annotations follow KubeVirt 1.8.
"""

from __future__ import annotations

from typing import Any

from stead.controllers.conditions import annotations_of, condition, labels_of, owner_reference, spec_of
from stead.controllers.machine_status import start_request
from stead.kube.encoding import own_copy

Object = dict[str, Any]

INSTANCE_FINALIZER = "kubevirt.io/foregroundDeleteVirtualMachine"
GENERATION_ANNOTATION = "kubevirt.io/vm-generation"
IMMEDIATE_ANNOTATION = "kubevirt.io/immediate-data-volume-creation"
CLUSTER_KINDS = {"instancetype": "VirtualMachineClusterInstancetype", "preference": "VirtualMachineClusterPreference"}
_ANNOTATION_NAMES = {
    "VirtualMachineClusterInstancetype": "kubevirt.io/cluster-instancetype-name",
    "VirtualMachineInstancetype": "kubevirt.io/instancetype-name",
    "VirtualMachineClusterPreference": "kubevirt.io/cluster-preference-name",
    "VirtualMachinePreference": "kubevirt.io/preference-name",
}


def start_revision_prefix(vm: Object) -> str:
    """What names of all start revisions of this VM begin with."""
    return f"revision-start-vm-{vm['metadata']['uid']}-"


def start_revision(vm: Object) -> Object:
    """The ControllerRevision that records what the instance is made from."""
    metadata = vm["metadata"]
    generation = metadata.get("generation", 1)
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "namespace": metadata["namespace"],
            "name": f"{start_revision_prefix(vm)}{generation}",
            "ownerReferences": [owner_reference(vm)],
        },
        "data": {"spec": spec_of(vm)},
        "revision": generation,
    }


def pin_revision(vm: Object, source: Object) -> Object:
    """The ControllerRevision that keeps an instancetype or preference as it was when first used."""
    metadata = source["metadata"]
    version = source["apiVersion"].rpartition("/")[2]
    name = f"{vm['metadata']['name']}-{metadata['name']}-{version}-{metadata['uid']}-{metadata.get('generation', 1)}"
    label = "instancetype.kubevirt.io/object-"
    kept = {
        k: metadata[k] for k in ("name", "namespace", "uid", "generation", "labels", "annotations") if k in metadata
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "namespace": vm["metadata"]["namespace"],
            "name": name,
            "labels": {
                f"{label}generation": str(metadata.get("generation", 1)),
                f"{label}kind": source["kind"],
                f"{label}name": metadata["name"],
                f"{label}uid": metadata["uid"],
                f"{label}version": version,
            },
            "ownerReferences": [owner_reference(vm)],
        },
        "data": {"apiVersion": source["apiVersion"], "kind": source["kind"], "metadata": kept, "spec": spec_of(source)},
        "revision": 0,
    }


def data_volume(vm: Object, template: Object, preference: Object | None) -> Object:
    """A DataVolume made from one of the VM's templates, owned by the VM."""
    metadata = template["metadata"]
    spec = own_copy(template.get("spec") or {})
    preferred = (spec_of(preference).get("volumes") or {}).get("preferredStorageClassName")
    for face in ("storage", "pvc"):
        if preferred and face in spec and not spec[face].get("storageClassName"):
            spec[face]["storageClassName"] = preferred
    made: Object = {
        "namespace": vm["metadata"]["namespace"],
        "name": metadata["name"],
        "labels": {**labels_of(template), "kubevirt.io/created-by": vm["metadata"]["uid"]},
        "ownerReferences": [owner_reference(vm)],
    }
    if annotations_of(template):
        made["annotations"] = dict(annotations_of(template))
    return {"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": made, "spec": spec}


def instance(vm: Object, spec: Object, annotations: dict[str, str], revision: str, now: str) -> Object:
    """The VirtualMachineInstance: `spec` has instancetype and preference applied; `revision` is the start revision."""
    template = spec_of(vm).get("template") or {}
    metadata = vm["metadata"]
    if not (spec.get("domain", {}).get("firmware") or {}).get("uuid"):
        spec["domain"]["firmware"] = {**(spec["domain"].get("firmware") or {}), "uuid": metadata["uid"]}
    asked = (start_request(vm) or {}).get("data") or {}
    if str(asked.get("paused", "")).lower() == "true":
        spec["startStrategy"] = "Paused"
    ready = condition("Ready", "False", "GuestNotRunning", "Guest VM is not reported as running")
    made_annotations = {
        **annotations,
        **_matcher_annotations(vm),
        GENERATION_ANNOTATION: str(metadata.get("generation", 1)),
    }
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "labels": {**labels_of(template), "vmi.kubevirt.io/id": metadata["name"][:63]},
            "annotations": made_annotations,
            "ownerReferences": [owner_reference(vm)],
            "finalizers": [INSTANCE_FINALIZER],
        },
        "spec": spec,
        "status": {
            "phase": "Pending",
            "phaseTransitionTimestamps": [{"phase": "Pending", "phaseTransitionTimestamp": now}],
            "virtualMachineRevisionName": revision,
            "conditions": [{**ready, "lastTransitionTime": now}],
        },
    }


def _matcher_annotations(vm: Object) -> dict[str, str]:
    found = {}
    for field, cluster_kind in CLUSTER_KINDS.items():
        matcher = spec_of(vm).get(field)
        if matcher and matcher.get("name"):
            kind = canonical_kind(matcher.get("kind") or cluster_kind)
            found[_ANNOTATION_NAMES.get(kind, _ANNOTATION_NAMES[cluster_kind])] = matcher["name"]
    return found


def canonical_kind(kind: str) -> str:
    """The Kind a matcher means: it may be written as Kind, singular or plural, in any case."""
    lowered = kind.lower().removesuffix("s")
    return next((k for k in _ANNOTATION_NAMES if k.lower() == lowered), kind)
