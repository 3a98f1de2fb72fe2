"""From an object's old state to its new one: what an update may change, and what stays the server's.

Called by `verbs` and `acceptance`. Pure. Follows C4, X1, X2 and Y1.
"""

from __future__ import annotations

from stead.kinds.resource import Resource
from stead.kube import meta
from stead.kube.errors import ApiError, cause, invalid
from stead.server.calls import Call
from stead.server.registry import Object

#: metadata that only the server writes
SERVER_FIELDS = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "generation",
)


def check_identity(call: Call, old: Object, new: Object, *, patch: bool) -> None:
    """What names an object does not change. Raises 409 for the uid of a PUT, else 422."""
    resource, stated, actual = call.resource, new["metadata"].get("uid"), old["metadata"].get("uid")
    causes = meta.identity_causes(old["metadata"], new["metadata"])
    if patch or not stated or stated == actual:
        if causes:
            # The original finds each of these twice.
            raise invalid(resource.kind, resource.group, call.name, [c for each in causes for c in (each, each)])
        return
    qualified = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
    kind = f"{resource.group}/{resource.plural}" if resource.group else resource.plural
    key = "/".join(filter(None, ("/registry", kind, call.namespace, call.name)))
    text = (
        f'Operation cannot be fulfilled on {qualified} "{call.name}": StorageError: invalid object, Code: 4, Key: '
        f"{key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {stated}, "
        f"UID in object meta: {actual}"
    )
    raise ApiError("Conflict", text, {"name": call.name, "group": resource.group, "kind": resource.plural})


def merged(call: Call, old: Object, new: Object) -> Object:
    """The new state: what the subresource may write from `new`, the rest and the server's own fields from `old`."""
    resource = call.resource
    kept = {field: old["metadata"][field] for field in SERVER_FIELDS if field in old["metadata"]}
    metadata = {key: value for key, value in new["metadata"].items() if key not in SERVER_FIELDS}
    metadata = {**metadata, **kept}
    metadata.pop("resourceVersion", None)
    metadata["resourceVersion"] = old["metadata"]["resourceVersion"]
    if call.subresource == "status":
        if resource.builtin:
            merged = {**old, "metadata": metadata}
        else:
            managed = {"managedFields": metadata["managedFields"]} if metadata.get("managedFields") else {}
            merged = {**old, "metadata": {**old["metadata"], **managed}}
        merged.pop("status", None)
        if "status" in new:
            merged["status"] = new["status"]
        return merged
    if call.subresource == "finalize":
        spec = {**(old.get("spec") or {}), "finalizers": (new.get("spec") or {}).get("finalizers") or []}
        if not spec["finalizers"]:
            del spec["finalizers"]
        return {**old, "spec": spec}
    merged = {**new, "metadata": metadata}
    if resource.status_subresource:
        merged.pop("status", None)
        if "status" in old:
            merged["status"] = old["status"]
    return merged


def with_generation(resource: Resource, old: Object, obj: Object) -> Object:
    """generation + 1 when anything but metadata (and status, where that is a subresource) changed."""
    if not resource.has_generation:
        return obj
    ignored = {"metadata", "status"} if resource.status_subresource else {"metadata"}
    before = {key: value for key, value in old.items() if key not in ignored}
    after = {key: value for key, value in obj.items() if key not in ignored}
    if before == after:
        return obj
    generation = int(old["metadata"].get("generation", 0)) + 1
    return {**obj, "metadata": {**obj["metadata"], "generation": generation}}


def check_finalizers(resource: Resource, old: Object, obj: Object) -> None:
    """No new finalizer on an object that is being deleted."""
    if not old["metadata"].get("deletionTimestamp"):
        return
    known = set(old["metadata"].get("finalizers") or [])
    added = [name for name in obj["metadata"].get("finalizers") or [] if name not in known]
    if added:
        shown = "[]string{" + ", ".join(meta.go_quote(name) for name in added) + "}"
        text = f"Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {shown}"
        found = [cause("metadata.finalizers", text, "FieldValueForbidden")] * 2
        raise invalid(resource.kind, resource.group, obj["metadata"]["name"], found)


def check_name(call: Call, old: Object, obj: Object) -> None:
    """A name stays. Raises 422."""
    if obj["metadata"].get("name") != old["metadata"].get("name"):
        text = f"Invalid value: {meta.go_quote(obj['metadata'].get('name', ''))}: field is immutable"
        found = [cause("metadata.name", text)]
        raise invalid(call.resource.kind, call.resource.group, call.name, found)
