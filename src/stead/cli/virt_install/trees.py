"""Where installers lie below the URL of a tree, and what a tree says about itself. Pure; see `cli.installer_tree`.

Layouts are those that virt-install knows: Debian and Ubuntu netboot folders, Fedora and RHEL (`images/pxeboot`,
.treeinfo), SUSE (`boot/x86_64/loader`), and live images of Ubuntu and Debian.
"""

from __future__ import annotations

import configparser
import re
from urllib.parse import urlsplit

from stead.cli.virt_install.plan import Tree
from stead.cli.virt_install.suboptions import Given, Refusal

TREEINFO = (".treeinfo", "treeinfo")
_DEBIAN = tuple(
    (f"{prefix}{folder}-installer/amd64/linux", f"{prefix}{folder}-installer/amd64/initrd.gz")
    for folder in ("debian", "ubuntu")
    for prefix in (
        "current/images/netboot/", "current/legacy-images/netboot/", "images/netboot/", "netboot/",
        "legacy-images/netboot/",
        "install/netboot/", "",
    )
)  # fmt: skip
#: (kernel, initrd) below the URL → family; tried in this order
LAYOUTS = (
    *((pair, "debian") for pair in _DEBIAN),
    (("linux", "initrd.gz"), "debian"),
    (("install.amd/vmlinuz", "install.amd/initrd.gz"), "debian"),
    (("netboot/amd64/linux", "netboot/amd64/initrd"), "debian"),
    (("casper/vmlinuz", "casper/initrd"), "debian"),
    (("images/pxeboot/vmlinuz", "images/pxeboot/initrd.img"), "fedora"),
    (("boot/x86_64/loader/linux", "boot/x86_64/loader/initrd"), "suse"),
    (("boot/vmlinuz-virt", "boot/initramfs-virt"), ""),
)
_RELEASES = {
    "noble": "ubuntu24.04", "jammy": "ubuntu22.04", "focal": "ubuntu20.04", "bionic": "ubuntu18.04",
    "buster": "debian10", "bullseye": "debian11", "bookworm": "debian12", "trixie": "debian13",
}  # fmt: skip


def base_url(given: Given) -> str:
    """The tree's URL without a final slash. Raises Refusal for what cannot be a tree."""
    url = given.get("url")
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        raise Refusal(f"--location {url[:120]}: this is no URL") from None
    del port
    if not scheme and url.startswith(("/", ".")):
        raise Refusal(f"--location {url[:120]}: the URL of a tree is meant; use --cdrom {url[:120]} for an ISO file")
    if scheme not in ("http", "https") or not host:
        raise Refusal(f"--location {url[:120]}: an http or https URL is meant")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise Refusal(f"--location {url[:120]}: a plain URL without user, password, query and fragment is meant")
    if re.search(r"[\s\x00-\x1f]", url):
        raise Refusal(f"--location {url[:120]!r}: the URL holds blanks")
    return url.rstrip("/")


def named(given: Given) -> tuple[str, str] | None:
    """Kernel and initrd that the line names itself. Raises Refusal."""
    kernel, initrd = given.get("kernel"), given.get("initrd")
    if not kernel and not initrd:
        return None
    if not kernel or not initrd:
        raise Refusal("--location kernel= and initrd= go together")
    for path in (kernel, initrd):
        if not is_path(path.lstrip("/")):
            raise Refusal(f"--location {path[:80]}: a path below the URL is meant")
    return kernel.lstrip("/"), initrd.lstrip("/")


def is_path(path: str) -> bool:
    """Whether this is a plain path below a URL."""
    return bool(re.fullmatch(r"[A-Za-z0-9_.+~-]+(/[A-Za-z0-9_.+~-]+)*", path)) and ".." not in path.split("/")


def from_treeinfo(url: str, text: str) -> Tree | None:
    """What .treeinfo says: kernel, initrd, family and version of a Fedora, RHEL or openSUSE tree; None if unusable."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text[:65536])
    except configparser.Error:
        return None
    section = next((name for name in ("images-x86_64", "images-xen") if parser.has_section(name)), "")
    if not section:
        return None
    kernel, initrd = parser.get(section, "kernel", fallback=""), parser.get(section, "initrd", fallback="")
    if not is_path(kernel) or not is_path(initrd):
        return None
    family, version = "", ""
    for place in ("release", "general", "product"):
        family = family or parser.get(place, "name" if place == "release" else "family", fallback="")
        version = version or parser.get(place, "version", fallback="")
    return Tree(url, kernel, initrd, family=_family(family), system=_system(family, version))


def _family(name: str) -> str:
    return "suse" if "suse" in name.lower() else "fedora"


def _system(name: str, version: str) -> str:
    lowered, major = name.lower(), version.partition(".")[0]
    if not major.isdigit() or len(major) > 4:
        return "fedora-unknown" if "fedora" in lowered else ""
    for word, prefix in (
        ("fedora", "fedora"), ("centos stream", "centos-stream"), ("red hat", "rhel"), ("almalinux", "almalinux"),
        ("rocky", "rocky"), ("oracle", "ol"), ("opensuse", "opensuse"), ("centos", "centos"), ("sle", "sle"),
    ):  # fmt: skip
        if word in lowered:
            return f"{prefix}{major}"
    return ""


def system_of_url(url: str) -> str:
    """The release that a Debian or Ubuntu URL names (`…/dists/noble/…`); "" when it names none."""
    found = re.search(r"/dists/([a-z]+)", url)
    if found and found[1] in _RELEASES:
        return _RELEASES[found[1]]
    for word in ("ubuntu", "debian"):
        if f"/{word}" in url:
            return word
    return ""
