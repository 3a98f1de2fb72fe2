"""What a VirtualMachine must be, on creation and on update.

The template is checked as the instance that it would become: with its instancetype and preference applied and the
shared defaults filled in, on a copy; what is stored stays as it was. Texts are KubeVirt's (notes 6.1, recordings
`reject-vm`, `reject-updates`). Pure.
"""

from __future__ import annotations

from stead.kube.encoding import own_copy
from stead.server.admission import defaults_spec, matchers, rules_compute, rules_instance, rules_instancetype
from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import Json
from stead.server.admission.findings import NOT_SUPPORTED, REQUIRED, Findings
from stead.server.admission.hotplug import memory_hotplug_fault
from stead.server.admission.rules_volumes import check_disks

_RUN_STRATEGIES = ("Always", "Halted", "Manual", "RerunOnFailure", "Once", "WaitAsReceiver")
_TEMPLATE = "spec.template.spec"
_DEPRECATED_RUNNING = "spec.running is deprecated, please use spec.runStrategy instead."


def check_machine(machine: Json, old: Json | None, own_account: bool, cluster: Cluster) -> None:
    """Raise the 422 of a machine that cannot be stored. `machine` has its defaults; `old` is None on creation."""
    if (machine.get("metadata") or {}).get("deletionTimestamp"):
        return
    findings = Findings()
    namespace = str((machine.get("metadata") or {}).get("namespace") or "")
    spec = _expanded_template(machine, cluster, namespace)
    template_metadata = machine["spec"]["template"].get("metadata") or {}
    rules_instance.check_metadata("spec.template.metadata", template_metadata, own_account, cluster, findings)
    rules_instance.check_spec(_TEMPLATE, spec, cluster, findings)
    _check_volume_templates(machine, namespace, findings)
    _check_run_strategy(machine["spec"], cluster, findings)
    _check_live_update(spec, cluster, findings)
    if old is not None:
        check_in_progress(machine, old, findings)
    findings.refuse_if_any()


def warnings_of_machine(machine: Json) -> list[str]:
    """What a client is told about a machine that was accepted."""
    return [_DEPRECATED_RUNNING] if (machine.get("spec") or {}).get("running") is not None else []


def _expanded_template(machine: Json, cluster: Cluster, namespace: str) -> Json:
    """A copy of the template's spec as an instance would have it; raises for conflicts and unmet requirements.

    What cannot be found is passed over: a machine may be made before its instancetype (note 20).
    """
    spec: Json = own_copy(machine["spec"]["template"].get("spec") or {})
    instancetype = matchers.find_matched(machine, matchers.INSTANCETYPE, cluster.lookup, namespace)
    preference = matchers.find_matched(machine, matchers.PREFERENCE, cluster.lookup, namespace)
    if instancetype is not None or preference is not None:
        findings = Findings()
        rules_instancetype.check_requirements(spec, instancetype, preference, findings)
        findings.refuse_if_any()
        made, conflicts = rules_instancetype.applied(machine["spec"]["template"], instancetype, preference)
        rules_instancetype.check_conflicts(conflicts, findings)
        findings.refuse_if_any()
        spec = made["spec"]
    defaults_spec.fill_spec(spec, cluster)
    defaults_spec.fill_objects(spec)
    defaults_spec.fill_hyperv_needs(spec["domain"])
    return spec


def run_strategy(spec: Json) -> str:
    """The run strategy of a machine's spec, whichever way it is written."""
    if spec.get("running") is not None:
        return "Always" if spec["running"] else "Halted"
    return str(spec.get("runStrategy") or "Halted")


def _check_run_strategy(spec: Json, cluster: Cluster, findings: Findings) -> None:
    strategy, running = spec.get("runStrategy"), spec.get("running")
    if running is not None and strategy is not None:
        text = (
            "Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy "
            "instead"
        )
        findings.add("spec.running", text)
    if running is None and strategy is None:
        findings.add("spec.running", "RunStrategy must be specified")
    if strategy is None:
        return
    if strategy not in _RUN_STRATEGIES:
        findings.add("spec.runStrategy", f"Invalid RunStrategy ({strategy})")
    elif strategy == "WaitAsReceiver" and not cluster.has("DecentralizedLiveMigration"):
        text = "DecentralizedLiveMigration feature gate is not enabled in kubevirt resource"
        findings.add("spec.runStrategy", f"Invalid RunStrategy ({strategy}), {text}")


def _check_live_update(spec: Json, cluster: Cluster, findings: Findings) -> None:
    if not cluster.live_update:
        return
    rules_compute.check_sockets(_TEMPLATE, spec["domain"].get("cpu") or {}, findings)
    most = (spec["domain"].get("memory") or {}).get("maxGuest")
    fault = memory_hotplug_fault(spec, str(most)) if most is not None else None
    if fault:
        findings.add(f"{_TEMPLATE}.domain.memory.guest", fault)


