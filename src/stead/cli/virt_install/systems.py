"""The guest's system: from an id of libosinfo to one of the shipped preferences. Pure.

Ids are libosinfo's short ids (osinfo-query os); preferences are those of `stead.kinds.catalogue`.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from stead.cli.virt_install.suboptions import Given, Refusal
from stead.kinds.catalogue import cluster_preferences

DEFAULT = "linux"
#: patterns of short ids → preference; the first that fits wins
_PATTERNS = tuple(
    (re.compile(pattern), preference)
    for pattern, preference in (
        (r"ubuntu.*", "ubuntu"),
        (r"linuxmint.*|pop.?os.*", "ubuntu"),
        (r"debian.*", "debian"),
        (r"fedora.*|silverblue.*", "fedora"),
        (r"centos-?stream10", "centos.stream10"),
        (r"centos-?stream9", "centos.stream9"),
        (r"rhel-?(10|10\..*|10-unknown)", "rhel.10"),
        (r"(almalinux|rocky|circle)10.*", "rhel.10"),
        (r"rhel-?(9|9\..*|9-unknown)", "rhel.9"),
        (r"(almalinux|rocky|circle)9.*", "rhel.9"),
        (r"rhel-?(8|8\..*|8-unknown)", "rhel.8"),
        (r"(almalinux|rocky|circle|centos|eurolinux)8.*|centos-stream8", "rhel.8"),
        (r"rhel-?7.*|centos7.*|scientificlinux7.*", "rhel.7"),
        (r"ol\d.*|oraclelinux.*", "oraclelinux"),
        (r"opensusetumbleweed|opensuse-?factory", "opensuse.tumbleweed"),
        (r"opensuse.*", "opensuse.leap"),
        (r"sle[sd]?[-\d].*|slem.*|sl-micro.*", "sles"),
        (r"alpinelinux.*", "alpine"),
        (r"cirros.*", "cirros"),
        (r"win11.*", "windows.11"),
        (r"win10.*", "windows.10"),
        (r"win8.*|win7", "windows.7"),
        (r"winxp.*", "windows.xp"),
        (r"win2k25", "windows.2k25"),
        (r"win2k22", "windows.2k22"),
        (r"win2k19", "windows.2k19"),
        (r"win2k16", "windows.2k16"),
        (r"win2k12.*", "windows.2k12"),
        (r"win2k8.*", "windows.2k8"),
        (r"win2k3.*", "windows.2k3"),
        (r"linux20\d\d|archlinux.*|gentoo.*|voidlinux.*|nixos.*|mageia.*|manjaro.*|cachyos.*|generic-?linux", "linux"),
        (r"linux|guix.*|slackware.*|altlinux.*|asianux.*|mandriva.*", "linux"),
        (r"generic|unknown|freedos.*|freebsd.*|openbsd.*|netbsd.*|dragonfly.*|haiku.*", "legacy"),
    )
)


@functools.cache
def preferences() -> dict[str, Any]:
    """Names of all shipped preferences → their specs."""
    return {str(item["metadata"]["name"]): item["spec"] for item in cluster_preferences()}


def preference_of(system: str) -> str:
    """The preference for an id of libosinfo, a URL of libosinfo, or a preference's own name; "" when unknown."""
    name = system.strip()
    if name in preferences():
        return name
    short = re.sub(r"^https?://[^/]+/", "", name.lower()).replace("/", "") if "://" in name else name.lower()
    short = {"win2k12r2": "win2k12", "win2k8r2": "win2k8"}.get(short, short)
    return next((preference for pattern, preference in _PATTERNS if pattern.fullmatch(short)), "")


def chosen(given: Given | None, detected: str) -> tuple[str, str]:
    """(preference, warning) by --osinfo and what a tree or image told. Raises Refusal."""
    name = given.get("name") if given else ""
    if name == "none":
        return "legacy", ""
    if name and name not in ("detect", "require"):
        found = preference_of(name)
        if found:
            return found, ""
        return DEFAULT, f"--osinfo {name[:60]} is not known; the preference {DEFAULT} is used"
    found = preference_of(detected) if detected else ""
    if found:
        return found, ""
    if given and given.switch("require"):
        raise Refusal("--osinfo require=on: the guest's system was not detected; name it with --osinfo NAME")
    if given and given.switch("require") is False:
        return DEFAULT, ""
    return DEFAULT, f"the guest's system is not known; the preference {DEFAULT} is used (name it with --osinfo NAME)"


def wants_efi(preference: str) -> bool:
    """Whether a shipped preference asks for UEFI."""
    return "preferredEfi" in (preferences().get(preference, {}).get("firmware") or {})


def needs_of(preference: str) -> tuple[str, int]:
    """(memory as a quantity, CPUs) that a shipped preference requires; ("", 0) where it requires nothing."""
    needs = preferences().get(preference, {}).get("requirements") or {}
    return str((needs.get("memory") or {}).get("guest") or ""), int((needs.get("cpu") or {}).get("guest") or 0)


def topology_of(preference: str) -> str:
    """sockets, cores, threads, spread or any: what a shipped preference makes of a number of CPUs; "" = nothing."""
    return str((preferences().get(preference, {}).get("cpu") or {}).get("preferredCPUTopology", ""))
