"""How a preference fills what a machine leaves open. Used by `apply_instancetype`, which see.

Every function here changes the spec that it is given, which is `apply`'s own copy, and never overrides what a user
said, but for the two fields where KubeVirt does (`disableHotplug`, ACPI). Source: KubeVirt 1.8, field by field.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

_OLD_TOPOLOGIES = {
    "preferSockets": "sockets",
    "preferCores": "cores",
    "preferThreads": "threads",
    "preferSpread": "spread",
    "preferAny": "any",
}
TOPOLOGIES = ("sockets", "cores", "threads", "spread", "any")


def topology_of(preference: Object) -> str:
    """The preferred CPU topology, in its present name; sockets when the preference has none."""
    named = (preference.get("cpu") or {}).get("preferredCPUTopology") or "sockets"
    return _OLD_TOPOLOGIES.get(named, named)


def spread_options(preference: Object) -> tuple[int, str]:
    """Ratio and extent of spreading, 2 and SocketsCores when the preference is silent."""
    options = (preference.get("cpu") or {}).get("spreadOptions") or {}
    ratio = options.get("ratio") or preference.get("preferSpreadSocketToCoreRatio") or 2
    return int(ratio), options.get("across") or "SocketsCores"


def apply_preference(spec: Object, preference: Object) -> None:
    """Fills `spec`, the spec of an instance."""
    domain = spec.setdefault("domain", {})
    devices = domain.setdefault("devices", {})
    preferred = preference.get("devices") or {}
    _cpu_features(domain, (preference.get("cpu") or {}).get("preferredCPUFeatures") or [])
    _devices(devices, preferred)
    _disks(devices, preferred)
    _interfaces(devices, preferred, spec.get("networks") or [])
    _inputs_and_gpus(devices, preferred)
    _panic_devices(devices, preferred)
    _features(domain, preference.get("features") or {})
    _firmware(domain, preference.get("firmware") or {})
    _clock(domain, preference.get("clock") or {})
    machine_type = (preference.get("machine") or {}).get("preferredMachineType")
    if machine_type:
        domain["machine"] = {"type": machine_type} | {k: v for k, v in (domain.get("machine") or {}).items() if v}
    _fill(domain, "launchSecurity", preference.get("preferredLaunchSecurity"))
    _fill(spec, "subdomain", preference.get("preferredSubdomain"))
    _fill(spec, "architecture", preference.get("preferredArchitecture"))
    _fill(spec, "terminationGracePeriodSeconds", preference.get("preferredTerminationGracePeriodSeconds"))


def _fill(target: Object, field: str, value: Any) -> None:
    """Sets the field unless it was set, or there is no preference. "" counts as not set."""
    if value is not None and value != "" and target.get(field) in (None, ""):
        target[field] = value


def _cpu_features(domain: Object, features: list[Object]) -> None:
    if not features:
        return
    cpu = domain["cpu"] = dict(domain.get("cpu") or {})
    own = cpu.get("features") or []
    names = {feature["name"] for feature in own}
    cpu["features"] = [*own, *(feature for feature in features if feature["name"] not in names)]


_AUTOATTACH = ("GraphicsDevice", "MemBalloon", "PodInterface", "SerialConsole", "InputDevice")


def autoattach_preferences(devices: Object, preferred: Object) -> None:
    """Which devices are attached unasked."""
    for device in _AUTOATTACH:
        _fill(devices, f"autoattach{device}", preferred.get(f"preferredAutoattach{device}"))


def _devices(devices: Object, preferred: Object) -> None:
    _fill(devices, "useVirtioTransitional", preferred.get("preferredUseVirtioTransitional"))
    _fill(devices, "blockMultiQueue", preferred.get("preferredBlockMultiQueue"))
    _fill(devices, "networkInterfaceMultiqueue", preferred.get("preferredNetworkInterfaceMultiQueue"))
    if preferred.get("preferredDisableHotplug") is not None:
        devices["disableHotplug"] = preferred["preferredDisableHotplug"]
    if devices.get("sound") is not None:
        _fill(devices["sound"], "model", preferred.get("preferredSoundModel"))
    _fill(devices, "rng", preferred.get("preferredRng"))
    _fill(devices, "tpm", preferred.get("preferredTPM"))
    autoattach_preferences(devices, preferred)
    if preferred.get("preferredVideoType") and devices.get("autoattachGraphicsDevice") is not False:
        devices["video"] = {"type": preferred["preferredVideoType"]} | (devices.get("video") or {})


def _disks(devices: Object, preferred: Object) -> None:
    for disk in devices.get("disks") or ():
        if preferred and not any(disk.get(target) is not None for target in ("disk", "cdrom", "lun")):
            disk["disk"] = {}
        if disk.get("disk") is not None:
            _hard_disk(disk, preferred)
        elif disk.get("cdrom") is not None:
            _fill(disk["cdrom"], "bus", preferred.get("preferredCdromBus"))
        elif disk.get("lun") is not None:
            _fill(disk["lun"], "bus", preferred.get("preferredLunBus"))


def _hard_disk(disk: Object, preferred: Object) -> None:
    _fill(disk["disk"], "bus", preferred.get("preferredDiskBus"))
    _fill(disk, "blockSize", preferred.get("preferredDiskBlockSize"))
    _fill(disk, "cache", preferred.get("preferredDiskCache"))
    _fill(disk, "io", preferred.get("preferredDiskIO"))
    if disk["disk"].get("bus") == "virtio":
        _fill(disk, "dedicatedIOThread", preferred.get("preferredDiskDedicatedIoThread"))


_BINDINGS = ("bridge", "masquerade", "sriov", "passtBinding", "slirp", "macvtap", "passt", "binding")


def _interfaces(devices: Object, preferred: Object, networks: list[Object]) -> None:
    on_pod_network = {network["name"] for network in networks if network.get("pod") is not None}
    for interface in devices.get("interfaces") or ():
        _fill(interface, "model", preferred.get("preferredInterfaceModel"))
        unbound = not any(interface.get(binding) is not None for binding in _BINDINGS)
        if unbound and interface["name"] in on_pod_network:
            _fill(interface, "masquerade", preferred.get("preferredInterfaceMasquerade"))


def _inputs_and_gpus(devices: Object, preferred: Object) -> None:
    for device in devices.get("inputs") or ():
        _fill(device, "bus", preferred.get("preferredInputBus"))
        _fill(device, "type", preferred.get("preferredInputType"))
    for gpu in devices.get("gpus") or ():
        _fill(gpu, "virtualGPUOptions", preferred.get("preferredVirtualGPUOptions"))


def _panic_devices(devices: Object, preferred: Object) -> None:
    model = preferred.get("preferredPanicDeviceModel")
    if model is None:
        return
    devices["panicDevices"] = devices.get("panicDevices") or [{}]
    for device in devices["panicDevices"]:
        _fill(device, "model", model)


def _features(domain: Object, preferred: Object) -> None:
    if not preferred:
        return
    features = domain["features"] = dict(domain.get("features") or {})
    if preferred.get("preferredAcpi") is not None:
        features["acpi"] = preferred["preferredAcpi"]
    for name in ("apic", "kvm", "pvspinlock", "smm"):
        _fill(features, name, preferred.get("preferred" + name.capitalize()))
    if preferred.get("preferredHyperv") is None or (features.get("hypervPassthrough") or {}).get("enabled"):
        return
    features["hyperv"] = {**preferred["preferredHyperv"], **(features.get("hyperv") or {})}


def _firmware(domain: Object, preferred: Object) -> None:
    own = domain.get("firmware") or {}
    bootloader: Object = {key: dict(value) for key, value in (own.get("bootloader") or {}).items() if value is not None}
    undecided = "bios" not in bootloader and "efi" not in bootloader
    if undecided and preferred.get("preferredUseBios"):
        bootloader["bios"] = {}
        undecided = False
    if "bios" in bootloader:
        _fill(bootloader["bios"], "useSerial", preferred.get("preferredUseBiosSerial"))
    elif undecided and preferred.get("preferredEfi") is not None:
        bootloader["efi"] = dict(preferred["preferredEfi"])
    else:
        if undecided and preferred.get("preferredUseEfi"):
            bootloader["efi"] = {}
        if "efi" in bootloader:
            _fill(bootloader["efi"], "secureBoot", preferred.get("preferredUseSecureBoot"))
    if bootloader:
        domain["firmware"] = {**own, "bootloader": bootloader}


def _clock(domain: Object, preferred: Object) -> None:
    if not preferred:
        return
    clock = domain["clock"] = dict(domain.get("clock") or {})
    offset = preferred.get("preferredClockOffset")
    # An offset is taken whole or not at all: half of each would name a time that nobody meant.
    if offset is not None and clock.get("utc") is None and clock.get("timezone") is None:
        clock |= offset
    _fill(clock, "timer", preferred.get("preferredTimer"))
