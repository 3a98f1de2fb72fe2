"""Rules about machine type, boot loader, kernel boot and ACPI tables of a machine's spec.

Texts and field paths are KubeVirt's (notes 6.2, 26-28). `field` is the path of the spec. Pure.
"""

from __future__ import annotations

from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import Json
from stead.server.admission.findings import REQUIRED, Findings


def check_machine_type(field: str, spec: Json, cluster: Cluster, findings: Findings) -> None:
    """The machine type is one that the cluster emulates."""
    machine_type = (spec["domain"].get("machine") or {}).get("type")
    architecture = str(spec.get("architecture") or cluster.architecture)
    if not machine_type or cluster.is_emulated_machine(architecture, machine_type):
        return
    allowed = " ".join(cluster.emulated_machines(architecture))
    here = f"{field}.domain.machine.type"
    findings.add(here, f"{here} is not supported: {machine_type} (allowed values: [{allowed}])")


def check_acpi(field: str, spec: Json, findings: Findings) -> None:
    """ACPI tables come from secret volumes."""
    acpi = (spec["domain"].get("firmware") or {}).get("acpi")
    if acpi is None:
        return
    here = f"{field}.acpi"
    volumes = {v.get("name"): v for v in spec.get("volumes") or ()}
    named = [key for key in ("slicNameRef", "msdmNameRef") if acpi.get(key)]
    if not named:
        findings.add(here, "ACPI was set but no SLIC nor MSDM volume reference was set")
    for key in named:
        volume = volumes.get(acpi[key])
        if volume is None:
            findings.add(f"{here}.{key}", f"{here} does not have a matching Volume.")
        elif volume.get("secret") is None:
            findings.add(f"{here}.{key}", f"{here} refers to Volume of unsupported type.")


def check_firmware(field: str, spec: Json, findings: Findings) -> None:
    """Boot loader and kernel boot."""
    domain: Json = spec["domain"]
    firmware: Json = domain.get("firmware") or {}
    here = f"{field}.domain.firmware"
    bootloader: Json = firmware.get("bootloader") or {}
    efi = bootloader.get("efi")
    if efi is not None and bootloader.get("bios") is not None:
        where = f"{here}.bootloader"
        text = f"{where} has both EFI and BIOS configured, but they are mutually exclusive."
        findings.add(f"{where}.efi", text)
    smm = (domain.get("features") or {}).get("smm")
    has_smm = smm is not None and smm.get("enabled") is not False
    if efi is not None and efi.get("secureBoot") is not False and not has_smm:
        where = f"{field}.domain"
        text = f"{where} has EFI SecureBoot enabled. SecureBoot requires SMM, which is currently disabled."
        findings.add(where, text)
    boot = firmware.get("kernelBoot")
    if boot is not None:
        _check_kernel_boot(f"{here}.kernelBoot", boot, findings)


def _check_kernel_boot(here: str, boot: Json, findings: Findings) -> None:
    container = boot.get("container")
    if container is None:
        if boot.get("kernelArgs"):
            text = "kernel arguments cannot be provided without an external kernel"
            findings.add(f"{here}.kernelArgs", text)
        return
    where = f"{here}.container"
    if not container.get("image"):
        findings.add(f"{where}.image", f"{where} must be defined with an image", REQUIRED)
    if not container.get("initrdPath") and not container.get("kernelPath"):
        text = f"{where} must be defined with at least one of the following: kernelPath, initrdPath"
        findings.add(where, text, REQUIRED)
    elif boot.get("kernelArgs") and not container.get("kernelPath"):
        text = "kernel arguments cannot be provided without an external kernel"
        findings.add(f"{here}.kernelArgs", text)
