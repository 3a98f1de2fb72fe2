"""Rules about clones and exports of machines.

Texts and codes are KubeVirt's (`vmclone-admitter`, `vmexport-admitter`; notes 6.68-6.69, recordings `clone-*`,
`export-*`). Where KubeVirt's own webhook breaks down (no source, an empty filter) the answer is a plain 422. Pure but
for the name that a target without one gets.
"""

from __future__ import annotations

import copy
import re
import secrets

import msgspec

from stead.server.admission.contract import Json, Lookup
from stead.server.admission.findings import REQUIRED, Findings, bad_request
from stead.server.admission.rules_snapshot import check_duration, check_unchanged, untouchable

#: what Kubernetes' generated names are made of
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_MAC = re.compile(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}([:-][0-9A-Fa-f]{2}){0,2}")
_SOURCES = ("VirtualMachine", "VirtualMachineSnapshot")
#: the group that each exported kind must be named with, and how a refusal calls it
_EXPORTED = {
    "PersistentVolumeClaim": ("", "PVC"),
    "VirtualMachine": ("kubevirt.io", "VM"),
    "VirtualMachineSnapshot": ("snapshot.kubevirt.io", "VMSnapshot"),
    "VirtualMachineBackup": ("backup.kubevirt.io", "VMBackup"),
}


def clone_with_defaults(clone: Json) -> Json:
    """A clone with a target."""
    made = copy.deepcopy(clone)
    spec: Json = made.setdefault("spec", {})
    source: Json = spec.get("source") or {}
    if not source:
        return made
    target: Json = spec.get("target") or {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": ""}
    if not target.get("name"):
        suffix = "".join(secrets.choice(_ALPHABET) for _ in range(5))
        target["name"] = f"clone-{source.get('name', '')}-{suffix}"
    spec["target"] = target
    spec.setdefault("template", {})
    return made


def check_clone(clone: Json, old: Json | None, lookup: Lookup, findings: Findings) -> None:
    """A VirtualMachineClone, as defaulted."""
    if "Snapshot" not in lookup.gates():
        raise bad_request("snapshot feature gate is not enabled")
    if old is not None:
        return
    spec: Json = clone.get("spec") or {}
    source, target = spec.get("source"), spec.get("target") or {}
    if not source:
        findings.add("spec.source", "Source cannot be nil")
        return
    if source.get("kind") not in _SOURCES:
        findings.add("spec.source.kind", "Source kind is not supported")
    if target.get("kind") != "VirtualMachine":
        findings.add("spec.target.kind", "Target kind is not supported")
    if source.get("kind") == target.get("kind") and source.get("name") == target.get("name"):
        text = "Target name cannot be equal to source name when both are VirtualMachines"
        findings.add("spec.target.name", text)
    _check_filters("spec.annotations", spec.get("annotationFilters") or (), findings)
    _check_filters("spec.labels", spec.get("labelFilters") or (), findings)
    template: Json = spec.get("template") or {}
    _check_filters("spec.template.annotations", template.get("annotationFilters") or (), findings)
    _check_filters("spec.template.labels", template.get("labelFilters") or (), findings)
    for interface, mac in (spec.get("newMacAddresses") or {}).items():
        if not _MAC.fullmatch(mac):
            findings.add("spec.newMacAddresses", f"interface {interface} has malformed MAC address ({mac}).")
    for index, patch in enumerate(spec.get("patches") or ()):
        try:
            step = msgspec.json.decode(patch)
        except msgspec.DecodeError:
            findings.add(f"spec.patches[{index}]", f"patch is not valid JSON ({patch})")
            continue
        if word := untouchable(step if isinstance(step, dict) else {"value": step}):
            findings.add(f"spec.patches[{index}]", f"a patch may not touch {word}: change the machine itself")


def _check_filters(field: str, filters: list[str] | tuple[()], findings: Findings) -> None:
    for found in filters:
        what = f"{field} filter {found} is invalid:"
        if not found or found == "!":
            findings.add(field, f"{what} cannot be empty")
        elif "!" in found[1:]:
            text = "cannot contain a negation character (!); FilterRules: NegationChar can be only used at"
            findings.add(field, f"{what} {text} the beginning of the filter")
        elif "*" in found[:-1]:
            text = "cannot contain a wildcard character (*); FilterRules: WildcardChar can be only at"
            findings.add(field, f"{what} {text} the end of the filter")


def check_export(export: Json, old: Json | None, findings: Findings) -> None:
    """A VirtualMachineExport on creation, or on update against `old`."""
    spec: Json = export.get("spec") or {}
    check_duration(spec.get("ttlDuration"))
    if old is not None:
        check_unchanged(export, old, findings)
        return
    source: Json = spec.get("source") or {}
    known = _EXPORTED.get(str(source.get("kind")))
    if known is None:
        findings.add("spec.source.kind", "invalid kind")
        return
    group, short = known
    if (source.get("apiGroup") or "") not in (group, group if group else "v1"):
        findings.add("spec.source.APIGroup", f"{short} API group must be {group}")
    if not source.get("name"):
        findings.add("spec.source.name", f"{short} name must not be empty", REQUIRED)
