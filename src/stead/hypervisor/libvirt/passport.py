"""Whether the domain that a migration's source describes is the machine that this host has prepared.

Pure; asked by `gate.py` about every description in a migration's calls. The source writes the description, since what
the guest sees must stay word for word; but root of one host must not reach the files, users and devices of another by
it. So everything that touches the host (paths, interfaces, user, kinds of devices, our mark) must be in the description
of the prepared `Machine`; unknown elements are refused. Source: libvirt's domain format (9.0).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from stead.hypervisor.contract import Machine, Unsupported
from stead.hypervisor.libvirt.xml import domain_xml

#: what libvirt adds to a definition by itself; none of it names anything of the host, or `_HOST` finds it
_ADDED = frozenset((
    "acpi", "address", "alias", "apic", "audio", "backend", "backingStore", "boot", "clock", "console", "controller",
    "cpu", "currentMemory", "devices", "driver", "emulator", "encryption", "feature", "features", "format", "hub",
    "input", "interface", "iothreads", "listen", "log", "maxphysaddr", "memballoon", "memory", "metadata_cache",
    "mirror", "model", "numatune", "on_crash", "on_poweroff", "on_reboot", "os", "panic", "partition", "pm",
    "pmconsole", "rates", "readonly", "resource", "rng", "seclabel", "serial", "smm", "source", "stats",
    "suspend-to-disk", "suspend-to-mem", "target", "timer", "topology", "type", "uuid", "vcpu", "vendor",
    "video", "vmcoreinfo", "vmport", "watchdog"
))  # fmt: skip
#: attributes that name something of the host, whatever their form
_HOST = frozenset(("file", "dev", "dir", "path", "socket", "bridge", "network", "protocol", "host", "service", "uuid"))
_EMULATOR = re.compile(r"/usr/(bin|libexec)/qemu-(system-[a-z0-9_]+|kvm)\Z")
#: devices of these kinds may be there without having been planned: they are the guest's alone
_OF_THE_GUEST = frozenset(
    ("controller", "input", "hub", "audio", "memballoon", "panic", "watchdog", "video", "console")
)
_TYPES = {"input": {"mouse", "keyboard", "tablet"}, "audio": {"none"}}
_KIB = {"b": 1 / 1024, "bytes": 1 / 1024, "k": 1, "KiB": 1, "M": 1024, "MiB": 1024, "G": 1 << 20, "GiB": 1 << 20}


class Passport:
    """Of one machine that is expected."""

    def __init__(self, machine: Machine) -> None:
        self._planned = ET.fromstring(domain_xml(machine))  # noqa: S314  # ours
        self._tags = _ADDED | {element.tag for element in self._planned.iter()}
        self._values = {
            value for element in self._planned.iter() for value in (*element.attrib.values(), _text(element))
        }
        self._kinds = {(d.tag, d.get("type", "")) for d in self._planned.iterfind("devices/*")}

    def check(self, document: str) -> None:
        """Raises Unsupported for a description that is another machine's, or reaches for what was not prepared."""
        if not document.startswith("<domain"):  # no declaration, hence no encoding and no entities either
            raise Unsupported("an arriving machine's description that is none")
        try:
            domain = ET.fromstring(document)  # noqa: S314  # see above
        except ET.ParseError as error:
            raise Unsupported(f"an arriving machine's description: {error}") from error
        self.check_element(domain)

    def check_element(self, domain: ET.Element) -> None:
        """As `check`, of a description that is part of something else."""
        for name in ("uuid", "name", "vcpu"):
            if domain.findtext(name, "").strip() != self._planned.findtext(name, "").strip():
                raise Unsupported(f"an arriving machine's {name} is not as prepared")
        if _kib(domain.find("memory")) > _kib(self._planned.find("memory")):
            raise Unsupported("an arriving machine has more memory than was prepared")
        if _all(domain.findall("metadata")) != _all(self._planned.findall("metadata")):
            raise Unsupported("an arriving machine's mark is not as prepared")
        if _all(domain.findall("seclabel")) != _all(self._planned.findall("seclabel")):
            raise Unsupported("an arriving machine's user is not as prepared")
        for part in domain:
            if part.tag != "metadata":
                for element in part.iter():
                    self._check_one(element)
        for device in domain.iterfind("devices/*"):
            self._check_device(device)

    def _check_one(self, element: ET.Element) -> None:
        if element.tag not in self._tags:
            raise Unsupported(f"an arriving machine has an element {element.tag[:64]} that was not prepared")
        told = [(f"{element.tag}/@{name}", value) for name, value in element.attrib.items()]
        for where, value in (*told, (element.tag, _text(element))):
            if value in self._values or where == "boot/@dev" or (where == "emulator" and _EMULATOR.match(value)):
                continue
            if value.startswith("/") or where.partition("@")[2] in _HOST:
                raise Unsupported(f"an arriving machine's {where[:64]} names {value[:128]!r}, which was not prepared")

    def _check_device(self, device: ET.Element) -> None:
        kind = (device.tag, device.get("type", ""))
        if kind in self._kinds or device.tag == "emulator":
            return
        if device.tag not in _OF_THE_GUEST or kind[1] not in _TYPES.get(device.tag, {kind[1]}):
            raise Unsupported(
                f"an arriving machine has a device {kind[0]} of type {kind[1][:32]!r} that was not prepared"
            )


def _text(element: ET.Element) -> str:
    return (element.text or "").strip()


def _all(elements: list[ET.Element]) -> list[tuple[str, tuple[tuple[str, str], ...], str]]:
    return [(e.tag, tuple(sorted(e.attrib.items())), _text(e)) for root in elements for e in root.iter()]


def _kib(memory: ET.Element | None) -> float:
    """Unknown units count as more than anything."""
    if memory is None or not _text(memory).isdigit():
        return float("inf")
    return int(_text(memory)) * _KIB.get(memory.get("unit", "KiB"), float("inf"))
