"""What a PersistentVolumeClaim says about its volume: host, source, transfer, size. Pure; used by `agent/volumes.py`.

The annotations are the contract with `controllers/volumes.py` and `controllers/disk.py`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

from stead.kube.quantity import parse

Object = dict[str, Any]

SELECTED_NODE = "volume.kubernetes.io/selected-node"
#: name of the disk in the pool's folder, and the format of a blank or existing one (raw when absent)
FILE, FORMAT = "stead.io/file", "stead.io/format"
SOURCE, TRANSFER, HANDLE = "stead.io/source", "stead.io/transfer", "stead.io/volume-handle"
#: on the claim of a scheduled import: the digest that the last one brought, which is not wanted once more
KNOWN_DIGEST = "stead.io/known-digest"
PROTECTION = "kubernetes.io/pvc-protection"
_SUGGESTED = ("instancetype.kubevirt.io/", "cdi.kubevirt.io/")


class Transfer(msgspec.Struct, frozen=True, rename="camel"):
    """`stead.io/transfer`. phase: "" (not begun), Pending, Running, Succeeded, Failed; `virtual_size` in bytes."""

    phase: str = ""
    progress: str = "N/A"
    restarts: int = 0
    reason: str = ""
    message: str = ""
    virtual_size: int = 0


def annotations_of(claim: Object) -> dict[str, str]:
    """The claim's annotations."""
    return claim["metadata"].get("annotations") or {}


def node_of(claim: Object) -> str:
    """The host the volume was given to, or ""."""
    return annotations_of(claim).get(SELECTED_NODE, "")


def handle_of(claim: Object) -> str:
    """`pool-uid/volume-uid` once written, else ""."""
    return annotations_of(claim).get(HANDLE, "")


def is_protected(claim: Object) -> bool:
    """Whether a machine still uses the claim that is being deleted."""
    return PROTECTION in (claim["metadata"].get("finalizers") or [])


def source_of(claim: Object | None) -> Object | None:
    """The source as the DataVolume controller resolved it; None for a blank volume."""
    text = annotations_of(claim).get(SOURCE, "") if claim else ""
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        return {"kind": "invalid"}


def transfer_of(claim: Object) -> Transfer:
    """How far the transfer is; an unreadable annotation counts as not begun."""
    try:
        return msgspec.json.decode(annotations_of(claim).get(TRANSFER, "{}"), type=Transfer)
    except msgspec.DecodeError:
        return Transfer()


def requested_bytes(claim: Object) -> int:
    """The size asked for; 0 when it says none."""
    requests = (claim["spec"].get("resources") or {}).get("requests") or {}
    try:
        return int(parse(requests.get("storage", 0)))
    except ValueError:
        return 0


def secret_data(secret: Object) -> dict[str, str]:
    """A Secret's values as text; those that are not base64 of UTF-8 are left out."""
    found = {}
    for name, value in (secret.get("data") or {}).items():
        try:
            found[name] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            continue
    return found


def suggested_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Of an image's labels, those that a claim takes over (defaults for instancetype and preference)."""
    return {k: v for k, v in labels.items() if k.startswith(_SUGGESTED) and len(v) <= 63}
