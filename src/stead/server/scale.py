"""The subresource `scale` of kinds whose definition names the paths of replica counts.

Called by `app`. A Scale is read from the object, and a write of it becomes a write of the object's one field, with the
Scale's resourceVersion as its condition. Follows apiextensions' scale storage (U2).
"""

from __future__ import annotations

import datetime

from stead.kinds import columns
from stead.kinds.resource import Resource
from stead.kube import encoding, meta, patch
from stead.kube.errors import ApiError, cause, invalid
from stead.server import mutation, scale_rules
from stead.server.calls import Call, Outcome
from stead.server.registry import Object
from stead.server.verbs import Verbs


def scale_of(resource: Resource, obj: Object) -> Object:
    """The Scale of an object."""
    wanted, actual, selector = resource.scale or ("", "", "")
    metadata = obj["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    spec = {"replicas": value} if (value := _number_at(obj, wanted)) else {}
    status: Object = {"replicas": _number_at(obj, actual)}
    if selector and (text := meta.first_at(obj, selector)):
        status["selector"] = str(text)
    return {
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {name: metadata[name] for name in kept if name in metadata}, "spec": spec, "status": status,
    }  # fmt: skip


def table_of(scale: Object) -> Object:
    """A Scale as `kubectl get --subresource=scale` prints it."""
    metadata = scale["metadata"]
    now = datetime.datetime.now(datetime.UTC)
    age = columns.human_duration((now - meta.parse_time(metadata["creationTimestamp"])).total_seconds())
    counts = [scale["spec"].get("replicas", 0), scale["status"]["replicas"]]
    kinds = (
        ("Name", "string", "name"),
        ("Desired", "integer", ""),
        ("Available", "integer", ""),
        ("Age", "string", ""),
    )
    partial = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
    return {
        "kind": "Table", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": metadata.get("resourceVersion", "")},
        "columnDefinitions": [
            {"name": name, "type": kind, "format": form, "description": name, "priority": 0}
            for name, kind, form in kinds
        ],
        "rows": [{"cells": [metadata["name"], *counts, age], "object": partial}],
    }  # fmt: skip


def _number_at(obj: Object, path: str) -> int:
    value = meta.first_at(obj, path)
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0


async def update(verbs: Verbs, call: Call, scale: Object) -> Outcome:
    """Write the replica count of a Scale. Raises 400, 404, 409 and 422."""
    resource, paths = call.resource, call.resource.scale
    if paths is None:
        raise ApiError("NotFound", "the server could not find the requested resource", {})
    check_scale(call, scale)
    replicas = int((scale.get("spec") or {}).get("replicas") or 0)
    current = verbs.get(resource, call.namespace, call.name).obj
    steps: list[Object] = [{"op": "add", "path": "/" + "/".join(scale_rules.steps_of(paths[0])), "value": replicas}]
    for depth in range(1, len(scale_rules.steps_of(paths[0]))):
        above = scale_rules.steps_of(paths[0])[:depth]
        if meta.first_at(current, "." + ".".join(above)) is None:
            steps.insert(depth - 1, {"op": "add", "path": "/" + "/".join(above), "value": {}})
    version = str((scale.get("metadata") or {}).get("resourceVersion") or "")
    change = mutation.Change(type=patch.JSON_PATCH, operations=steps, resource_version=version)
    return await verbs.patch(call, change)


def patched(kind: str, body: bytes, current: Object) -> Object:
    """A Scale after a patch of it. Raises 400, 415 and 422."""
    if kind == patch.APPLY_PATCH:
        return {**current, **encoding.decode_object(body, "application/yaml", "Scale").value}
    change = mutation.change_from(kind, body)
    new = patch.json_patch if kind == patch.JSON_PATCH else patch.merge_patch
    found: Object = new(current, change.operations)
    if not change.resource_version and kind != patch.JSON_PATCH:
        found = {**found, "metadata": {k: v for k, v in found["metadata"].items() if k != "resourceVersion"}}
    return found


def check_scale(call: Call, scale: Object) -> None:
    """Refuse a body that is no Scale of this object. Raises 400 and 422."""
    if scale.get("kind", "Scale") != "Scale" or scale.get("apiVersion", "autoscaling/v1") != "autoscaling/v1":
        text = f"wrong object passed to Scale update: {scale.get('apiVersion')}, Kind={scale.get('kind')}"
        raise ApiError("BadRequest", text)
    metadata = scale.get("metadata") or {}
    if metadata.get("name", call.name) != call.name:
        text = f"the name of the object ({metadata['name']}) does not match the name on the URL ({call.name})"
        raise ApiError("BadRequest", text)
    replicas = (scale.get("spec") or {}).get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool):
        raise ApiError("BadRequest", 'Scale in version "v1" cannot be handled as a Scale: spec.replicas is no integer')
    if replicas < 0:
        text = f"Invalid value: {replicas}: must be greater than or equal to 0"
        raise invalid("Scale", "autoscaling", call.name, [cause("spec.replicas", text)])
