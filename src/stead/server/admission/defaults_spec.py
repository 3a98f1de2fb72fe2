"""Defaults of a machine's spec that a VirtualMachine's template and an instance share.

Order and values are those of KubeVirt's `SetDefaultVirtualMachineInstanceSpec` and its generated object defaults, as
recorded (`default-vmi`, `default-vm`, `configuration`; notes 6.11 and observed 1-17). Functions here change the spec
that they are given: callers pass a private copy. Pure apart from the random firmware UUID.
"""

from __future__ import annotations

import uuid
from typing import Any

from stead.kube import quantity
from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import Json

DEFAULT_NETWORK = "default"
_FEATURE_STATES = ("acpi", "apic", "smm", "pvspinlock", "hypervPassthrough")
_HYPERV_STATES = (
    "relaxed", "vapic", "vpindex", "runtime", "synic", "synictimer", "reset", "frequencies", "reenlightenment",
    "tlbflush", "ipi", "evmcs", "spinlocks", "vendorid",
)  # fmt: skip
#: what a Hyper-V feature needs (kubevirt: pkg/virt-api/webhooks/hyperv.go)
_HYPERV_NEEDS = {
    "synic": ("vpindex",), "synictimer": ("synic", "vpindex"), "ipi": ("vpindex",), "tlbflush": ("vpindex",),
    "evmcs": ("vapic",),
}  # fmt: skip
_SPINLOCK_RETRIES = 4096
_PROBE_DEFAULTS = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}


def fill_spec(spec: Json, cluster: Cluster) -> None:
    """Defaults that admission, expansion and validation all apply, in upstream's order."""
    spec.setdefault("architecture", cluster.architecture)
    domain: Json = spec.setdefault("domain", {})
    domain.setdefault("devices", {})
    domain.setdefault("resources", {})
    machine = domain.get("machine") or {}
    if not machine.get("type"):
        domain["machine"] = {**machine, "type": cluster.machine_type(spec["architecture"])}
    _fill_requests(domain, cluster)
    _fill_guest_memory(domain)
    _fill_topology(domain)
    for volume in spec.get("volumes") or ():
        disk = volume.get("containerDisk")
        if disk is not None and not disk.get("imagePullPolicy"):
            disk["imagePullPolicy"] = pull_policy(str(disk.get("image") or ""))
    kernel = ((domain.get("firmware") or {}).get("kernelBoot") or {}).get("container")
    if kernel is not None and not kernel.get("imagePullPolicy"):
        kernel["imagePullPolicy"] = pull_policy(str(kernel.get("image") or ""))
    if not spec.get("evictionStrategy"):
        spec["evictionStrategy"] = cluster.eviction_strategy
    fill_network(spec, cluster)


def fill_network(spec: Json, cluster: Cluster) -> None:
    """The pod network for a machine that names neither networks nor interfaces, unless it wants none."""
    devices: Json = spec.setdefault("domain", {}).setdefault("devices", {})
    if devices.get("autoattachPodInterface") is False or devices.get("interfaces") or spec.get("networks"):
        return
    devices["interfaces"] = [{"name": DEFAULT_NETWORK, cluster.default_binding: {}}]
    spec["networks"] = [{"name": DEFAULT_NETWORK, "pod": {}}]


def fill_disks(spec: Json) -> None:
    """A disk for every volume that neither a disk nor a filesystem uses."""
    devices: Json = spec.setdefault("domain", {}).setdefault("devices", {})
    used = {entry.get("name") for key in ("disks", "filesystems") for entry in devices.get(key) or ()}
    missing = [{"name": v["name"]} for v in spec.get("volumes") or () if v.get("name") not in used]
    if missing:
        devices["disks"] = [*(devices.get("disks") or ()), *missing]


def pull_policy(image: str) -> str:
    """Always for an image without a tag or with `latest`, else IfNotPresent; a digest counts as a tag."""
    if "@" in image:
        return "IfNotPresent"
    tag = image.rsplit("/", 1)[-1].partition(":")[2]
    return "Always" if tag in ("", "latest") else "IfNotPresent"


def _fill_requests(domain: Json, cluster: Cluster) -> None:
    resources: Json = domain["resources"]
    if "cpu" in (resources.get("requests") or {}):
        return
    wanted = (resources.get("limits") or {}).get("cpu") or cluster.cpu_request
    if wanted:
        resources["requests"] = {**(resources.get("requests") or {}), "cpu": wanted}


def _fill_guest_memory(domain: Json) -> None:
    """Guest memory: as asked, else the request, else the limit, else one huge page."""
    memory: Json = domain.get("memory") or {}
    if memory.get("guest") is not None:
        return
    resources = domain["resources"]
    guest = (resources.get("requests") or {}).get("memory") or (resources.get("limits") or {}).get("memory")
    if guest is None:
        guest = (memory.get("hugepages") or {}).get("pageSize")
    if guest is not None:
        domain["memory"] = {**memory, "guest": guest}


