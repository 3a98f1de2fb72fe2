"""What the paths of a definition's `scale` mean for an object: counts that can be read, within bounds.

Called by `verbs` for every write of a kind with a scale, and by `scale`. Pure. Texts follow a recorded kube-apiserver.
"""

from __future__ import annotations

from typing import Any

from stead.kinds.resource import Resource
from stead.kube import meta
from stead.kube.errors import cause

Object = dict[str, Any]
Causes = list[dict[str, str]]

_MAX = 2**31 - 1
_GO_NAMES = {str: "string", int: "int64", float: "float64", bool: "bool", list: "[]interface {}"}


def accessor_causes(resource: Resource, obj: Object) -> Causes:
    """Causes for an object from which the replica counts cannot be read."""
    causes: Causes = []
    for path in (resource.scale or ())[:2]:
        value: Any = obj
        for step in steps_of(path)[:-1]:
            value = value.get(step)
            if value is None:
                break
            if not isinstance(value, dict):
                shown = "[]" if value == [] else meta.scalar_text(value)
                kind = _GO_NAMES.get(type(value), "string")
                text = f"Invalid value: 0: {path} accessor error: {shown} is of the type {kind}, "
                causes.append(cause(path, f"{text}expected map[string]interface{{}}"))
                break
        else:
            last = value.get(steps_of(path)[-1]) if isinstance(value, dict) else None
            causes += _count_causes(path, last)
    return causes


def _count_causes(path: str, value: Any) -> Causes:
    if value is None:
        return []
    if not isinstance(value, int) or isinstance(value, bool):
        shown = "[]" if value == [] else meta.scalar_text(value)
        kind = _GO_NAMES.get(type(value), "map[string]interface {}")
        return [cause(path, f"Invalid value: 0: {path} accessor error: {shown} is of the type {kind}, expected int64")]
    if value < 0:
        return [cause(path, f"Invalid value: {value}: should be a non-negative integer")]
    if value > _MAX:
        return [cause(path, f"Invalid value: {value}: should be less than or equal to {_MAX}")]
    return []


def steps_of(path: str) -> list[str]:
    """The fields of a simple path."""
    return [step for step in path.split(".") if step]
