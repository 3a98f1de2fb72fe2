"""Bodies that kubectl 1.32 really sent, and bodies that nobody should send."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from stead.kube.errors import ApiError
from stead.kube.protobuf import MAGIC, decode

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "kubectl_protobuf.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=[c["name"] for c in GOLDEN])
def test_kubectl_bodies(case: dict[str, Any]) -> None:
    """The objects were checked against `kubectl create … --dry-run=client -o json` when they were recorded."""
    assert decode(base64.b64decode(case["body"])) == case["object"]


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def body(api_version: str, kind: str, raw: bytes) -> bytes:
    return MAGIC + field(1, field(1, api_version.encode()) + field(2, kind.encode())) + field(2, raw)


def test_special_types() -> None:
    time = field(1, 1767225600) + field(2, 123456789)
    spec = field(1, b"holder") + field(2, 15) + field(3, time)
    lease = decode(body("coordination.k8s.io/v1", "Lease", field(1, field(1, b"l")) + field(2, spec)))
    assert lease["spec"] == {
        "holderIdentity": "holder", "leaseDurationSeconds": 15, "acquireTime": "2026-01-01T00:00:00.123456Z",
    }  # fmt: skip
    revision = decode(body("apps/v1", "ControllerRevision", field(2, field(1, b'{"a":1}')) + field(3, 7)))
    assert (revision["data"], revision["revision"]) == ({"a": 1}, 7)


def test_pointers_keep_zeros_and_plain_fields_drop_them() -> None:
    options = decode(body("anything/v9", "DeleteOptions", field(1, 0) + field(3, 0) + field(5, b"All")))
    assert options == {
        "apiVersion": "anything/v9", "kind": "DeleteOptions",
        "gracePeriodSeconds": 0, "orphanDependents": False, "dryRun": ["All"],
    }  # fmt: skip
    negative = decode(body("v1", "DeleteOptions", field(1, -1)))
    assert negative["gracePeriodSeconds"] == -1
    assert decode(body("v1", "Secret", field(3, b""))) == {"apiVersion": "v1", "kind": "Secret"}


def test_inlined_structs_and_unknown_fields() -> None:
    csi = field(22, field(1, b"stead.io") + field(2, b"h"))
    volume = field(1, field(1, b"pv")) + field(2, field(2, csi)) + field(99, 5)
    spec = decode(body("v1", "PersistentVolume", volume))["spec"]
    assert spec["csi"]["driver"] == "stead.io"
    assert spec["csi"]["volumeHandle"] == "h"


def test_kinds_that_are_not_built_in_are_refused() -> None:
    with pytest.raises(ApiError) as caught:
        decode(body("kubevirt.io/v1", "VirtualMachine", b""))
    assert caught.value.code == 415


@pytest.mark.parametrize(
    "data",
    [
        b"", b"k8s", b"{}", MAGIC + b"\xff" * 12, MAGIC + field(1, b"\x0a\xff"), MAGIC + b"\x12\xff\xff\xff\xff\x0f",
        body("v1", "Secret", field(2, 5)), body("v1", "Secret", b"\x0b"),
        body("v1", "ConfigMap", field(1, field(1, b"\xff"))),
        body("v1", "ConfigMap", field(2, field(1, b"k") + field(2, b"\xff"))),
        body("coordination.k8s.io/v1", "Lease", field(2, field(3, field(1, 2**62)))),
    ],
)  # fmt: skip
def test_bad_bytes_are_400(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        decode(data)
    assert caught.value.code in {400, 415}
