"""Instancetype and preference matchers of a VirtualMachine: what they name, and inference from a volume.

`spec.instancetype` and `spec.preference` name an object, or a volume whose labels name it. Inference happens once, at
admission, and replaces the matcher by what was found. Texts are KubeVirt's (`pkg/instancetype/{infer,webhooks}`,
recordings `vm-infer-*`, `vm-matcher-*`). Pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube.encoding import own_copy
from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import Json, Lookup
from stead.server.admission.findings import NOT_FOUND, NOT_SUPPORTED, Findings, bad_request


class Matched(msgspec.Struct, frozen=True):
    """One kind of matcher: its field in the spec, its name in messages, its labels, and the kinds it may name."""

    field: str
    title: str
    label: str
    kinds: dict[str, Resource]


def _kinds(namespaced: Resource, cluster: Resource) -> dict[str, Resource]:
    """Kinds by every spelling that upstream takes, in lower case; "" is the cluster kind."""
    found = {"": cluster}
    for resource in (namespaced, cluster):
        found |= {resource.singular.lower(): resource, resource.plural.lower(): resource}
    return found


INSTANCETYPE = Matched(
    "instancetype",
    "InstancetypeMatcher",
    "instancetype.kubevirt.io/default-instancetype",
    _kinds(register.INSTANCETYPE, register.CLUSTER_INSTANCETYPE),
)
PREFERENCE = Matched(
    "preference",
    "PreferenceMatcher",
    "instancetype.kubevirt.io/default-preference",
    _kinds(register.PREFERENCE, register.CLUSTER_PREFERENCE),
)
BOTH = (INSTANCETYPE, PREFERENCE)


class _NothingToInfer(Exception):
    """The volume says nothing; `inferFromVolumeFailurePolicy: Ignore` may pass over it."""


def resource_of(matched: Matched, matcher: Json) -> Resource | None:
    """The kind that a matcher names; None if there is no such kind."""
    return matched.kinds.get(str(matcher.get("kind") or "").lower())


def find_matched(machine: Json, matched: Matched, lookup: Lookup, namespace: str) -> Json | None:
    """The instancetype or preference that a machine names: its pinned revision if it has one, else the object.

    None if the machine names none, or what it names is not there (the controller then says so in a condition).
    """
    matcher = (machine.get("spec") or {}).get(matched.field)
    if not matcher or not matcher.get("name"):
        return None
    revision_name = matcher.get("revisionName")
    if revision_name:
        revision = lookup.get(register.CONTROLLER_REVISION, namespace, str(revision_name))
        data = (revision or {}).get("data")
        if isinstance(data, dict):
            return data
    resource = resource_of(matched, matcher)
    if resource is None:
        return None
    return lookup.get(resource, namespace if resource.namespaced else "", str(matcher["name"]))


def check_matchers(spec: Json, old_spec: Json | None, findings: Findings) -> None:
    """Refuse matchers that contradict themselves or an update that forgets the pinned revision."""
    for matched in BOTH:
        matcher = spec.get(matched.field)
        if matcher is None:
            continue
        field = f"spec.{matched.field}"
        name, volume = matcher.get("name"), matcher.get("inferFromVolume")
        if not name and not volume:
            text = f"Either Name or InferFromVolume should be provided within the {matched.title}"
            findings.add(field, text, NOT_FOUND)
        for key in ("name", "kind") if volume else ():
            if matcher.get(key):
                text = f"{key.capitalize()} already set, should be cleared before setting inferFromVolume"
                findings.add(f"{field}.{key}", text, NOT_SUPPORTED)
        policy = matcher.get("inferFromVolumeFailurePolicy")
        if policy is not None and policy not in ("Ignore", "Reject"):
            text = f"Invalid value '{policy}' for InferFromVolumeFailurePolicy"
            findings.add(f"{field}.inferFromVolumeFailurePolicy", text)
        _check_revision(field, matcher, (old_spec or {}).get(matched.field), findings)


def _check_revision(field: str, matcher: Json, old: Json | None, findings: Findings) -> None:
    if old is None or not old.get("revisionName") or matcher.get("name") == old.get("name"):
        return
    if matcher.get("revisionName") == old["revisionName"]:
        findings.add(field, "the Matcher Name has been updated without updating the RevisionName")


def infer_matchers(spec: Json, cluster: Cluster, namespace: str) -> Json:
    """A spec whose matchers name objects: volumes were asked, their answers stand in place of `inferFromVolume`.

    Raises a 400 if nothing can be inferred and the policy is not Ignore.
    """
    made: Json = own_copy(spec)
    for matched in BOTH:
        matcher = made.get(matched.field)
        if not matcher or not matcher.get("inferFromVolume"):
            continue
        ignore = matcher.get("inferFromVolumeFailurePolicy") == "Ignore"
        try:
            labels = _labels_of_volume(made, str(matcher["inferFromVolume"]), cluster.lookup, namespace)
            name = labels.get(matched.label)
            if not name:
                raise _NothingToInfer(f"unable to find required {matched.label} label on the volume")
        except _NothingToInfer as error:
            if not ignore:
                raise bad_request(str(error)) from error
            del made[matched.field]
            continue
        kind = labels.get(f"{matched.label}-kind")
        made[matched.field] = {**({"kind": kind} if kind else {}), "name": name}
        if ignore and matched is INSTANCETYPE:
            _drop_guest_memory(made)
    return made


def _drop_guest_memory(spec: Json) -> None:
    """An inferred type brings its own memory; upstream clears the template's silently (note 12)."""
    domain = ((spec.get("template") or {}).get("spec") or {}).get("domain") or {}
    memory = domain.get("memory") or {}
    memory.pop("guest", None)
    if not memory:
        domain.pop("memory", None)


