"""From the VMI's remaining devices, CPU, firmware, clock and features to the hypervisor's fields. Pure; for
`plan.py`.

Rules follow KubeVirt's converter: vga with BIOS and bochs with EFI, a USB tablet only where asked for, `tpm-tis` for
a volatile TPM and `tpm-crb` for a persistent one, i6300esb on amd64 with action reset.
"""

from __future__ import annotations

from typing import Any

from stead.agent import persistence
from stead.agent import vmi as reading
from stead.agent.prepared import Prepared, Unsupported
from stead.hypervisor.contract import Capabilities, Cpu, Firmware, Graphics, Memory

Object = dict[str, Any]
Attributes = tuple[tuple[str, str], ...]

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64", "s390x": "s390x"}


def architecture(vmi: Object) -> str:
    """The hypervisor's name of the guest's architecture (`spec.architecture`, default amd64)."""
    name = reading.spec(vmi).get("architecture") or "amd64"
    return _ARCHITECTURES.get(name, str(name))


def cpu_from(vmi: Object, capabilities: Capabilities) -> Cpu:
    """Topology and model. Without hardware virtualisation, host models become the best emulated one (`maximum`)."""
    cpu = reading.domain(vmi).get("cpu") or {}
    sockets, cores, threads = reading.topology(vmi)
    wanted = cpu.get("model") or "host-model"
    features = tuple((str(f["name"]), str(f.get("policy") or "require")) for f in cpu.get("features") or [])
    mode, model = wanted, ""
    if wanted in ("host-model", "host-passthrough"):
        mode = "maximum" if capabilities.software_emulation else wanted
    else:
        mode, model = "custom", str(wanted)
        if capabilities.cpu_models and model not in capabilities.cpu_models:
            raise Unsupported("spec.domain.cpu.model", f"this host has no CPU model {model!r}")
    most = int(cpu.get("maxSockets") or 0)
    return Cpu(
        sockets=sockets, cores=cores, threads=threads, max_sockets=most if most > sockets else 0,
        mode=mode, model=model, features=features,
    )  # fmt: skip


def memory_from(vmi: Object) -> Memory:
    """Guest memory. Head-room (`maxGuest`) is a ceiling for later growth and takes nothing now."""
    size = reading.guest_memory(vmi)
    if size <= 0:
        raise Unsupported("spec.domain.memory.guest", "no memory requested")
    pages = ((reading.domain(vmi).get("memory") or {}).get("hugepages") or {}).get("pageSize")
    balloon = reading.devices(vmi).get("autoattachMemBalloon") is not False
    return Memory(size=size, hugepage_size=reading.size_in_bytes(pages) if pages else 0, balloon=balloon and not pages)


def uses_efi(vmi: Object) -> bool:
    """EFI is asked for, or the architecture has nothing else."""
    loader = (reading.domain(vmi).get("firmware") or {}).get("bootloader") or {}
    return "efi" in loader or reading.spec(vmi).get("architecture") == "arm64"


def firmware_from(vmi: Object, prepared: Prepared) -> Firmware:
    """Loader, NVRAM, identity, direct kernel boot and SMBIOS."""
    firmware = reading.domain(vmi).get("firmware") or {}
    loader = firmware.get("bootloader") or {}
    efi = uses_efi(vmi)
    secure = efi and (loader.get("efi") or {}).get("secureBoot") is not False and "efi" in loader
    return Firmware(
        kind="efi" if efi else "bios",
        secure_boot=secure,
        nvram=_nvram(vmi, prepared) if efi else "",
        uuid=str(firmware.get("uuid") or ""),
        serial=str(firmware.get("serial") or ""),
        kernel=prepared.kernel.kernel,
        initrd=prepared.kernel.initrd,
        cmdline=str((firmware.get("kernelBoot") or {}).get("kernelArgs") or ""),
        bios_serial=bool((loader.get("bios") or {}).get("useSerial")),
        acpi_tables=prepared.acpi_tables,
        sysinfo=sysinfo_from(vmi),
    )


def _nvram(vmi: Object, prepared: Prepared) -> str:
    """Where UEFI's variables lie: with the instance, or with what outlives it."""
    folder = prepared.persistent if reading.has_persistent_efi(vmi) else prepared.directory
    return f"{folder}/{persistence.NVRAM}"


def sysinfo_from(vmi: Object) -> Attributes:
    """SMBIOS strings: KubeVirt's system identity, the firmware's serial, the chassis that the user described."""
    entries = [
        ("system.manufacturer", "KubeVirt"),
        ("system.product", "None"),
        ("system.family", "KubeVirt"),
    ]
    chassis = reading.domain(vmi).get("chassis") or {}
    entries += [
        (f"chassis.{field}", str(chassis[field]))
        for field in ("manufacturer", "version", "serial", "asset", "sku")
        if chassis.get(field)
    ]
    return tuple(entries)


def graphics_from(vmi: Object, prepared: Prepared) -> Graphics | None:
    """VNC and video, unless `autoattachGraphicsDevice` is false."""
    if not reading.has_graphics(vmi):
        return None
    video = (reading.devices(vmi).get("video") or {}).get("type")
    return Graphics(vnc_socket=prepared.vnc_socket, video=str(video or ("bochs" if uses_efi(vmi) else "vga")))


