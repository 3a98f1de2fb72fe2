"""Which file a machine's UEFI variables are made from: QEMU's firmware descriptors, read as libvirt reads them.

libvirt chooses the firmware by the same descriptors when the machine starts, but would make the variables' file for its
default user; the driver makes it for the machine's own. `choose_template` is pure, `read_descriptors` blocks for a few
small files. Source: firmware.json of QEMU's interop documents; the first match by file name wins.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stead.hypervisor.contract import Machine

# An administrator's file hides the distribution's of the same name.
FOLDERS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))


def read_descriptors(folders: Iterable[Path] = FOLDERS) -> list[dict[str, Any]]:
    """All descriptors in the order in which they are tried; unreadable ones are left out."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            if path.name in found:
                continue
            try:
                found[path.name] = json.loads(path.read_bytes())
            except (OSError, ValueError):
                continue
    return [found[name] for name in sorted(found)]


def choose_template(machine: Machine, descriptors: Iterable[dict[str, Any]]) -> str:
    """Path of the variables' template for this machine; empty when no firmware fits."""
    secure = machine.firmware.secure_boot
    kind = machine.machine_type if machine.machine_type.startswith("pc-") else f"pc-{machine.machine_type}-0"
    for descriptor in descriptors:
        mapping, features = descriptor.get("mapping", {}), descriptor.get("features", [])
        if "uefi" not in descriptor.get("interface-types", []) or mapping.get("device") != "flash":
            continue
        if ("secure-boot" in features) != secure or ("enrolled-keys" in features) != secure:
            continue
        for target in descriptor.get("targets", []):
            if target.get("architecture") == machine.architecture and any(
                fnmatch.fnmatch(kind, pattern) for pattern in target.get("machines", [])
            ):
                return str(mapping.get("nvram-template", {}).get("filename", ""))
    return ""
