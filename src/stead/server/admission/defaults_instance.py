"""Defaults of a VirtualMachineInstance at creation, and what becomes of the status that its creator sent.

The order is upstream's (notes 6.11): shared spec defaults, object defaults, architecture, CPU model, hotplug head-room;
then finalizer, annotations and the first status. Returns new objects. Pure apart from the UUID and the clock's reading,
which the caller passes.
"""

from __future__ import annotations

from stead.kube import quantity
from stead.kube.encoding import own_copy
from stead.server.admission import defaults_spec
from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import Json
from stead.server.admission.hotplug import memory_hotplug_fault
from stead.server.admission.shape import settled_spec

FINALIZER = "kubevirt.io/foregroundDeleteVirtualMachine"
PCI_TOPOLOGY = "kubevirt.io/pci-topology-version"
PCI_TOPOLOGY_LATEST = "v3"
_EVEN_PARITY = "alpha.kubevirt.io/EmulatorThreadCompleteToEvenParity"
_QGS_ANNOTATION = "kubevirt.io/qgs-socket-path"
#: uid of the qemu user in KubeVirt's launcher image; clients read it from status
_RUNTIME_USER = 107
#: upper bound for vCPUs that the default head-room may reach
_MOST_VCPUS = 512


def instance_with_defaults(instance: Json, cluster: Cluster, now: str) -> Json:
    """A new instance as it is stored on creation. `now` is an RFC 3339 time."""
    made: Json = own_copy(instance)
    spec: Json = made.setdefault("spec", {})
    defaults_spec.fill_spec(spec, cluster)
    fill_instance_spec(spec, cluster)
    made["spec"] = settled_spec(spec)
    _fill_metadata(made, cluster)
    made["status"] = _first_status(made, cluster, now)
    return made


def fill_instance_spec(spec: Json, cluster: Cluster) -> None:
    """What an instance's spec gets beyond a template's; changes `spec`."""
    defaults_spec.fill_disks(spec)
    defaults_spec.fill_objects(spec)
    defaults_spec.fill_hyperv_needs(spec["domain"])
    defaults_spec.fill_architecture(spec)
    cpu: Json = spec["domain"].setdefault("cpu", {})
    cpu["model"] = cpu.get("model") or cluster.cpu_model or "host-model"
    if cluster.live_update:
        _fill_head_room(spec, cluster)


def supports_pci_topology(spec: Json) -> bool:
    """Whether the machine type has PCIe root ports to plug devices into later."""
    machine_type = str(((spec.get("domain") or {}).get("machine") or {}).get("type") or "")
    return "q35" in machine_type or machine_type.startswith("virt")


def _fill_head_room(spec: Json, cluster: Cluster) -> None:
    if spec["architecture"] == "arm64":
        return
    domain: Json = spec["domain"]
    cpu: Json = domain["cpu"]
    if not cpu.get("maxSockets"):
        most = _head_room_sockets(cpu, cluster)
        if most:
            cpu["maxSockets"] = most
    memory: Json = domain.get("memory") or {}
    if memory.get("maxGuest") is not None or not quantity.is_quantity(memory.get("guest")):
        return
    guest = quantity.parse(memory["guest"])
    most_guest = cluster.max_guest or quantity.quantity_from_bytes(int(guest) * cluster.hotplug_ratio)
    if memory_hotplug_fault(spec, str(most_guest)) is None:
        memory["maxGuest"] = str(most_guest)


def _head_room_sockets(cpu: Json, cluster: Cluster) -> int:
    sockets = int(cpu.get("sockets") or 0)
    if cluster.max_sockets:
        return max(cluster.max_sockets, sockets)
    per_socket = int(cpu.get("cores") or 0) * int(cpu.get("threads") or 0)
    most = sockets * cluster.hotplug_ratio
    if most * per_socket > _MOST_VCPUS:
        most = max(_MOST_VCPUS // per_socket, sockets)
    return most


def _fill_metadata(made: Json, cluster: Cluster) -> None:
    metadata: Json = made.setdefault("metadata", {})
    finalizers = list(metadata.get("finalizers") or ())
    if FINALIZER not in finalizers:
        metadata["finalizers"] = [*finalizers, FINALIZER]
    annotations: Json = dict(metadata.get("annotations") or {})
    if supports_pci_topology(made["spec"]):
        annotations.setdefault(PCI_TOPOLOGY, PCI_TOPOLOGY_LATEST)
    if (made["spec"]["domain"].get("launchSecurity") or {}).get("tdx") is not None:
        annotations.setdefault(_QGS_ANNOTATION, cluster.qgs_socket)
    parity = (cluster.configuration.get("annotations") or {}).get(_EVEN_PARITY)
    if parity is not None:
        annotations.setdefault(_EVEN_PARITY, parity)
    if annotations:
        metadata["annotations"] = annotations


def _first_status(made: Json, cluster: Cluster, now: str) -> Json:
    """Status at creation: what the creator sent stays, save for the fields that admission sets."""
    domain = made["spec"]["domain"]
    status: Json = {"guestOSInfo": {}, **(made.get("status") or {})}
    status["phase"] = "Pending"
    status["phaseTransitionTimestamps"] = [{"phase": "Pending", "phaseTransitionTimestamp": now}]
    status["runtimeUser"] = 0 if cluster.has("Root") else _RUNTIME_USER
    cpu = domain.get("cpu") or {}
    status["currentCPUTopology"] = {k: cpu[k] for k in ("sockets", "cores", "threads") if cpu.get(k)}
    guest = (domain.get("memory") or {}).get("guest")
    if guest is not None:
        status["memory"] = {"guestAtBoot": guest, "guestCurrent": guest, "guestRequested": guest}
    return status
