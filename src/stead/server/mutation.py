"""From a PATCH body to a new object, and the managed fields that a write leaves behind.

Called by `app` (decoding patches) and `verbs`. Pure; the algorithms stand in `kube.patch` and `kube.apply`. Follows
P1 to P5 and A1 to A5.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from stead.kinds import register
from stead.kinds.events import GROUP as EVENTS_GROUP
from stead.kinds.resource import Resource
from stead.kube import apply as apply_patch
from stead.kube import meta, patch
from stead.kube.errors import ApiError, cause, invalid
from stead.kube.validation import restore_error
from stead.kube.yamltext import repeated_fields
from stead.server import typed
from stead.server.calls import Call
from stead.server.catalogue import Served
from stead.server.registry import Object

_CUSTOM_TYPES = (patch.JSON_PATCH, patch.MERGE_PATCH, patch.APPLY_PATCH)


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded patch. `resource_version` is the version that the patch itself insists on, or ""."""

    type: str
    operations: Any
    #: what is wrong with the patch itself, for fieldValidation
    problems: list[str] = []
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
            self._check_restored(served, new)
        return new

    def _check_restored(self, served: Served, new: Object) -> None:
        """A strategic merge is put back into Go's types. Raises 422 in the words of that."""
        if not served.resource.builtin:
            return
        why = restore_error(served.schema, new)
        if not why:
            try:
                typed.as_typed(served.resource, new)
            except ApiError as error:
                why = f"error decoding from json: {error.message.partition(' cannot be handled as a ')[2]}"
                why = why.replace(f"{served.resource.kind}: ", "", 1)
        if why:
            raise bad_patch(patch.go_map(self.operations), why)


def check_type(resource: Resource, content_type: str) -> str:
    """The patch type of a request. Raises 415 where the kind does not take it."""
    kind = content_type.partition(";")[0].strip().lower()
    allowed = [*_CUSTOM_TYPES, patch.STRATEGIC_MERGE_PATCH] if resource.builtin else list(_CUSTOM_TYPES)
    if kind not in allowed:
        if resource.builtin:
            raise ApiError("UnsupportedMediaType", "415: Unsupported Media Type", {})
        listed = ", ".join(allowed)
        text = f"the body of the request was in an unknown format - accepted media types include: {listed}"
        raise ApiError("UnsupportedMediaType", text)
    return kind


def change_from(kind: str, body: bytes) -> Change:
    """Decode a JSON, merge or strategic merge patch. Raises 400, 413 and 422."""
    if kind == patch.JSON_PATCH:
        operations, unknown = patch.decode_json_patch(body)
        return Change(type=kind, operations=operations, problems=[f'json patch unknown field "{p}"' for p in unknown])
    merge, duplicates = patch.decode_merge_patch(body, strategic=kind == patch.STRATEGIC_MERGE_PATCH)
    metadata = merge.get("metadata") if isinstance(merge, dict) else None
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    return Change(
        type=kind,
        operations=merge,
        problems=repeated_fields(duplicates),
        resource_version=str(version) if version else "",
    )


def told(problems: Sequence[str]) -> str:
    """Problems of a body in one text: those of YAML come first, under the words of its reader."""
    lines = [problem for problem in problems if problem.startswith("line ")]
    rest = [problem for problem in problems if problem not in lines]
    return ", ".join([*(["\n  ".join(["yaml: unmarshal errors:", *lines])] if lines else []), *rest])


def bad_patch(value: str, why: str) -> ApiError:
    """422 for a patch whose result is no object of its kind; `value` is the result, or the patch."""
    causes = [cause("patch", f"Invalid value: {meta.go_quote(value)}: {why}")]
    return ApiError("Invalid", f' "" is invalid: patch: {causes[0]["message"]}', {"causes": causes})


def identified(call: Call, new: Any, warnings: list[str]) -> Object:
    """A patched object that still says what it is, and which. Raises 400 and 422."""
    if not isinstance(new, dict) or not isinstance(new.get("metadata") or {}, dict):
        raise ApiError("Invalid", "the server rejected our request due to an error in our request", {})
    resource, stated, kind = call.resource, new.get("apiVersion"), new.get("kind")
    other_version = bool(stated) and stated not in (call.api_version, resource.api_version)
    if (other_version or (kind and kind != resource.kind)) and resource.group != EVENTS_GROUP:
        raise _other_kind(call, new, warnings) if not resource.builtin else _other_builtin(call, new)
    metadata: Object = new.get("metadata") or {}
    if not metadata.get("name"):
        text = f"the name of the object ({call.name} based on URL) was undeterminable: name must be provided"
        raise ApiError("BadRequest", text)
    return new


def _other_kind(call: Call, new: Object, warnings: list[str]) -> ApiError:
    resource, stated, kind = call.resource, str(new.get("apiVersion") or ""), str(new.get("kind") or "")
    causes = []
    if kind != resource.kind:
        causes.append(cause("kind", f"Invalid value: {meta.go_quote(kind)}: must be {resource.kind}"))
    if stated != call.api_version:
        causes.append(cause("apiVersion", f"Invalid value: {meta.go_quote(stated)}: must be {call.api_version}"))
    group, version = meta.split_api_version(stated, strict=False)
    if version not in (call.version, resource.version):
        # A version without a schema knows no field.
        warnings += [f'unknown field "{k}"' for k in sorted(new) if k not in ("apiVersion", "kind", "metadata")]
    return invalid(kind, group, call.name, causes)


def _other_builtin(call: Call, new: Object) -> ApiError:
    stated, kind = str(new.get("apiVersion") or call.api_version), str(new.get("kind") or call.resource.kind)
    if any(r.builtin and r.kind == kind and r.api_version == stated for r in register.ALL):
        version, package = stated.rpartition("/")[2], (call.resource.group or "core").partition(".")[0]
        why = f"converting ({version}.{kind}) to ({package}.{call.resource.kind}): unknown conversion"
    else:
        why = f'no kind "{kind}" is registered for version "{stated}" in scheme "pkg/api/legacyscheme/scheme.go:30"'
    return bad_patch(shown(call.resource, new), why)


#: the fields of ObjectMeta in the order in which Go prints them
_METADATA_ORDER = (
    "name", "generateName", "namespace", "selfLink", "uid", "resourceVersion", "generation", "creationTimestamp",
    "deletionTimestamp", "deletionGracePeriodSeconds", "labels", "annotations", "ownerReferences", "finalizers",
    "managedFields",
)  # fmt: skip
_MANAGED_ORDER = ("manager", "operation", "apiVersion", "time", "fieldsType", "fieldsV1", "subresource")


def shown(resource: Resource, obj: Object) -> str:
    """An object as messages quote it: keys sorted, but for the metadata of built-in kinds."""
    ordered = _sorted(obj)
    if resource.builtin and isinstance(ordered.get("metadata"), dict):
        metadata = _in_order(ordered["metadata"], _METADATA_ORDER)
        if metadata.get("managedFields"):
            metadata["managedFields"] = [_in_order(entry, _MANAGED_ORDER) for entry in metadata["managedFields"]]
        ordered["metadata"] = metadata
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _in_order(value: Object, order: tuple[str, ...]) -> Object:
    return {key: value[key] for key in (*order, *sorted(set(value) - set(order))) if key in value}


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


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