def _fill_topology(domain: Json) -> None:
    """Complete the topology, only when sockets, cores and threads are all unset."""
    cpu: Json = domain.get("cpu") or {}
    if any(cpu.get(key) for key in ("sockets", "cores", "threads")):
        return
    resources = domain["resources"]
    asked = (resources.get("limits") or {}).get("cpu") or (resources.get("requests") or {}).get("cpu")
    sockets = int(quantity.parse(asked)) if quantity.is_quantity(asked) else 1
    domain["cpu"] = {**cpu, "sockets": sockets or 1, "cores": 1, "threads": 1}


def fill_objects(spec: Json) -> None:
    """Defaults of single objects: probes, disks, features, timers, firmware (KubeVirt's generated SetDefaults_*)."""
    domain: Json = spec["domain"]
    firmware: Json = domain.setdefault("firmware", {})
    if not firmware.get("uuid"):
        firmware["uuid"] = str(uuid.uuid4())
    _fill_features(domain)
    for timer in ((domain.get("clock") or {}).get("timer") or {}).values():
        timer.setdefault("present", True)
    for disk in domain["devices"].get("disks") or ():
        _fill_disk(disk)
    for entry in domain["devices"].get("inputs") or ():
        entry["type"] = entry.get("type") or "tablet"
        entry["bus"] = entry.get("bus") or "usb"
    watchdog = domain["devices"].get("watchdog") or {}
    for model in ("i6300esb", "diag288"):
        if watchdog.get(model) is not None and not watchdog[model].get("action"):
            watchdog[model]["action"] = "reset"
    for name in ("livenessProbe", "readinessProbe"):
        if spec.get(name) is None:
            continue
        probe: Json = spec[name]
        for key, value in _PROBE_DEFAULTS.items():
            probe[key] = probe.get(key) or value


def _fill_disk(disk: Json) -> None:
    if not any(disk.get(kind) is not None for kind in ("disk", "cdrom", "lun")):
        disk["disk"] = {}
    cdrom = disk.get("cdrom")
    if cdrom is not None:
        cdrom.setdefault("readonly", True)
        cdrom["tray"] = cdrom.get("tray") or "closed"
    match = (disk.get("blockSize") or {}).get("matchVolume")
    if match is not None:
        match.setdefault("enabled", True)


def _fill_features(domain: Json) -> None:
    features: Json = domain.setdefault("features", {})
    features.setdefault("acpi", {})
    for name in _FEATURE_STATES:
        _enable(features.get(name))
    hyperv: Json = features.get("hyperv") or {}
    for name in _HYPERV_STATES:
        _enable(hyperv.get(name))
    spinlocks = hyperv.get("spinlocks")
    if spinlocks and spinlocks["enabled"]:
        spinlocks.setdefault("spinlocks", _SPINLOCK_RETRIES)
    _enable((hyperv.get("synictimer") or {}).get("direct"))


def _enable(state: Any) -> None:
    if isinstance(state, dict):
        state.setdefault("enabled", True)


def fill_hyperv_needs(domain: Json) -> None:
    """Switch on what the chosen Hyper-V features depend on; eVMCS also requires the CPU feature vmx."""
    hyperv: Json = (domain.get("features") or {}).get("hyperv") or {}
    for name, needs in _HYPERV_NEEDS.items():
        if not (hyperv.get(name) or {}).get("enabled"):
            continue
        for needed in needs:
            if not hyperv.get(needed):
                hyperv[needed] = {"enabled": True}
    if (hyperv.get("evmcs") or {}).get("enabled"):
        cpu: Json = domain.setdefault("cpu", {})
        others = [f for f in cpu.get("features") or () if f.get("name") != "vmx"]
        cpu["features"] = [*others, {"name": "vmx", "policy": "require"}]


def fill_architecture(spec: Json) -> None:
    """Buses, CPU model, firmware and watchdog as the architecture has them."""
    architecture = spec["architecture"]
    bus = "sata" if architecture == "amd64" else "virtio"
    domain: Json = spec["domain"]
    devices: Json = domain["devices"]
    for disk in devices.get("disks") or ():
        for kind in ("disk", "cdrom", "lun"):
            target = disk.get(kind)
            if target is not None and not target.get("bus"):
                target["bus"] = bus
    watchdog = devices.get("watchdog")
    if watchdog is not None and not any(watchdog.get(m) is not None for m in ("i6300esb", "diag288")):
        if architecture == "amd64":
            watchdog["i6300esb"] = {"action": "reset"}
        elif architecture == "s390x":
            watchdog["diag288"] = {"action": "reset"}
    if architecture == "arm64":
        firmware: Json = domain.setdefault("firmware", {})
        firmware.setdefault("bootloader", {"efi": {"secureBoot": False}})
        cpu: Json = domain.setdefault("cpu", {})
        cpu["model"] = cpu.get("model") or "host-passthrough"
    if architecture == "s390x":
        domain["features"]["acpi"] = {"enabled": False}
