"""From a PATCH body to a new object, and the managed fields that a write leaves behind.

Called by `app` (decoding patches) and `verbs`. Pure; the algorithms stand in `kube.patch` and `kube.apply`. Follows
P1 to P5 and A1 to A5.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stead.kinds.resource import Resource
from stead.kube import apply as apply_patch
from stead.kube import meta, patch
from stead.kube.errors import ApiError, cause, invalid
from stead.kube.validation import has_number_for_text
from stead.server.calls import Call
from stead.server.catalogue import Served
from stead.server.registry import Object

_CUSTOM_TYPES = (patch.JSON_PATCH, patch.MERGE_PATCH, patch.APPLY_PATCH)


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded patch. `resource_version` is the version that the patch itself insists on, or ""."""

    type: str
    operations: Any
    duplicates: tuple[str, ...] = ()
    resource_version: str = ""

    def applied_to(self, served: Served, old: Object) -> Object:
        """The patched object. Raises 422."""
        new: Object
        if self.type == patch.JSON_PATCH:
            new = patch.json_patch(old, self.operations)
        elif self.type == patch.MERGE_PATCH:
            new = patch.merge_patch(old, self.operations)
        else:
            new = patch.strategic_merge_patch(old, self.operations, served.schema)
            if served.resource.builtin and has_number_for_text(served.schema, new):
                value = f'Invalid value: "{patch.go_map(self.operations)}": cannot convert int64 to string'
                causes = [cause("patch", value, "FieldValueInvalid")]
                raise ApiError("Invalid", f' "" is invalid: patch: {value}', {"causes": causes})
        return new


def check_type(resource: Resource, content_type: str) -> str:
    """The patch type of a request. Raises 415 where the kind does not take it."""
    kind = content_type.partition(";")[0].strip().lower()
    allowed = [*_CUSTOM_TYPES, patch.STRATEGIC_MERGE_PATCH] if resource.builtin else list(_CUSTOM_TYPES)
    if kind not in allowed:
        listed = ", ".join(allowed)
        text = f"the body of the request was in an unknown format - accepted media types include: {listed}"
        raise ApiError("UnsupportedMediaType", text)
    return kind


def change_from(kind: str, body: bytes) -> Change:
    """Decode a JSON, merge or strategic merge patch. Raises 400, 413 and 422."""
    if kind == patch.JSON_PATCH:
        operations, unknown = patch.decode_json_patch(body)
        return Change(type=kind, operations=operations, duplicates=tuple(unknown))
    merge, duplicates = patch.decode_merge_patch(body, strategic=kind == patch.STRATEGIC_MERGE_PATCH)
    metadata = merge.get("metadata") if isinstance(merge, dict) else None
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    return Change(
        type=kind, operations=merge, duplicates=tuple(duplicates), resource_version=str(version) if version else ""
    )


def check_patch_options(call: Call, kind: str) -> None:
    """`force` belongs to apply only, which needs a field manager. Raises 422."""
    causes = []
    if kind == patch.APPLY_PATCH:
        if not call.options.manager_given:
            text = "Required value: is required for apply patch"
            causes.append(cause("fieldManager", text, "FieldValueRequired"))
    elif call.options.force is not None:
        text = "Forbidden: may not be specified for non-apply patch"
        causes.append(cause("force", text, "FieldValueForbidden"))
    if causes:
        raise invalid("PatchOptions", "meta.k8s.io", "", causes)


def check_applied(call: Call, applied: Object) -> None:
    """An applied configuration must say what it is. Raises 400."""
    stated, kind = applied.get("apiVersion") or "", applied.get("kind") or ""
    if stated != call.api_version or kind != call.resource.kind:
        named = stated if "/" in stated else f"/{stated}"
        raise ApiError("BadRequest", f"invalid object type: {named}, Kind={kind}")
    if not isinstance(applied.get("metadata"), dict) or not applied["metadata"].get("name"):
        text = f"the name of the object ({call.name} based on URL) was undeterminable: name must be provided"
        raise ApiError("BadRequest", text)


def _writer(served: Served, call: Call) -> apply_patch.Writer:
    """Who writes, and which top-level fields this endpoint leaves alone."""
    ignored: tuple[str, ...] = ()
    if served.resource.status_subresource and not call.subresource:
        ignored = ("status",)
    elif call.subresource == "status":
        ignored = tuple(name for name in served.schema.get("properties", {}) if name not in ("metadata", "status"))
    return apply_patch.Writer(
        manager=call.options.manager, api_version=call.api_version, time=meta.now(), subresource=call.subresource,
        ignored=ignored, force=bool(call.options.force),
    )  # fmt: skip


def track(served: Served, call: Call, old: Object | None, new: Object) -> Object:
    """`new` with the managed fields that this write leaves."""
    return apply_patch.track_update(served.schema, old, new, _writer(served, call))


def apply(served: Served, call: Call, live: Object | None, applied: Object) -> Object:
    """Server-side apply. Raises 400 and 409."""
    return apply_patch.apply(served.schema, live, applied, _writer(served, call))


def same(old: Object, new: Object) -> bool:
    """Whether two states are equal but for resourceVersion and the times in managed fields."""
    return _comparable(old) == _comparable(new)


def _comparable(obj: Object) -> Object:
    metadata = {key: value for key, value in obj["metadata"].items() if key != "resourceVersion"}
    managed = metadata.get("managedFields")
    if managed:
        metadata["managedFields"] = [{k: v for k, v in entry.items() if k != "time"} for entry in managed]
    else:
        metadata.pop("managedFields", None)
    return {**obj, "metadata": metadata}
