"""Of libvirt's protocol only a migration's calls pass, in whatever pieces they arrive."""

from __future__ import annotations

import struct

import pytest

from stead.hypervisor.contract import Unsupported
from stead.hypervisor.libvirt.gate import Gate

UID = "5969c14a-56f1-450c-b7eb-fb95d6c738f5"


def message(procedure: int, body: bytes = b"", program: int = 0x20008086, kind: int = 0) -> bytes:
    return struct.pack(">7I", 28 + len(body), program, 1, procedure, kind, 0, 0) + body


def test_a_migration_passes_in_pieces() -> None:
    calls = [message(66), message(1, b"x" * 9), message(303, UID.encode() * 3), message(1, program=0x6B656570, kind=2)]
    stream, gate, passed = b"".join(calls), Gate(UID), b""
    for at in range(0, len(stream), 7):
        passed += gate.feed(stream[at : at + 7])
        assert stream.startswith(passed)
    assert passed == stream


@pytest.mark.parametrize(
    "stream",
    [
        message(10),  # domain_create_xml
        message(303, b"d3b07384-d9a0-4c9b-8f3e-000000000000"),  # another machine
        message(2, program=0x20008087),  # the QEMU program: monitor commands
        message(66) + message(11),
        struct.pack(">7I", 1 << 30, 0x20008086, 1, 1, 0, 0, 0),
        struct.pack(">7I", 4, 0x20008086, 1, 1, 0, 0, 0),
    ],
)
def test_nothing_else_does(stream: bytes) -> None:
    with pytest.raises(Unsupported):
        Gate(UID).feed(stream)
