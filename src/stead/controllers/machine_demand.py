"""What an instance demands of its host, read from its spec. Pure; for `instance` and `residents`.

The selectors that KubeVirt's launcher pods compute are here too: CPU model, CPU features, machine type; hugepages and
host devices are counted as resources. Names of labels: KubeVirt's node labeller.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from stead.controllers.conditions import spec_of
from stead.controllers.placement import Demand, Use, use_of
from stead.controllers.placement_terms import NamespaceFinder, labels_as_pod, wishes_from
from stead.kinds import machine_needs

Object = dict[str, Any]

CPU_MODEL, CPU_FEATURE = "cpu-model.node.kubevirt.io", "cpu-feature.node.kubevirt.io"
MACHINE_TYPE = "machine-type.node.kubevirt.io"
#: models that name no model
_HOST_MODELS = ("", "host-model", "host-passthrough")


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What other objects say: where volumes lie or may be made, bridges that the networks use."""

    volume_affinities: tuple[Object, ...] = ()
    pools: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()


def demand_from(vmi: Object, around: Surroundings, find_namespaces: NamespaceFinder) -> Demand:
    """Everything that placement asks for."""
    spec = spec_of(vmi)
    selector = dict(spec.get("nodeSelector") or {})
    if spec.get("architecture"):
        selector.setdefault("kubernetes.io/arch", spec["architecture"])
    return Demand(
        cpu_milli=machine_needs.machine_cpu_milli(vmi),
        memory=machine_needs.machine_memory(vmi),
        extra=resources_from(vmi),
        node_selector=selector,
        offers=offers_from(vmi),
        features=features_from(vmi),
        bridges=around.bridges,
        affinity=spec.get("affinity") or {},
        tolerations=tuple(spec.get("tolerations") or ()),
        volume_affinities=around.volume_affinities,
        pools=around.pools,
        namespace=vmi["metadata"].get("namespace", ""),
        labels=labels_as_pod(vmi),
        wishes=wishes_from(vmi, find_namespaces),
    )


def use_from(vmi: Object) -> Use:
    """What an instance takes of the host that it is on."""
    cpu, memory = machine_needs.machine_cpu_milli(vmi), machine_needs.machine_memory(vmi)
    return use_of(Demand(cpu_milli=cpu, memory=memory, extra=resources_from(vmi)))


def resources_from(vmi: Object) -> dict[str, int]:
    """Resources beside CPU and memory: hugepages in bytes, host devices and GPUs in pieces."""
    domain = spec_of(vmi).get("domain") or {}
    found: dict[str, int] = {}
    size = ((domain.get("memory") or {}).get("hugepages") or {}).get("pageSize")
    if size:
        found[f"hugepages-{size}"] = machine_needs.guest_bytes(vmi)
    devices = domain.get("devices") or {}
    for device in [*(devices.get("hostDevices") or ()), *(devices.get("gpus") or ())]:
        name = device.get("deviceName")
        if name:
            found[name] = found.get(name, 0) + 1
    return found


def offers_from(vmi: Object) -> tuple[tuple[str, str, str], ...]:
    """CPU model, required CPU features and machine type, as `Demand.offers`."""
    domain = spec_of(vmi).get("domain") or {}
    cpu = domain.get("cpu") or {}
    found = []
    model = cpu.get("model") or ""
    if model not in _HOST_MODELS:
        found.append((CPU_MODEL, model, "CPU model"))
    for feature in cpu.get("features") or ():
        if feature.get("policy") in (None, "", "require"):
            found.append((CPU_FEATURE, feature.get("name") or "", "CPU feature"))
    machine = (domain.get("machine") or {}).get("type") or ""
    if machine:
        found.append((MACHINE_TYPE, machine, "machine type"))
    return tuple(found)


def features_from(vmi: Object) -> tuple[str, ...]:
    """What the hypervisor must honour (fields of its `Machine`), as far as a spec can tell before it is planned."""
    domain = spec_of(vmi).get("domain") or {}
    efi = ((domain.get("firmware") or {}).get("bootloader") or {}).get("efi")
    found = []
    if efi is not None:
        found.append("firmware.efi")
        if efi.get("secureBoot") is not False:
            found.append("firmware.secure_boot")
    tpm = (domain.get("devices") or {}).get("tpm")
    if tpm is not None and tpm.get("enabled") is not False:
        found.append("tpm")
        if tpm.get("persistent"):
            found.append("tpm_state")
    return tuple(found)


def bridges_of(vmi: Object, configuration_of: Any) -> tuple[str, ...]:
    """Bridges of the host that the networks use; `configuration_of(namespace, name)` gives a network's CNI text."""
    namespace, found = vmi["metadata"].get("namespace", ""), []
    for network in spec_of(vmi).get("networks") or ():
        named = (network.get("multus") or {}).get("networkName") or ""
        if not named:
            continue
        where, _, name = named.rpartition("/")
        bridge = bridge_from(configuration_of(where or namespace, name))
        if bridge:
            found.append(bridge)
    return tuple(dict.fromkeys(found))


def bridge_from(configuration: str) -> str:
    """The bridge that a CNI configuration of type `bridge` names, or ""."""
    try:
        parsed = json.loads(configuration or "{}")
    except ValueError:
        return ""
    if not isinstance(parsed, dict):
        return ""
    plugins = [parsed, *(p for p in parsed.get("plugins") or () if isinstance(p, dict))]
    return next((str(p["bridge"]) for p in plugins if p.get("type") == "bridge" and p.get("bridge")), "")