def _labels_of_volume(spec: Json, name: str, lookup: Lookup, namespace: str) -> dict[str, str]:
    volumes = ((spec.get("template") or {}).get("spec") or {}).get("volumes") or ()
    volume = next((v for v in volumes if v.get("name") == name), None)
    if volume is None:
        raise bad_request(f"unable to find volume {name} to infer defaults")
    claim = volume.get("persistentVolumeClaim")
    if claim is not None:
        return _labels(_found(lookup, register.PERSISTENT_VOLUME_CLAIM, namespace, str(claim.get("claimName") or "")))
    data_volume = volume.get("dataVolume")
    if data_volume is not None:
        return _labels_of_data_volume(spec, str(data_volume.get("name") or ""), lookup, namespace)
    raise _NothingToInfer(f"unable to infer defaults from volume {name} as type is not supported")


def _labels_of_data_volume(spec: Json, name: str, lookup: Lookup, namespace: str) -> dict[str, str]:
    templates = spec.get("dataVolumeTemplates") or ()
    template = next((t for t in templates if (t.get("metadata") or {}).get("name") == name), None)
    if template is None:
        existing = lookup.get(register.DATA_VOLUME, namespace, name)
        if existing is None:
            return _labels(_found(lookup, register.PERSISTENT_VOLUME_CLAIM, namespace, name))
        template = existing
    labels = _labels(template)
    if INSTANCETYPE.label in labels or PREFERENCE.label in labels:
        return labels
    return _labels_of_source(template.get("spec") or {}, lookup, namespace)


def _labels_of_source(spec: Json, lookup: Lookup, namespace: str) -> dict[str, str]:
    reference = spec.get("sourceRef")
    if reference is not None:
        if reference.get("kind") != "DataSource":
            kind = reference.get("kind")
            raise _NothingToInfer(f"unable to infer defaults from DataVolumeSourceRef as Kind {kind} is not supported")
        home = str(reference.get("namespace") or namespace)
        source = _found(lookup, register.DATA_SOURCE, home, str(reference.get("name") or ""))
        labels = _labels(source)
        if INSTANCETYPE.label in labels or PREFERENCE.label in labels:
            return labels
        spec = source.get("spec") or {}
        namespace = home
    claim: Any = (spec.get("source") or {}).get("pvc")
    if claim is None:
        text = "unable to infer defaults from DataVolumeSpec as DataVolumeSource is not supported"
        raise _NothingToInfer(text)
    home = str(claim.get("namespace") or namespace)
    return _labels(_found(lookup, register.PERSISTENT_VOLUME_CLAIM, home, str(claim.get("name") or "")))


def _found(lookup: Lookup, resource: Resource, namespace: str, name: str) -> Json:
    found = lookup.get(resource, namespace, name)
    if found is None:
        qualified = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
        raise bad_request(f'{qualified} "{name}" not found')
    return found


def _labels(obj: Json) -> dict[str, str]:
    return dict((obj.get("metadata") or {}).get("labels") or {})


def refuse_matchers(spec: Json, old_spec: Json | None) -> None:
    """`check_matchers`, raising at once: upstream answers this before anything else."""
    findings = Findings()
    check_matchers(spec, old_spec, findings)
    findings.refuse_if_any()
