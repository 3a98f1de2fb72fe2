"""Which instancetype and preference a VirtualMachine uses, held fast by ControllerRevisions.

Called by `controllers.machine`. At first use the object is copied into a ControllerRevision owned by the VM and its
name is put into `status.instancetypeRef` / `status.preferenceRef`; from then on only the copy is read, so a later edit
of the original leaves the machine alone. Naming another object, or a `revisionName`, moves the pin. Source: KubeVirt
1.8, pkg/instancetype/revision.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stead.client.contract import Client
from stead.client.informer import Informer
from stead.controllers import machine_build as build
from stead.controllers.conditions import spec_of, status_of
from stead.controllers.machine_status import Failure
from stead.controllers.writes import create_if_absent, read
from stead.kinds.register import (
    CLUSTER_INSTANCETYPE,
    CLUSTER_PREFERENCE,
    CONTROLLER_REVISION,
    INSTANCETYPE,
    PREFERENCE,
)
from stead.kinds.resource import Resource

Object = dict[str, Any]

_SOURCES: dict[str, tuple[Resource, ...]] = {
    "instancetype": (CLUSTER_INSTANCETYPE, INSTANCETYPE),
    "preference": (CLUSTER_PREFERENCE, PREFERENCE),
}


class Pins(msgspec.Struct, frozen=True):
    """The objects as pinned (apiVersion, kind, metadata, spec), and what status says about them."""

    instancetype: Object | None = None
    preference: Object | None = None
    references: Object = {}

    @staticmethod
    def recorded(vm: Object) -> Pins:
        """No objects, only the references that the status holds already."""
        status = status_of(vm)
        return Pins(references={k: status[k] for k in ("instancetypeRef", "preferenceRef") if k in status})


async def resolve_pins(client: Client, revisions: Informer, vm: Object) -> tuple[Pins, Failure | None]:
    """Read the pinned objects, making pins that are missing. With a failure, what could be had is returned too."""
    found: dict[str, Object | None] = {}
    references: Object = {}
    failure: Failure | None = None
    for field in ("instancetype", "preference"):
        matcher = spec_of(vm).get(field)
        if not matcher or not matcher.get("name"):
            continue
        try:
            revision = await _revision(client, revisions, vm, field)
        except LookupError as error:
            failure = failure or Failure("FailedCreate", str(error.args[0]))
            continue
        found[field] = revision.get("data")
        reference: Object = {
            "name": matcher["name"],
            "kind": build.canonical_kind(matcher.get("kind") or build.CLUSTER_KINDS[field]),
            "controllerRevisionRef": {"name": revision["metadata"]["name"]},
        }
        for key in ("inferFromVolume", "inferFromVolumeFailurePolicy"):
            if matcher.get(key):
                reference[key] = matcher[key]
        references[f"{field}Ref"] = reference
    return Pins(found.get("instancetype"), found.get("preference"), references), failure


async def _revision(client: Client, revisions: Informer, vm: Object, field: str) -> Object:
    """The ControllerRevision to use. Raises LookupError with a sentence for the user."""
    namespace, matcher = vm["metadata"]["namespace"], spec_of(vm)[field]
    kind = build.canonical_kind(matcher.get("kind") or build.CLUSTER_KINDS[field])
    pinned = status_of(vm).get(f"{field}Ref") or {}
    same = pinned.get("name") == matcher["name"] and pinned.get("kind") == kind
    name = matcher.get("revisionName") or (same and (pinned.get("controllerRevisionRef") or {}).get("name"))
    if name:
        revision = revisions.get(namespace, name) or await read(client, CONTROLLER_REVISION, namespace, name)
        if revision is not None:
            return revision
        if matcher.get("revisionName"):
            raise LookupError(f'ControllerRevision {namespace}/{name} of {field} "{matcher["name"]}" not found')
    resource = next((r for r in _SOURCES[field] if r.kind == kind), None)
    if resource is None:
        raise LookupError(f"got unexpected kind in {field.capitalize()}Matcher: {matcher.get('kind')}")
    source = await read(client, resource, namespace if resource.namespaced else None, matcher["name"])
    if source is None:
        raise LookupError(f'{resource.plural}.{resource.group} "{matcher["name"]}" not found')
    source = {**source, "apiVersion": resource.api_version, "kind": resource.kind}
    made = build.pin_revision(vm, source)
    if not await create_if_absent(client, CONTROLLER_REVISION, made):
        kept = await read(client, CONTROLLER_REVISION, namespace, made["metadata"]["name"])
        return kept or made
    return made
