"""Defaults and rules of CustomResourceDefinitions, and how their status follows from their spec.

Called by `core_rules` for every write and by `definitions`, which keeps the status true. Definitions of our own groups
stand for built-in kinds: only this server writes them, and they are taken as they are. Pure. Texts follow apiextensions
as recorded from kube-apiserver 1.36 (CR1, CR2); conversion by webhook is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from stead.kinds import register
from stead.kinds.foreign import condition_of, is_own_group, storage_version
from stead.kinds.resource import Resource
from stead.kube import meta
from stead.kube.errors import ApiError, cause
from stead.kube.structural_rules import check_structural
from stead.server.authn import User

Object = dict[str, Any]
Causes = list[dict[str, str]]

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
_COLUMN_FORMATS = ("byte", "date", "date-time", "double", "float", "int32", "int64", "password")
_PROTECTED = re.compile(r"(.*\.)?(k8s|kubernetes)\.io")
#: this server itself (rung 1)
CONTROLLER_NAME = "system:serviceaccount:kubevirt:kubevirt-controller"
_APPROVAL = "api-approved.kubernetes.io"


# --- defaults ---------------------------------------------------------------------------------------------------------


def prepare(obj: Object, old: Object | None) -> Object:
    """A definition with its defaults and the part of its status that follows from the spec alone."""
    spec = dict(obj.get("spec") or {})
    if is_own_group(str(spec.get("group"))):
        return obj
    names = dict(spec.get("names") or {})
    kind = str(names.get("kind") or "")
    if kind:
        names["singular"] = names.get("singular") or kind.lower()
        names["listKind"] = names.get("listKind") or f"{kind}List"
    spec["names"] = names
    spec["versions"] = _without_nulls(spec.get("versions") or [])
    spec.setdefault("conversion", {"strategy": "None"})
    if spec.get("preserveUnknownFields") is False:
        del spec["preserveUnknownFields"]
    status = dict((old or {}).get("status") or {"conditions": None, "acceptedNames": {"plural": "", "kind": ""}})
    stored, storage = list(status.get("storedVersions") or []), storage_version({"spec": spec})
    if storage and storage not in stored:
        stored.append(storage)
    status["storedVersions"] = stored
    return {**obj, "spec": spec, "status": status}


def _without_nulls(value: Any) -> Any:
    """A version in which null says nothing, as Go reads it; in an enum it is a value."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if item is not None}
        return {key: item if key == "enum" else _without_nulls(item) for key, item in kept.items()}
    return [_without_nulls(item) for item in value if item is not None] if isinstance(value, list) else value


# --- who may write ----------------------------------------------------------------------------------------------------


def check_writer(user: User, resource: Resource, definition: Object) -> None:
    """Definitions of our own kinds follow from the program: nobody else writes them. Raises 403."""
    if resource is not register.CUSTOM_RESOURCE_DEFINITION or user.name == CONTROLLER_NAME:
        return
    group, name = str((definition.get("spec") or {}).get("group")), definition["metadata"].get("name", "")
    if is_own_group(group):
        text = f"the kinds of {group} are built into Stead, their definitions cannot be written"
        raise ApiError(
            "Forbidden", f'customresourcedefinitions.apiextensions.k8s.io "{name}" is forbidden: {text}',
            {"name": name, "group": resource.group, "kind": resource.plural},
        )  # fmt: skip


# --- rules ------------------------------------------------------------------------------------------------------------


def check(obj: Object, old: Object | None) -> Causes:
    """Causes for what a definition may not say."""
    spec = obj.get("spec") or {}
    group, names = str(spec.get("group") or ""), spec.get("names") or {}
    if is_own_group(group):
        return []
    if old is not None and (changed := list(_changed(spec, old))):
        return changed
    causes: Causes = []
    name = obj["metadata"].get("name", "")
    if old is None and name != f"{names.get('plural', '')}.{group}":
        causes.append(_invalid("metadata.name", name, 'must be spec.names.plural+"."+spec.group'))
    causes += [*_group(group), *_scope(spec.get("scope")), *_versions(spec), *_names(names), *_conversion(spec)]
    causes += _approval(obj, group)
    causes += _stored_versions(obj)
    return causes


def _invalid(field: str, value: Any, text: str) -> dict[str, str]:
    return cause(field, f"Invalid value: {json.dumps(value, separators=(',', ':'))}: {text}")


def _required(field: str, text: str = "") -> dict[str, str]:
    return cause(field, f"Required value: {text}" if text else "Required value", "FieldValueRequired")


def _changed(spec: Object, old: Object) -> Iterator[dict[str, str]]:
    """What may not change once the kind is served."""
    if condition_of(old, "Established") != "True":
        return
    was = old["spec"]
    for field in ("group", "scope"):
        if spec.get(field) != was.get(field):
            yield _invalid(f"spec.{field}", spec.get(field), "field is immutable")
    for field in ("kind", "plural"):
        if spec["names"].get(field) != was["names"].get(field):
            yield _invalid(f"spec.names.{field}", spec["names"].get(field), "field is immutable")


