"""Rules about instancetypes and preferences, and about the machines that use them.

The objects themselves need little: the schema does most. A machine is refused when its template sets what its
instancetype sets, or when it does not meet what its preference requires. Texts are KubeVirt's (`pkg/instancetype`,
recordings `vm-instancetype-*`, `vm-requirements-*`, `preference-*`). Pure.
"""

from __future__ import annotations

from stead.kinds import apply_instancetype
from stead.server.admission.contract import Json
from stead.server.admission.findings import NOT_FOUND, Findings

_TOPOLOGIES = ("sockets", "cores", "threads", "spread", "any")
#: names that older preferences use
_RENAMED_TOPOLOGIES = {
    "preferSockets": "sockets", "preferCores": "cores", "preferThreads": "threads", "preferSpread": "spread",
    "preferAny": "any",
}  # fmt: skip
_SPREADS = ("SocketsCores", "CoresThreads", "SocketsCoresThreads")


def check_preference(spec: Json, findings: Findings) -> None:
    """A preference: its CPU topology is a known one."""
    cpu: Json = spec.get("cpu") or {}
    topology = cpu.get("preferredCPUTopology")
    if topology is not None and topology not in _TOPOLOGIES and topology not in _RENAMED_TOPOLOGIES:
        findings.add("spec.cpu.preferredCPUTopology", f"unknown preferredCPUTopology {topology}")
    options: Json = cpu.get("spreadOptions") or {}
    across = options.get("across")
    if across is not None and across not in _SPREADS:
        findings.add("spec.cpu.spreadOptions.across", f"across {across} is not supported")
    if across == "CoresThreads" and options.get("ratio") not in (None, 2):
        text = "only a ratio of 2 (1 core 2 threads) is allowed when spreading vCPUs over cores and threads"
        findings.add("spec.cpu.spreadOptions.ratio", text)


def warnings_of_preference(spec: Json) -> list[str]:
    """Deprecated topology names."""
    topology = (spec.get("cpu") or {}).get("preferredCPUTopology")
    renamed = _RENAMED_TOPOLOGIES.get(topology or "")
    if renamed is None:
        return []
    return [
        f"PreferredCPUTopology {topology} is deprecated for removal in a future release, please use {renamed} instead"
    ]


def applied(machine_template: Json, instancetype: Json | None, preference: Json | None) -> tuple[Json, list[str]]:
    """A machine's template with both applied, and the full paths of the fields that contradict them.

    `instancetype` and `preference` are whole objects. On conflict the spec is returned as it was.
    """
    type_spec, preference_spec = (instancetype or {}).get("spec"), (preference or {}).get("spec")
    spec, conflicts = apply_instancetype.apply(machine_template.get("spec") or {}, type_spec, preference_spec)
    metadata: Json = machine_template.get("metadata") or {}
    annotations, clashes = apply_instancetype.apply_annotations(metadata.get("annotations"), type_spec, preference_spec)
    made = {**machine_template, "spec": spec}
    if annotations:
        made["metadata"] = {**metadata, "annotations": annotations}
    return made, [str(path) for path in (*conflicts, *clashes)]


def check_conflicts(conflicts: list[str], findings: Findings) -> None:
    """One cause for each field that the template and the instancetype both set."""
    for path in conflicts:
        findings.add(path, f"VM field(s) {path} conflicts with selected instance type")


def check_requirements(spec: Json, instancetype: Json | None, preference: Json | None, findings: Findings) -> None:
    """What the preference requires of CPU, memory and architecture; the first thing short is named.

    `spec` is the template's spec before anything was applied to it.
    """
    unmet = apply_instancetype.requirements_error(
        spec, (instancetype or {}).get("spec"), (preference or {}).get("spec")
    )
    if unmet is not None:
        for field in unmet.fields:
            findings.add(field, f"failure checking preference requirements: {unmet.message}", NOT_FOUND)
        return
    spread = apply_instancetype.spread_error((instancetype or {}).get("spec"), (preference or {}).get("spec"))
    if spread:
        findings.add("spec.instancetype", spread)
