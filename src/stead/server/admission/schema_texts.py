"""What a machine's client reads when the schema refuses: the texts of KubeVirt's mutating webhooks.

In KubeVirt the mutators of VirtualMachine and VirtualMachineInstance check the object against their own OpenAPI
document before the API server's schema does, so their words are what clients know: causes without field or reason,
list indexes left out. A negative number where an unsigned one belongs fails in decoding, with 400. Called by `verbs`
with the causes of `kube.schema.validate`; pure. Source: recordings `reject-vm`, `reject-vmi-core`, `transport` (note
19).
"""

from __future__ import annotations

import re
from typing import Any

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError

Cause = dict[str, str]

_KINDS = (register.VIRTUAL_MACHINE.kind, register.VIRTUAL_MACHINE_INSTANCE.kind)
_INDEX = re.compile(r"\[\d+\]")
_TYPE = re.compile(r'(?P<path>\S+) in body must be of type (?P<wanted>\w+): "(?P<found>\w+)"$')
_LIST = re.compile(r"supported values: (?P<values>.*)$")
#: fields that the mutator's round trip fills with a zero value, so that a validator refuses them afterwards
_FILLED = re.compile(r"(\.ports\[\d+\]\.port|\.kernelBoot\.container\.image)$")
#: fields of Kubernetes' own types: the enums of KubeVirt's own the mutator leaves to the API server
_CHECKED_ENUMS = (".dnsPolicy",)
_UNSIGNED = ("cores", "sockets", "threads", "maxSockets")
#: what says only that other rules were not checked
_UNCHECKED = "some validation rules were not checked"


def refusal(resource: Resource, obj: dict[str, Any], causes: list[Cause]) -> tuple[ApiError | None, list[Cause]]:
    """(the mutator's refusal or None, causes that are left for the API server's own)."""
    if resource.kind not in _KINDS:
        return None, causes
    causes = [each for each in causes if not (_is_missing(each) and _FILLED.search(each["field"]))]
    if causes and all(_UNCHECKED in each["message"] for each in causes):
        causes = []
    negative = _negative(resource, obj)
    if negative:
        return ApiError("", f"json: cannot unmarshal number {negative} of type uint32", code=400), causes
    texts = list(dict.fromkeys(text for each in causes if (text := _text(each))))
    if not texts:
        return None, causes
    if obj.get("spec") is None:
        texts = ["spec in body is required", 'spec in body must be of type object: "null"']
    return ApiError("Invalid", ", ".join(texts), {"causes": [{"message": text} for text in texts]}), causes


def _negative(resource: Resource, obj: dict[str, Any]) -> str:
    """The first negative CPU count and the Go field that cannot hold it; "" if there is none."""
    spec, alias = obj.get("spec"), "VMISpecAlias."
    if resource.kind == register.VIRTUAL_MACHINE.kind:
        spec, alias = _inside(spec, "template", "spec"), "VMSpecAlias.template.spec."
    cpu = _inside(spec, "domain", "cpu")
    for name in _UNSIGNED:
        value = cpu.get(name)
        if isinstance(value, int) and value < 0:
            return f"{value} into Go struct field {alias}domain.cpu.{name}"
    return ""


def _inside(value: Any, *path: str) -> dict[str, Any]:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _is_missing(each: Cause) -> bool:
    return each.get("reason") == "FieldValueRequired"


def _text(each: Cause) -> str:
    """The mutator's words for a cause; "" where it has none."""
    path = _INDEX.sub("", each.get("field", ""))
    if _is_missing(each):
        return f"{path} in body is required"
    if (found := _LIST.search(each["message"])) and path.endswith(_CHECKED_ENUMS):
        values = " ".join(part.strip('" ') for part in found["values"].split(","))
        return f"{path} in body should be one of [{values}]"
    if found := _TYPE.search(each["message"]):
        wanted, actual = found["wanted"], found["found"]
        if wanted == "integer" and actual == "number":
            wanted, actual = "int64", "float64"
        actual = "number" if actual == "integer" else actual
        return f'{path} in body must be of type {wanted}: "{actual}"'
    return ""