def _group(group: str) -> Iterator[dict[str, str]]:
    if not group:
        yield _required("spec.group")
    elif errors := meta.subdomain_errors(group):
        for text in errors:
            yield _invalid("spec.group", group, text)
    elif "." not in group:
        yield _invalid("spec.group", group, "should be a domain with at least one dot")


def _scope(scope: Any) -> Iterator[dict[str, str]]:
    if not scope:
        yield _required("spec.scope")
    elif scope not in ("Cluster", "Namespaced"):
        text = f'Unsupported value: "{scope}": supported values: "Cluster", "Namespaced"'
        yield cause("spec.scope", text, "FieldValueNotSupported")


def _names(names: Object) -> Iterator[dict[str, str]]:
    for field in ("plural", "singular", "kind", "listKind"):
        value = str(names.get(field) or "")
        if not value:
            yield _required(f"spec.names.{field}")
        elif field in ("plural", "singular"):
            if not _is_label(value):
                yield _invalid(f"spec.names.{field}", value, _LABEL_TEXT)
        elif not _is_label(value.lower()):
            text = f"may have mixed case, but should otherwise match: {_LABEL_TEXT}"
            yield _invalid(f"spec.names.{field}", value, text)
    for field in ("shortNames", "categories"):
        for index, value in enumerate(names.get(field) or ()):
            if not _is_label(str(value)):
                yield _invalid(f"spec.names.{field}[{index}]", value, _LABEL_TEXT)
    if names.get("kind") and names.get("kind") == names.get("listKind"):
        yield _invalid("spec.names.listKind", names["listKind"], "kind and listKind may not be the same")


def _is_label(text: str) -> bool:
    return len(text) <= 63 and _LABEL.fullmatch(text) is not None


def _conversion(spec: Object) -> Iterator[dict[str, str]]:
    conversion = spec.get("conversion") or {}
    strategy, webhook = conversion.get("strategy"), conversion.get("webhook")
    webhook = webhook if isinstance(webhook, dict) else {}
    if not strategy:
        yield _required("spec.conversion.strategy")
    elif strategy not in ("None", "Webhook"):
        text = f'Unsupported value: "{strategy}": supported values: "None", "Webhook"'
        yield cause("spec.conversion.strategy", text, "FieldValueNotSupported")
    elif strategy == "None" and webhook:
        text = "Forbidden: should not be set when strategy is not set to Webhook"
        yield cause("spec.conversion.webhookClientConfig", text, "FieldValueForbidden")
    elif strategy == "Webhook":
        if not webhook.get("clientConfig"):
            yield _required("spec.conversion.webhookClientConfig", "required when strategy is set to Webhook")
        if not webhook.get("conversionReviewVersions"):
            yield _required("spec.conversion.conversionReviewVersions")
        elif webhook.get("clientConfig"):
            text = "Forbidden: Stead calls no webhooks: versions are converted by strategy None only"
            yield cause("spec.conversion.strategy", text, "FieldValueForbidden")


def _approval(obj: Object, group: str) -> Iterator[dict[str, str]]:
    field = f"metadata.annotations[{_APPROVAL}]"
    said = (obj["metadata"].get("annotations") or {}).get(_APPROVAL, "")
    if not _PROTECTED.fullmatch(group) or said.startswith(("unapproved", "http://", "https://")):
        return
    if said:
        text = f'protected groups must have approval annotation "{_APPROVAL}" with either a URL or a reason starting '
        yield _invalid(
            field, said, text + 'with "unapproved", see https://github.com/kubernetes/enhancements/pull/1111'
        )
    else:
        text = f'protected groups must have approval annotation "{_APPROVAL}", see '
        yield _required(field, text + "https://github.com/kubernetes/enhancements/pull/1111")


def _stored_versions(obj: Object) -> Iterator[dict[str, str]]:
    known = [version.get("name") for version in obj["spec"].get("versions") or ()]
    for index, name in enumerate((obj.get("status") or {}).get("storedVersions") or ()):
        if name not in known:
            text = (
                f"missing from spec.versions; {name} was previously a storage version, and must remain in "
                f"spec.versions until a storage migration ensures no data remains persisted in {name} and removes "
                f"{name} from status.storedVersions"
            )
            yield _invalid(f"status.storedVersions[{index}]", name, text)


# --- versions ---------------------------------------------------------------------------------------------------------


