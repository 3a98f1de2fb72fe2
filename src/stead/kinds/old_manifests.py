"""Old manifests made new: versions and fields that KubeVirt and CDI have dropped, and what they became.

Used by `stead convert`. Pure: an object in, a new one and what was done about it out; what has no successor is left and
named. Sources: KubeVirt's conversions of instancetype.kubevirt.io v1alpha1 and v1alpha2, its release notes up to 1.8.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stead.kinds import register
from stead.kube import schema

Object = dict[str, Any]

#: (group, old version) → the version that is served or that current KubeVirt serves
_VERSIONS = {
    ("kubevirt.io", "v1alpha2"): "v1",
    ("kubevirt.io", "v1alpha3"): "v1",
    ("instancetype.kubevirt.io", "v1alpha1"): "v1beta1",
    ("instancetype.kubevirt.io", "v1alpha2"): "v1beta1",
    ("cdi.kubevirt.io", "v1alpha1"): "v1beta1",
    ("upload.cdi.kubevirt.io", "v1alpha1"): "v1beta1",
    ("snapshot.kubevirt.io", "v1alpha1"): "v1beta1",
    ("export.kubevirt.io", "v1alpha1"): "v1beta1",
    ("clone.kubevirt.io", "v1alpha1"): "v1beta1",
    ("pool.kubevirt.io", "v1alpha1"): "v1beta1",
}
_TOPOLOGIES = {
    "preferSockets": "sockets", "preferCores": "cores", "preferThreads": "threads", "preferSpread": "spread",
    "preferAny": "any",
}  # fmt: skip
#: bindings that KubeVirt removed, none of which has a like-for-like successor but slirp
_REMOVED_BINDINGS = ("macvtap", "passt")
_KINDS = {"OfflineVirtualMachine": "VirtualMachine"}


class Converted(msgspec.Struct, kw_only=True):
    """The new object, what was changed, and what a person must see to."""

    obj: Object
    changes: list[str]
    left: list[str]


def newer_version(group: str, version: str) -> str | None:
    """The version that replaced one of a group; None where it is not an old one."""
    return _VERSIONS.get((group, version))


def convert(obj: Object) -> Converted:
    """One object as it is written today. The input is not changed."""
    made = Converted(obj=_copied(obj), changes=[], left=[])
    _version(made)
    kind = made.obj.get("kind")
    spec = made.obj.get("spec")
    if isinstance(spec, dict):
        if kind == register.VIRTUAL_MACHINE.kind:
            _machine(made, spec)
        elif kind == register.VIRTUAL_MACHINE_INSTANCE.kind:
            _instance(made, spec, "spec")
        elif kind in (register.PREFERENCE.kind, register.CLUSTER_PREFERENCE.kind):
            _preference(made, spec)
    _strangers(made)
    return made


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _version(made: Converted) -> None:
    old = str(made.obj.get("apiVersion") or "")
    group, _, version = old.rpartition("/")
    newer = newer_version(group, version)
    if newer is not None:
        made.obj["apiVersion"] = f"{group}/{newer}"
        made.changes.append(f"apiVersion: {old} → {group}/{newer}")
    kind = _KINDS.get(str(made.obj.get("kind")))
    if kind is not None and group == "kubevirt.io":
        made.changes.append(f"kind: {made.obj['kind']} → {kind}")
        made.obj["kind"] = kind


def _machine(made: Converted, spec: Object) -> None:
    if "running" in spec:
        running = spec.pop("running")
        if spec.get("runStrategy"):
            made.changes.append(f"spec.running: removed, spec.runStrategy is {spec['runStrategy']}")
        elif isinstance(running, bool):
            spec["runStrategy"] = "Always" if running else "Halted"
            shown = "true" if running else "false"
            made.changes.append(f"spec.running: {shown} → spec.runStrategy: {spec['runStrategy']}")
    for index, template in enumerate(spec.get("dataVolumeTemplates") or ()):
        group, _, version = str(template.get("apiVersion") or "").rpartition("/")
        newer = newer_version(group, version)
        if newer is not None:
            template["apiVersion"] = f"{group}/{newer}"
            made.changes.append(f"spec.dataVolumeTemplates[{index}].apiVersion: {version} → {newer}")
    template = spec.get("template")
    if isinstance(template, dict) and isinstance(template.get("spec"), dict):
        _instance(made, template["spec"], "spec.template.spec")


def _instance(made: Converted, spec: Object, at: str) -> None:
    for index, volume in enumerate(spec.get("volumes") or ()):
        if isinstance(volume, dict) and "registryDisk" in volume:
            volume["containerDisk"] = volume.pop("registryDisk")
            made.changes.append(f"{at}.volumes[{index}].registryDisk → containerDisk")
    devices = (spec.get("domain") or {}).get("devices") or {}
    for index, interface in enumerate(devices.get("interfaces") or ()):
        where = f"{at}.domain.devices.interfaces[{index}]"
        if isinstance(interface, dict) and "slirp" in interface:
            del interface["slirp"]
            interface.setdefault("masquerade", {})
            made.changes.append(f"{where}.slirp → masquerade (slirp was removed; ports are forwarded likewise)")
        for binding in _REMOVED_BINDINGS:
            if isinstance(interface, dict) and binding in interface:
                made.left.append(f"{where}.{binding}: removed from KubeVirt; choose masquerade, bridge or passtBinding")
    for index, disk in enumerate(devices.get("disks") or ()):
        where = f"{at}.domain.devices.disks[{index}]"
        if isinstance(disk, dict) and "floppy" in disk:
            made.left.append(f"{where}.floppy: removed from KubeVirt; choose disk or cdrom")
        if isinstance(disk, dict) and "volumeName" in disk:
            name = disk.pop("volumeName")
            made.changes.append(f"{where}.volumeName: removed, a disk belongs to the volume of its own name")
            if disk.get("name") != name:
                made.left.append(f"{where}.name: must be the volume's, {name}")


def _preference(made: Converted, spec: Object) -> None:
    cpu = spec.get("cpu")
    if isinstance(cpu, dict) and cpu.get("preferredCPUTopology") in _TOPOLOGIES:
        old = cpu["preferredCPUTopology"]
        cpu["preferredCPUTopology"] = _TOPOLOGIES[old]
        made.changes.append(f"spec.cpu.preferredCPUTopology: {old} → {_TOPOLOGIES[old]}")
    if "preferSpreadSocketToCoreRatio" in spec:
        ratio = spec.pop("preferSpreadSocketToCoreRatio")
        cpu = spec.setdefault("cpu", {})
        cpu.setdefault("spreadOptions", {}).setdefault("ratio", ratio)
        made.changes.append("spec.preferSpreadSocketToCoreRatio → spec.cpu.spreadOptions.ratio")
    firmware = spec.get("firmware")
    if isinstance(firmware, dict):
        _firmware(made, firmware)


def _firmware(made: Converted, firmware: Object) -> None:
    uses = firmware.pop("preferredUseEfi", None)
    secure = firmware.pop("preferredUseSecureBoot", None)
    if uses is None and secure is None:
        return
    if uses and not firmware.get("preferredEfi"):
        firmware["preferredEfi"] = {"secureBoot": True} if secure else {}
        made.changes.append("spec.firmware.preferredUseEfi, preferredUseSecureBoot → spec.firmware.preferredEfi")
    else:
        made.changes.append("spec.firmware.preferredUseEfi, preferredUseSecureBoot: removed, of no effect here")


def _strangers(made: Converted) -> None:
    """Name what today's kind does not have; nothing is dropped in silence."""
    group, _, version = str(made.obj.get("apiVersion") or "").rpartition("/")
    for resource in register.ALL:
        if resource.group == group and version in resource.versions and resource.kind == made.obj.get("kind"):
            _, unknown = schema.prune(schema.schema_from_struct(resource.struct), made.obj)
            made.left.extend(f"{path}: no field of {group}/{version}" for path in unknown)
            return
    made.left.append(f"{made.obj.get('kind')} of {made.obj.get('apiVersion')}: Stead serves no such kind")
