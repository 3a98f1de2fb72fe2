"""Objects of kinds that definitions added, between what is stored and what is seen.

A definition changes while its instances stay as they were written; so a read prunes, defaults and names the version
anew (conversion `None`: only apiVersion changes). Called by `shapes` for answers and by `verbs` for the old state of a
write. Also ratcheting: an update is not refused for a value that it leaves alone. Pure.
"""

from __future__ import annotations

import re
from typing import Any

from stead.kinds.resource import Resource
from stead.kube import schema
from stead.kube.errors import ApiError

Object = dict[str, Any]
Causes = list[dict[str, str]]

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_MISSING: Any = object()


def check_creatable(resource: Resource) -> None:
    """Nothing is created, by whatever verb, while the definition of the kind goes away. Raises 405."""
    if resource.edition and "create" not in resource.verbs:
        text = "create not allowed while custom resource definition is terminating"
        raise ApiError("MethodNotAllowed", text, {"group": resource.group, "kind": resource.plural})


def as_defined(resource: Resource, obj: Object, version: str = "") -> Object:
    """A stored object as its definition has it today, in `version` (default: the storage version)."""
    pruned, _ = schema.prune(resource.struct, obj)
    current: Object = schema.default(resource.struct, pruned)
    return {**current, "apiVersion": f"{resource.group}/{version or resource.version}"}


def ratchet(causes: Causes, old: Object, new: Object) -> tuple[Causes, list[str]]:
    """(causes that stand, warnings): what an update leaves as it was is warned of, not refused."""
    kept: Causes = []
    warnings: list[str] = []
    for each in causes:
        if each["field"] != "<nil>" and _untouched(each, old, new):
            warnings.append(f"{each['field']}: {each['message']}")
        else:
            kept.append(each)
    if all(each["field"] == "<nil>" for each in kept):
        kept = []
    return kept, warnings


def _untouched(each: dict[str, str], old: Object, new: Object) -> bool:
    path = [name or int(index) for name, index in _STEP.findall(each["field"])]
    if each.get("reason") == "FieldValueRequired":
        path = path[:-1]
    was, now = _at(old, path), _at(new, path)
    return bool(path) and was is not _MISSING and now is not _MISSING and was == now


def _at(value: Any, path: list[Any]) -> Any:
    for step in path:
        if (isinstance(value, dict) and step in value) or (
            isinstance(value, list) and isinstance(step, int) and step < len(value)
        ):
            value = value[step]
        else:
            return _MISSING
    return value