def _versions(spec: Object) -> Iterator[dict[str, str]]:
    versions = spec.get("versions") or []
    if spec.get("preserveUnknownFields"):
        text = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"
        yield _invalid("spec.preserveUnknownFields", True, text)
    names = [str(version.get("name") or "") for version in versions]
    for index, name in enumerate(names):
        if not _is_label(name):
            yield _invalid(f"spec.versions[{index}].name", name, _LABEL_TEXT)
    shown = [{"name": v.get("name"), "served": v.get("served"), "storage": v.get("storage")} for v in versions]
    if len(set(names)) != len(names):
        yield _invalid("spec.versions", shown, "must contain unique version names")
    if sum(bool(version.get("storage")) for version in versions) != 1:
        yield _invalid("spec.versions", shown, "must have exactly one version marked as storage version")
    # What all versions share stands at the top in the original's inner form, and its texts say so.
    shared = {field: all(v.get(field) == versions[0].get(field) for v in versions) for field in _PARTS}
    for index, version in enumerate(versions):
        for field, (inner, rule) in _PARTS.items():
            if shared[field] and index:
                continue
            place = f"spec.{inner}" if shared[field] else f"spec.versions[{index}].{field}"
            yield from rule(version, place)


def _schema(version: Object, path: str) -> Iterator[dict[str, str]]:
    found = (version.get("schema") or {}).get("openAPIV3Schema")
    if not isinstance(found, dict):
        yield _required(f"{path}.openAPIV3Schema", "schemas are required")
    else:
        yield from check_structural(found, f"{path}.openAPIV3Schema")


def _subresources(version: Object, path: str) -> Iterator[dict[str, str]]:
    scale = (version.get("subresources") or {}).get("scale")
    if not scale:
        return
    rules = (("specReplicasPath", ".spec"), ("statusReplicasPath", ".status"), ("labelSelectorPath", ""))
    for field, root in rules:
        value, place = str(scale.get(field) or ""), f"{path}.scale.{field}"
        if not value:
            if root:
                yield _required(place)
        elif trouble := _path_trouble(value):
            yield _invalid(place, value, trouble)
        elif root and not value.startswith(f"{root}."):
            yield _invalid(place, value, f"should be a json path under {root}")
        elif not root and not value.startswith((".spec.", ".status.")):
            yield _invalid(place, value, "should be a json path under either .spec or .status")


def _path_trouble(path: str) -> str:
    if not path.startswith("."):
        return "must be a simple json path starting with ."
    return ""


def _columns(version: Object, path: str) -> Iterator[dict[str, str]]:
    for index, column in enumerate(version.get("additionalPrinterColumns") or ()):
        place = f"{path}[{index}]"
        if not column.get("name"):
            yield _required(f"{place}.name")
        kind, form, where = column.get("type"), column.get("format"), str(column.get("jsonPath") or "")
        if not kind:
            yield _required(f"{place}.type", f"must be one of {','.join(_COLUMN_TYPES)}")
        elif kind not in _COLUMN_TYPES:
            yield _invalid(f"{place}.type", kind, f"must be one of {','.join(_COLUMN_TYPES)}")
        if form and form not in _COLUMN_FORMATS:
            yield _invalid(f"{place}.format", form, f"must be one of {','.join(_COLUMN_FORMATS)}")
        if not where:
            yield _required(f"{place}.JSONPath")
        elif trouble := _path_trouble(where):
            yield _invalid(f"{place}.JSONPath", where, trouble)


def _selectable(version: Object, path: str) -> Iterator[dict[str, str]]:
    schema = (version.get("schema") or {}).get("openAPIV3Schema") or {}
    seen: set[str] = set()
    for index, field in enumerate(version.get("selectableFields") or ()):
        where, place = str(field.get("jsonPath") or ""), f"{path}[{index}].jsonPath"
        found = _schema_at(schema, where)
        if not where:
            yield _required(place)
        elif where in seen:
            yield cause(place, f'Duplicate value: "{where}"', "FieldValueDuplicate")
        elif where.startswith(".metadata"):
            yield _invalid(place, where, "must not point to fields in metadata")
        elif found is None:
            yield _invalid(place, where, "is an invalid path: does not refer to a valid field")
        elif found.get("type") not in ("string", "boolean", "integer"):
            text = (
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats "
            )
            yield _invalid(place, where, text + "are allowed.")
        seen.add(where)


def _schema_at(schema: Object, path: str) -> Object | None:
    here: Any = schema
    for step in path.split(".")[1:]:
        properties = here.get("properties") if isinstance(here, dict) else None
        here = properties.get(step) if isinstance(properties, dict) else None
    return here if path.startswith(".") and isinstance(here, dict) else None


_PARTS: dict[str, tuple[str, Any]] = {
    "schema": ("validation", _schema),
    "subresources": ("subresources", _subresources),
    "additionalPrinterColumns": ("additionalPrinterColumns", _columns),
    "selectableFields": ("selectableFields", _selectable),
}
