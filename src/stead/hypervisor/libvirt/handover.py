"""The domain as the target of a live migration is to have it: the source's own description with the target's places.

Pure; called by the driver at the source. What the guest sees (devices, their addresses, models, sizes) stays word for
word, since QEMU's state fits nothing else; what belongs to a host (paths, user, tap, our mark) is taken from the
`Machine` that the target prepared. Source: libvirt's domain format and VIR_MIGRATE_PARAM_DEST_XML (9.0).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from stead.hypervisor.contract import Failed, Machine
from stead.hypervisor.libvirt.devices import disk_targets
from stead.hypervisor.libvirt.xml import domain_xml

#: children of a device that say where on the host it is
_PLACES: dict[str, tuple[str, ...]] = {
    "disk": ("source", "backingStore"),
    "interface": ("source", "target"),
    "serial": ("source", "log"),
    "console": ("source", "log"),
    "graphics": ("listen",),
    "tpm": ("backend",),
    "vsock": ("cid",),
    "redirdev": ("source",),
}
#: children of <os> that are files of the host
_FILES = ("loader", "nvram", "kernel", "initrd", "acpi")


def arriving_xml(leaving: str, machine: Machine) -> str:
    """`leaving` is the source's migratable description. Raises Failed when the two are not the same machine."""
    domain = ET.fromstring(leaving)  # noqa: S314  # from libvirt itself
    planned = ET.fromstring(domain_xml(machine))  # noqa: S314  # ours
    _replace(domain, planned, "metadata")
    # A limit in the definition would also let QEMU lock that much memory (see `xml.py`): it is set after the arrival.
    for own in (*domain.findall("seclabel"), *domain.findall("memtune"), *domain.findall("resource")):
        domain.remove(own)
    domain.extend(planned.findall("resource"))
    domain.extend(planned.findall("seclabel"))
    here, there = domain.find("os"), planned.find("os")
    if here is not None and there is not None:
        for tag in _FILES:
            if there.find(tag) is not None:
                _replace(here, there, tag)
    for kind, places in _PLACES.items():
        _move_devices(domain, planned, kind, places)
    return ET.tostring(domain, encoding="unicode")


def _move_devices(domain: ET.Element, planned: ET.Element, kind: str, places: tuple[str, ...]) -> None:
    mine, theirs = domain.findall(f"devices/{kind}"), planned.findall(f"devices/{kind}")
    if len(mine) != len(theirs):
        raise Failed(f"migrate: the machine has {len(mine)} {kind} devices, the target prepared {len(theirs)}")
    by_alias = {_alias(device): device for device in theirs if _alias(device)}
    for index, device in enumerate(mine):
        found = by_alias.get(_alias(device)) if by_alias else theirs[index]
        if found is None:
            raise Failed(f"migrate: the target has not prepared {kind} {_alias(device)}")
        for place in places:
            _replace(device, found, place)
        device.attrib.pop("socket", None)  # of graphics: libvirt repeats there what <listen> says


def _alias(device: ET.Element) -> str:
    alias = device.find("alias")
    name = "" if alias is None else alias.get("name", "")
    return name if name.startswith("ua-") else ""


def _replace(mine: ET.Element, theirs: ET.Element, tag: str) -> None:
    """Put their children of that name where ours are."""
    found = list(mine)
    place = next((at for at, child in enumerate(found) if child.tag == tag), len(found))
    for child in mine.findall(tag):
        mine.remove(child)
    for offset, child in enumerate(theirs.findall(tag)):
        mine.insert(place + offset, child)


def copied_targets(machine: Machine, names: tuple[str, ...]) -> list[str]:
    """libvirt's names (`vda`) of the disks whose content goes along."""
    targets = disk_targets(machine)
    return [targets[name] for name in names]