def tpm_from(vmi: Object, prepared: Prepared) -> tuple[str, str]:
    """(model, state directory); ("", "") without a TPM."""
    if not reading.has_tpm(vmi):
        return "", ""
    if reading.has_persistent_tpm(vmi):
        return "tpm-crb", f"{prepared.persistent}/{persistence.TPM}"
    return "tpm-tis", ""


def watchdog_from(vmi: Object) -> tuple[str, str] | None:
    """(model, action)."""
    watchdog = reading.devices(vmi).get("watchdog")
    if watchdog is None:
        return None
    for field, model in (("i6300esb", "i6300esb"), ("diag288", "diag288")):
        if field in watchdog:
            return model, str((watchdog[field] or {}).get("action") or "reset")
    return "i6300esb", "reset"


def inputs_from(vmi: Object) -> tuple[tuple[str, str], ...]:
    """(type, bus) of each input device; a USB tablet where `autoattachInputDevice` asks for one."""
    entries = [
        (str(i.get("type") or "tablet"), str(i.get("bus") or "usb")) for i in reading.devices(vmi).get("inputs") or []
    ]
    if not entries and reading.devices(vmi).get("autoattachInputDevice"):
        entries = [("tablet", "usb")]
    return tuple(entries)


def sound_from(vmi: Object) -> str:
    """Model of the sound card: ich9 where the VMI names none."""
    sound = reading.devices(vmi).get("sound")
    return "" if sound is None else str(sound.get("model") or "ich9")


def panic_devices_from(vmi: Object) -> tuple[str, ...]:
    """Models of panic devices."""
    return tuple(str(p.get("model") or "isa") for p in reading.devices(vmi).get("panicDevices") or [])


def clock_from(vmi: Object) -> tuple[str, tuple[tuple[str, Attributes], ...]]:
    """(offset, timers). The offset is `utc`, `variable:<seconds>` or `timezone:<name>`."""
    clock = reading.domain(vmi).get("clock") or {}
    seconds = (clock.get("utc") or {}).get("offsetSeconds")
    offset = "utc"
    if clock.get("timezone"):
        offset = f"timezone:{clock['timezone']}"
    elif seconds:
        offset = f"variable:{int(seconds)}"
    timers: list[tuple[str, Attributes]] = []
    for field, name in (
        ("rtc", "rtc"),
        ("pit", "pit"),
        ("kvm", "kvmclock"),
        ("hpet", "hpet"),
        ("hyperv", "hypervclock"),
    ):
        timer = (clock.get("timer") or {}).get(field)
        if timer is not None:
            timers.append((name, _timer_attributes(timer)))
    return offset, tuple(timers)


def _timer_attributes(timer: Object) -> Attributes:
    pairs: list[tuple[str, str]] = []
    if timer.get("tickPolicy"):
        pairs.append(("tickpolicy", str(timer["tickPolicy"])))
    if timer.get("track"):
        pairs.append(("track", str(timer["track"])))
    if timer.get("present") is not None:
        pairs.append(("present", "yes" if timer["present"] else "no"))
    return tuple(pairs)


def features_from(vmi: Object) -> tuple[tuple[str, Attributes], ...]:
    """Features that are switched: `acpi`, `apic`, `smm`, `pvspinlock`, `kvm.hidden`, `hyperv.<name>`, with
    attributes.
    """
    features = reading.domain(vmi).get("features") or {}
    chosen: list[tuple[str, Attributes]] = []
    if reading.has_acpi(vmi):
        chosen.append(("acpi", ()))
    apic = features.get("apic")
    if apic is not None and apic.get("enabled", True) is not False:
        chosen.append(("apic", (("eoi", "on"),) if apic.get("endOfInterrupt") else ()))
    if (features.get("smm") or {}).get("enabled", "smm" in features):
        chosen.append(("smm", (("state", "on"),)))
    if "pvspinlock" in features:
        state = "off" if (features["pvspinlock"] or {}).get("enabled") is False else "on"
        chosen.append(("pvspinlock", (("state", state),)))
    if (features.get("kvm") or {}).get("hidden"):
        chosen.append(("kvm.hidden", (("state", "on"),)))
    if (features.get("hypervPassthrough") or {}).get("enabled"):
        chosen.append(("hyperv", (("mode", "passthrough"),)))
    for name, body in (features.get("hyperv") or {}).items():
        chosen += _hyperv(_HYPERV_NAMES.get(name.lower(), name.lower()), body or {})
    return tuple(chosen)


#: the hypervisor's names where they differ from KubeVirt's
_HYPERV_NAMES = {"synictimer": "stimer", "vendorid": "vendor_id"}


def _hyperv(name: str, body: Object) -> list[tuple[str, Attributes]]:
    """One enlightenment with its inner switches (`stimer.direct`, `tlbflush.direct`, `tlbflush.extended`)."""
    pairs: list[tuple[str, str]] = [("state", _switch(body))]
    if body.get("spinlocks") is not None:
        pairs.append(("retries", str(body["spinlocks"])))
    if body.get("vendorid"):
        pairs.append(("value", str(body["vendorid"])))
    chosen: list[tuple[str, Attributes]] = [(f"hyperv.{name}", tuple(pairs))]
    for field in ("direct", "extended"):
        if body.get(field) is not None:
            chosen.append((f"hyperv.{name}.{field}", (("state", _switch(body[field])),)))
    return chosen


def _switch(body: Object) -> str:
    return "off" if body.get("enabled") is False else "on"