def _check_volume_templates(machine: Json, namespace: str, findings: Findings) -> None:
    template_spec: Json = machine["spec"]["template"].get("spec") or {}
    used = {(v.get("dataVolume") or {}).get("name") for v in template_spec.get("volumes") or ()}
    for index, template in enumerate(machine["spec"].get("dataVolumeTemplates") or ()):
        here = f"spec.dataVolumeTemplate[{index}]"
        metadata: Json = template.get("metadata") or {}
        name = metadata.get("name") or ""
        if not name:
            text = f"'name' field must not be empty for DataVolumeTemplate entry {here}.name."
            findings.add(f"{here}.name", text, REQUIRED)
        _check_volume_source(here, template.get("spec") or {}, findings)
        home = metadata.get("namespace")
        if home and home != namespace:
            text = f"Embedded DataVolume namespace {home} differs from VM namespace {namespace}"
            findings.add(f"spec.dataVolumeTemplates[{index}]", text)
        if name and name not in used:
            where = f"spec.dataVolumeTemplate[{index}]"
            text = f"DataVolumeTemplate entry {where}.name must be referenced in the VMI template's 'volumes' list"
            findings.add(where, text, REQUIRED)


def _check_volume_source(here: str, spec: Json, findings: Findings) -> None:
    claim, storage = spec.get("pvc"), spec.get("storage")
    if claim is None and storage is None:
        findings.add(f"{here}.PVC.Storage", "Missing Data volume PVC or Storage")
    if claim is not None and storage is not None:
        text = "Duplicate storage definition, both target storage and target pvc defined"
        findings.add(f"{here}.PVC.Storage", text)
    source, reference = spec.get("source"), spec.get("sourceRef")
    target = claim or storage or {}
    populated = target.get("dataSource") is not None or target.get("dataSourceRef") is not None
    if source is None and reference is None and not populated:
        text = "Data volume should have either Source, SourceRef, or be externally populated"
        findings.add(f"{here}.source.sourceRef", text)
    if source is None:
        return
    given = [kind for kind, body in source.items() if body is not None]
    if len(given) > 1:
        findings.add(f"{here}.source", "Multiple dataVolume sources")
    elif not given:
        findings.add(f"{here}.source", "Missing dataVolume valid source")


def check_in_progress(machine: Json, old: Json, findings: Findings) -> None:
    """While a snapshot or a restore runs, the machine holds still."""
    status: Json = old.get("status") or {}
    before, after = run_strategy(old["spec"]), run_strategy(machine["spec"])
    changed = machine["spec"] != old["spec"]
    snapshot = status.get("snapshotInProgress")
    if snapshot and changed:
        if before != after:
            text = f'Cannot update vm running state until snapshot "{snapshot}" completes'
            findings.add("spec", text, NOT_SUPPORTED)
        if _storage_of(machine) != _storage_of(old):
            text = f'Cannot update vm disks or volumes until snapshot "{snapshot}" completes'
            findings.add("spec.template.spec", text, NOT_SUPPORTED)
    restore = status.get("restoreInProgress")
    if restore and changed and after != "Halted":
        text = f'Cannot update VM runStrategy until restore "{restore}" completes'
        findings.add("spec", text, NOT_SUPPORTED)


def _storage_of(machine: Json) -> tuple[object, object]:
    spec: Json = machine["spec"]["template"].get("spec") or {}
    devices: Json = (spec.get("domain") or {}).get("devices") or {}
    return devices.get("disks") or [], spec.get("volumes") or []


def check_machine_status(machine: Json, findings: Findings) -> None:
    """A write of status: volume requests that contradict each other or the template."""
    template_spec: Json = machine["spec"]["template"].get("spec") or {}
    volumes = {v.get("name"): v for v in template_spec.get("volumes") or ()}
    disks = list(((template_spec.get("domain") or {}).get("devices") or {}).get("disks") or ())
    asked: set[str] = set()
    for request in (machine.get("status") or {}).get("volumeRequests") or ():
        add, remove = request.get("addVolumeOptions"), request.get("removeVolumeOptions")
        if (add is None) == (remove is None):
            text = "VolumeRequests require one of either addVolumeOptions or removeVolumeOptions to be set"
            findings.add("Status.volumeRequests", text)
            continue
        if add is None:
            continue
        name = str(add.get("name") or "")
        source = {k: v for k, v in (add.get("volumeSource") or {}).items() if v is not None}
        existing = volumes.get(name)
        if name in asked:
            findings.add("Status.volumeRequests", f"AddVolume request for [{name}] aleady exists")
        elif existing is not None and any(existing.get(kind) != body for kind, body in source.items()):
            what = f"AddVolume request for [{name}] conflicts with an existing volume"
            findings.add("Status.volumeRequests", f"{what} of the same name on the vmi template.")
        else:
            disks.append({**(add.get("disk") or {}), "name": name})
        asked.add(name)
    if not findings.causes and asked:
        check_disks(f"{_TEMPLATE}.domain.devices.disks", disks, findings)
