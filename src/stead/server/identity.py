"""Who an object says that it is: apiVersion, kind, namespace and name, brought to agree with the URL of its request.

Called by `verbs` with every body before anything else looks at it. Pure. Follows C2 and the recorded refusals.
"""

from __future__ import annotations

from stead.kinds.events import GROUP as EVENTS_GROUP
from stead.kinds.events import core_from_events_v1
from stead.kube import meta, schema
from stead.kube.errors import ApiError
from stead.server.calls import Call
from stead.server.registry import Object


def own_identity(call: Call, obj: Object) -> Object:
    """The object under the stored version, names and namespace agreed with the URL; a fresh top and metadata."""
    resource = call.resource
    if resource.group == EVENTS_GROUP:
        obj = (
            core_from_events_v1(obj) if obj.get("apiVersion", call.api_version).startswith(EVENTS_GROUP) else dict(obj)
        )
        stored_version = "v1"
    else:
        stored_version = resource.api_version
        stated = obj.get("apiVersion") or call.api_version
        if stated not in (call.api_version, stored_version):
            expected = f"does not match the expected API version ({call.api_version})"
            raise ApiError("BadRequest", f"the API version in the data ({stated}) {expected}")
    kind = obj.get("kind") or resource.kind
    if kind != resource.kind:
        text = f"{kind} in version {meta.go_quote(call.version)} cannot be handled as a {resource.kind}"
        raise ApiError("BadRequest", text)
    metadata = obj.get("metadata")
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        text = (
            f'{resource.kind} in version "{call.version}" cannot be handled as a {resource.kind}: json: cannot '
            f"unmarshal {schema.type_of(metadata)} into Go struct field {resource.kind}.metadata of type "
            "v1.ObjectMeta"
        )
        raise ApiError("BadRequest", text)
    metadata = dict(metadata)
    if resource.namespaced:
        if metadata.get("namespace") in (None, ""):
            metadata["namespace"] = call.namespace
        elif metadata["namespace"] != call.namespace:
            text = "the namespace of the provided object does not match the namespace sent on the request"
            raise ApiError("BadRequest", text)
    else:
        metadata.pop("namespace", None)
    if call.name and metadata.get("name") and metadata["name"] != call.name:
        text = f"the name of the object ({metadata['name']}) does not match the name on the URL ({call.name})"
        raise ApiError("BadRequest", text)
    return {**obj, "apiVersion": stored_version, "kind": resource.kind, "metadata": metadata}


def seen(call: Call, obj: Object) -> Object:
    """A stored object as the caller's version shows it."""
    return {**obj, "apiVersion": call.api_version} if call.version != call.resource.version else obj
