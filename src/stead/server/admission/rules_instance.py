"""What a VirtualMachineInstance must be: the order in which all rules about a spec are asked, and those of its own.

`check_spec` serves machines' templates as well. The order is upstream's (`ValidateVirtualMachineInstanceSpec`), because
only the first ten causes are shown. Pure.
"""

from __future__ import annotations

from stead.server.admission import (
    rules_compute,
    rules_devices,
    rules_firmware,
    rules_launch,
    rules_networks,
    rules_placement,
    rules_volumes,
)
from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import Json
from stead.server.admission.findings import NOT_SUPPORTED, REQUIRED, Findings

#: labels that only the control plane may write
RESERVED_LABELS = (
    "kubevirt.io", "kubevirt.io/created-by", "kubevirt.io/migrationJobUID", "kubevirt.io/nodeName",
    "kubevirt.io/migrationTargetNodeName", "kubevirt.io/schedulable", "kubevirt.io/install-strategy",
)  # fmt: skip
_SIDECARS = "hooks.kubevirt.io/hookSidecars"
_IGNITION = "kubevirt.io/ignitiondata"


def check_instance(instance: Json, own_account: bool, cluster: Cluster, findings: Findings) -> None:
    """Everything about an instance that is created, after its defaults."""
    spec: Json = instance["spec"]
    # Upstream runs these two groups here and again within the spec: their causes come twice (note 26).
    rules_networks.check_networks("spec", spec, cluster, findings)
    rules_volumes.check_storage("spec", spec, findings)
    check_spec("spec", spec, cluster, findings)
    check_metadata("metadata", instance.get("metadata") or {}, own_account, cluster, findings)
    memory: Json = spec["domain"].get("memory") or {}
    if memory.get("guest") is None:
        text = (
            "no memory requested, at least one of 'spec.domain.memory.guest', "
            "'spec.domain.memory.hugepages.pageSize' or 'spec.domain.resources.requests.memory' must be set"
        )
        findings.add("", text, REQUIRED)
    rules_devices.check_architecture("spec", spec, findings)


def check_metadata(field: str, metadata: Json, own_account: bool, cluster: Cluster, findings: Findings) -> None:
    """Reserved labels and annotations behind gates."""
    labels: Json = metadata.get("labels") or {}
    if not own_account and any(label in labels for label in RESERVED_LABELS):
        text = "creation of the following reserved kubevirt.io/ labels on a VMI object is prohibited"
        findings.add(f"{field}.labels", text, NOT_SUPPORTED)
    annotations: Json = metadata.get("annotations") or {}
    where = f"{field}.annotations"
    if _IGNITION in annotations and not cluster.has("ExperimentalIgnitionSupport"):
        gate = "ExperimentalIgnitionSupport feature gate is not enabled in kubevirt-config"
        findings.add(where, f"{gate}, invalid entry {where}.{_IGNITION}")
    if _SIDECARS in annotations and not cluster.has("Sidecar"):
        gate = "sidecar feature gate is not enabled in kubevirt-config"
        findings.add(where, f"{gate}, invalid entry {where}.{_SIDECARS}")


def check_spec(field: str, spec: Json, cluster: Cluster, findings: Findings) -> None:
    """All rules about a spec with its defaults filled in. `field` is its path."""
    rules_placement.check_names(field, spec, findings)
    rules_compute.check_memory(field, spec, cluster, findings)
    rules_firmware.check_machine_type(field, spec, cluster, findings)
    rules_firmware.check_acpi(field, spec, findings)
    rules_compute.check_cpu(field, spec, findings)
    rules_placement.check_start_strategy(field, spec, findings)
    rules_placement.check_affinity(field, spec, findings)
    rules_networks.check_networks(field, spec, cluster, findings)
    boot_orders = rules_volumes.check_disk_volumes(field, spec, cluster, findings)
    rules_networks.check_boot_orders(field, spec, boot_orders, findings)
    rules_devices.check_inputs(field, spec, findings)
    rules_devices.check_io_threads(field, spec, findings)
    rules_placement.check_probes(field, spec, findings)
    rules_volumes.check_storage(field, spec, findings)
    rules_firmware.check_firmware(field, spec, findings)
    rules_volumes.check_volumes(field, spec, cluster, findings)
    rules_volumes.check_access_credentials(field, spec, findings)
    rules_placement.check_dns(field, spec, findings)
    rules_placement.check_eviction_strategy(field, spec, findings)
    rules_devices.check_devices(field, spec, cluster, findings)
    rules_launch.check_launch_security(field, spec, cluster, findings)
    _check_gated_fields(field, spec, cluster, findings)


def _check_gated_fields(field: str, spec: Json, cluster: Cluster, findings: Findings) -> None:
    domain: Json = spec["domain"]
    if domain.get("rebootPolicy") is not None and not cluster.has("RebootPolicy"):
        text = "RebootPolicy is specified but the RebootPolicy feature gate is not enabled"
        findings.add(f"{field}.domain.rebootPolicy", text)
    overhead = (domain.get("memory") or {}).get("reservedOverhead")
    if overhead is not None and not cluster.has("ReservedOverheadMemlock"):
        text = "Reserved overhead memlock feature gate is not enabled in kubevirt-config"
        findings.add(f"{field}.domain.memory.reservedOverhead", text)
