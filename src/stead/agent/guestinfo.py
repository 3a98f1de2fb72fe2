"""What the guest tells through its agent, parsed: pure functions from QEMU guest agent answers to KubeVirt's shapes.

`guest.py` asks, this module reads, `status.py` and the agent's API show. Everything here comes from inside a guest
and is hostile: lists and strings are cut to bounds, other types than expected are dropped. Shapes: `kubevirt.io/v1`
VirtualMachineInstanceGuestAgentInfo, …GuestOSUserList, …FileSystemList; QEMU's `qga/qapi-schema.json`.
"""

from __future__ import annotations

from typing import Any

import msgspec

Object = dict[str, Any]

MAX_ENTRIES = 256
MAX_TEXT = 256


class GuestInterface(msgspec.Struct, frozen=True, kw_only=True):
    """One link in the guest; addresses without prefix length, IPv4 first, link-local IPv6 left out."""

    name: str
    mac: str
    addresses: tuple[str, ...] = ()


class GuestInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The last that is known; empty where the guest has not answered. Replaced, never changed."""

    version: str = ""
    commands: tuple[str, ...] = ()
    hostname: str = ""
    os: dict[str, str] = {}
    timezone: str = ""
    interfaces: tuple[GuestInterface, ...] = ()
    users: tuple[Object, ...] = ()
    filesystems: tuple[Object, ...] = ()
    load: tuple[float, ...] = ()


def _text(value: Any) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else ""


def _entries(value: Any) -> list[Object]:
    return [entry for entry in value[:MAX_ENTRIES] if isinstance(entry, dict)] if isinstance(value, list) else []


def _number(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0


def os_from(answer: Any) -> dict[str, str]:
    """`guest-get-osinfo` → `status.guestOSInfo` (keys name, id, version, versionId, prettyName, kernelRelease, …)."""
    if not isinstance(answer, dict):
        return {}
    fields = {
        "name": "name", "id": "id", "version": "version", "versionId": "version-id", "prettyName": "pretty-name",
        "kernelRelease": "kernel-release", "kernelVersion": "kernel-version", "machine": "machine",
    }  # fmt: skip
    return {ours: _text(answer.get(theirs)) for ours, theirs in fields.items() if _text(answer.get(theirs))}


def commands_from(answer: Any) -> tuple[str, tuple[str, ...]]:
    """`guest-info` → (version, enabled commands)."""
    if not isinstance(answer, dict):
        return "", ()
    commands = answer.get("supported_commands")
    listed = [c for c in commands[:512] if isinstance(c, dict)] if isinstance(commands, list) else []
    return _text(answer.get("version")), tuple(_text(c.get("name")) for c in listed if c.get("enabled"))


def interfaces_from(answer: Any) -> tuple[GuestInterface, ...]:
    """`guest-network-get-interfaces` without the loopback."""
    found: list[GuestInterface] = []
    for link in _entries(answer):
        name = _text(link.get("name"))
        if not name or name == "lo":
            continue
        listed = _entries(link.get("ip-addresses"))
        addresses = [(_text(a.get("ip-address-type")), _text(a.get("ip-address"))) for a in listed]
        kept = [a for kind, a in addresses if a and not (kind == "ipv6" and a.lower().startswith("fe80:"))]
        kept.sort(key=lambda address: ":" in address)
        found.append(
            GuestInterface(name=name, mac=_text(link.get("hardware-address")).lower(), addresses=tuple(kept[:32]))
        )
    return tuple(found)


def users_from(answer: Any) -> tuple[Object, ...]:
    """`guest-get-users` → items of the user list (userName, domain, loginTime in seconds)."""
    return tuple(
        {
            "userName": _text(u.get("user")),
            "domain": _text(u.get("domain")),
            "loginTime": float(_number(u.get("login-time"))),
        }
        for u in _entries(answer)
    )


def filesystems_from(answer: Any) -> tuple[Object, ...]:
    """`guest-get-fsinfo` → items of the file system list, with the disks behind each."""
    return tuple(
        {
            "diskName": _text(fs.get("name")),
            "mountPoint": _text(fs.get("mountpoint")),
            "fileSystemType": _text(fs.get("type")),
            "usedBytes": _number(fs.get("used-bytes")),
            "totalBytes": _number(fs.get("total-bytes")),
            "disk": [
                {"serial": _text(disk.get("serial")), "busType": _text(disk.get("bus-type"))}
                for disk in _entries(fs.get("disk"))
            ],
        }
        for fs in _entries(answer)
    )


def agent_info(info: GuestInfo, frozen: bool) -> Object:
    """The body of the subresource `guestosinfo`."""
    return {
        "apiVersion": "subresources.kubevirt.io/v1",
        "kind": "VirtualMachineInstanceGuestAgentInfo",
        "metadata": {},
        "guestAgentVersion": info.version,
        "supportedCommands": [{"name": name, "enabled": True} for name in info.commands],
        "hostname": info.hostname,
        "os": dict(info.os),
        "timezone": info.timezone,
        "userList": list(info.users[:10]),
        "fsInfo": {"disks": list(info.filesystems[:10])},
        "fsFreezeStatus": "frozen" if frozen else "",
    }


def user_list(info: GuestInfo) -> Object:
    """The body of the subresource `userlist`."""
    kind = "VirtualMachineInstanceGuestOSUserList"
    return {"apiVersion": "subresources.kubevirt.io/v1", "kind": kind, "metadata": {}, "items": list(info.users)}


def filesystem_list(info: GuestInfo) -> Object:
    """The body of the subresource `filesystemlist`."""
    kind = "VirtualMachineInstanceFileSystemList"
    return {"apiVersion": "subresources.kubevirt.io/v1", "kind": kind, "metadata": {}, "items": list(info.filesystems)}
