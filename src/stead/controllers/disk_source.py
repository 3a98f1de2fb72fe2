"""What a DataVolume is to be filled with and what claim it needs: source resolution and storage defaults. Pure.

Called by `controllers.disk` only. The outcome is concrete: no DataSource is left in it, namespaces are filled in. Rules
follow CDI (spec.source, sourceRef, `storage` defaults from StorageProfile and default class).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec

from stead.controllers.conditions import annotations_of, is_deleting, labels_of, owner_reference, spec_of, status_of
from stead.controllers.volume_needs import SOURCE, transfer_of
from stead.kube.quantity import parse, quantity_from_bytes

Object = dict[str, Any]

#: on a blank DataVolume that names a file (`stead.io/file`): take the file that is there, as it is
ADOPT = "stead.io/adopt"
PVC_PROTECTION = "kubernetes.io/pvc-protection"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
DEFAULT_VIRT_CLASS = "storageclass.kubevirt.io/is-default-virt-class"
INFERENCE_PREFIX = "instancetype.kubevirt.io/default-"
IMMEDIATE = "cdi.kubevirt.io/storage.bind.immediate.requested"
_IMPORT_FIELDS = {
    "http": (
        "url",
        "checksum",
        "secretRef",
        "certConfigMap",
        "extraHeaders",
        "secretExtraHeaders",
        "insecureSkipVerify",
    ),
    "registry": ("url", "secretRef", "certConfigMap", "platform"),
    "s3": ("url", "secretRef", "certConfigMap"),
}
_UNSUPPORTED = ("gcs", "imageio", "vddk")


class Wait(Exception):
    """The DataVolume cannot be carried out yet. `reason` is an event reason, the text a sentence."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Resolved(msgspec.Struct, frozen=True):
    """The concrete source (`stead.io/source`), labels to hand down, and the least size in bytes (0 = unknown)."""

    source: Object | None
    labels: dict[str, str] = {}
    least: int = 0


class Lookups(msgspec.Struct, frozen=True):
    """Readers of other objects by (namespace, name), and of claims in use."""

    data_source: Callable[[str, str], Object | None]
    data_volume: Callable[[str, str], Object | None]
    claim: Callable[[str, str], Object | None]
    in_use_by: Callable[[str, str], str]
    snapshot: Callable[[str, str], Object | None] = lambda _namespace, _name: None


def source_kind(data_volume: Object) -> str:
    """http, registry, s3, upload, blank, pvc, snapshot, …; "ref" for a sourceRef; "" for none."""
    spec = spec_of(data_volume)
    if spec.get("sourceRef"):
        return "ref"
    return next(iter(spec.get("source") or {}), "")


def resolve(data_volume: Object, look: Lookups) -> Resolved:
    """Make the source concrete. Raises `Wait`."""
    spec, namespace = spec_of(data_volume), data_volume["metadata"]["namespace"]
    if spec.get("contentType") == "archive":
        raise Wait("Unsupported", "spec.contentType: archive is not supported, only kubevirt")
    if spec.get("checkpoints"):
        raise Wait("Unsupported", "spec.checkpoints: multi-stage imports are not supported")
    if spec.get("sourceRef"):
        return _from_data_source(spec["sourceRef"], namespace, look)
    kind = source_kind(data_volume)
    source = (spec.get("source") or {}).get(kind) or {}
    if kind in _IMPORT_FIELDS:
        kept = {field: source[field] for field in _IMPORT_FIELDS[kind] if source.get(field)}
        if kind == "registry" and source.get("imageStream"):
            raise Wait("Unsupported", "source.registry.imageStream: image streams are not supported")
        return Resolved({"kind": kind, **kept})
    if kind == "blank" and annotations_of(data_volume).get(ADOPT) == "true":
        return Resolved({"kind": "existing"})
    if kind in ("blank", "upload"):
        return Resolved({"kind": kind})
    if kind == "pvc":
        return _from_claim(source.get("namespace") or namespace, source.get("name", ""), look)
    if kind == "snapshot":
        return _from_snapshot(source.get("namespace") or namespace, source.get("name", ""), look)
    if kind in _UNSUPPORTED:
        raise Wait("Unsupported", f"source.{kind}: this kind of source is not supported")
    return Resolved(None)


def _from_data_source(reference: Object, namespace: str, look: Lookups) -> Resolved:
    place, name = reference.get("namespace") or namespace, reference.get("name", "")
    labels: dict[str, str] = {}
    for _ in range(2):  # a DataSource may point at another one, once
        found = look.data_source(place, name)
        if found is None:
            raise Wait("NotFound", f"DataSource {place}/{name} not found")
        labels = {**_inference(found), **labels}
        source = spec_of(found).get("source") or {}
        if source.get("pvc"):
            chosen = _from_claim(source["pvc"].get("namespace") or place, source["pvc"].get("name", ""), look)
            return msgspec.structs.replace(chosen, labels={**chosen.labels, **labels})
        if source.get("snapshot"):
            kept = source["snapshot"]
            chosen = _from_snapshot(kept.get("namespace") or place, kept.get("name", ""), look)
            return msgspec.structs.replace(chosen, labels={**chosen.labels, **labels})
        if not source.get("dataSource"):
            raise Wait("NotFound", f"DataSource {place}/{name} names no source")
        place, name = source["dataSource"].get("namespace") or place, source["dataSource"].get("name", "")
    raise Wait("MaxReferenceDepthReached", f"DataSource {place}/{name} is more than one reference away")


def _from_claim(namespace: str, name: str, look: Lookups) -> Resolved:
    claim = look.claim(namespace, name)
    if claim is None or is_deleting(claim):
        raise Wait("CloneWithoutSource", f"The source pvc {namespace}/{name} doesn't exist")
    if SOURCE in annotations_of(claim) and transfer_of(claim).get("phase") != "Succeeded":
        raise Wait("CloneSourceNotReady", f"The source pvc {namespace}/{name} is not populated yet")
    if status_of(claim).get("phase") != "Bound":
        raise Wait("CloneSourceNotReady", f"The source pvc {namespace}/{name} is not bound")
    user = look.in_use_by(namespace, name)
    if user:
        raise Wait(
            "CloneSourceInUse", f"The source pvc {namespace}/{name} is in use by virtual machine instance {user}"
        )
    data_volume = look.data_volume(namespace, name)
    labels = {**_inference(claim), **(_inference(data_volume) if data_volume else {})}
    size = status_of(claim).get("capacity", {}).get("storage") or requested(claim)
    return Resolved({"kind": "pvc", "namespace": namespace, "name": name}, labels, int(parse(size)) if size else 0)


def _from_snapshot(namespace: str, name: str, look: Lookups) -> Resolved:
    snapshot = look.snapshot(namespace, name)
    if snapshot is None or is_deleting(snapshot):
        raise Wait("CloneWithoutSource", f"The source snapshot {namespace}/{name} doesn't exist")
    if not status_of(snapshot).get("readyToUse"):
        raise Wait("CloneSourceNotReady", f"The source snapshot {namespace}/{name} is not ready to use")
    size = status_of(snapshot).get("restoreSize")
    source = {"kind": "snapshot", "namespace": namespace, "name": name}
    return Resolved(source, _inference(snapshot), int(parse(size)) if size else 0)


def _inference(obj: Object) -> dict[str, str]:
    return {k: v for k, v in labels_of(obj).items() if k.startswith(INFERENCE_PREFIX)}


def requested(claim: Object) -> str:
    """The storage request of a claim, as text; "" if none."""
    return str(((spec_of(claim).get("resources") or {}).get("requests") or {}).get("storage", ""))


def default_class(classes: list[Object], *, virt: bool) -> Object | None:
    """The default StorageClass: for virtual machines first (`storage` API only), else Kubernetes'; the newest wins."""
    keys = (DEFAULT_VIRT_CLASS, DEFAULT_CLASS) if virt else (DEFAULT_CLASS,)
    for key in keys:
        marked = [c for c in classes if annotations_of(c).get(key) == "true"]
        if marked:
            return max(marked, key=lambda c: (c["metadata"].get("creationTimestamp", ""), c["metadata"]["name"]))
    return None


def build_claim(
    data_volume: Object, resolved: Resolved, storage_class: Object | None, profile: Object | None
) -> Object:
    """The PersistentVolumeClaim to make. Raises `Wait` if size or access mode cannot be known."""
    spec, metadata = spec_of(data_volume), data_volume["metadata"]
    wanted = copy.deepcopy(spec.get("storage") or spec.get("pvc") or {})
    if storage_class is not None:
        wanted["storageClassName"] = storage_class["metadata"]["name"]
    elif not wanted.get("storageClassName"):
        raise Wait("ErrClaimNotValid", "no storage class is named and none is the default")
    if "storage" in spec:
        _add_profile_defaults(wanted, profile)
    size = ((wanted.get("resources") or {}).get("requests") or {}).get("storage")
    if not size and resolved.least:
        size = str(quantity_from_bytes(resolved.least))
        wanted["resources"] = {**(wanted.get("resources") or {}), "requests": {"storage": size}}
    if not size:
        raise Wait("ErrClaimNotValid", "the size is missing: spec.storage.resources.requests.storage")
    if int(parse(size)) < resolved.least:
        least = quantity_from_bytes(resolved.least)
        raise Wait("ErrIncompatiblePVC", f"target size {size} is smaller than the source's {least}")
    wanted.setdefault("volumeMode", "Filesystem")
    annotations = _claim_annotations(data_volume, resolved)
    labels = {**resolved.labels, **labels_of(data_volume), "app": "containerized-data-importer"}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "labels": {"app.kubernetes.io/component": "storage", "app.kubernetes.io/managed-by": "cdi-controller"}
            | labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(data_volume)],
            "finalizers": [PVC_PROTECTION],
        },
        "spec": wanted,
    }


def _claim_annotations(data_volume: Object, resolved: Resolved) -> dict[str, str]:
    spec, metadata = spec_of(data_volume), data_volume["metadata"]
    annotations = {**annotations_of(data_volume), "cdi.kubevirt.io/createdForDataVolume": metadata["uid"]}
    annotations["cdi.kubevirt.io/storage.contentType"] = spec.get("contentType") or "kubevirt"
    annotations["cdi.kubevirt.io/storage.preallocation.requested"] = "true" if spec.get("preallocation") else "false"
    if resolved.source is not None:
        annotations[SOURCE] = msgspec.json.encode(resolved.source).decode()
        if resolved.source.get("kind") == "upload":
            annotations["cdi.kubevirt.io/storage.upload.target"] = ""
    return annotations


def _add_profile_defaults(wanted: Object, profile: Object | None) -> None:
    """Fill in access modes and volume mode that `storage` leaves open (`wanted` is ours to change)."""
    for offer in status_of(profile).get("claimPropertySets") or ():
        if wanted.get("volumeMode") and offer.get("volumeMode") != wanted["volumeMode"]:
            continue
        if wanted.get("accessModes") and not set(wanted["accessModes"]) <= set(offer.get("accessModes") or ()):
            continue
        wanted.setdefault("accessModes", offer.get("accessModes"))
        wanted.setdefault("volumeMode", offer.get("volumeMode") or "Filesystem")
        break
    if not wanted.get("accessModes"):
        text = "no accessMode specified in StorageProfile"
        raise Wait("ErrClaimNotValid", f"{text} {wanted.get('storageClassName')} nor in the DataVolume")
