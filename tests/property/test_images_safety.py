"""Header checks hold for any bytes: they answer or refuse, never crash, and never let a reference to a file through."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stead.images.safety import MAX_VIRTUAL_BYTES, UnsafeImage, examine, qcow2_header

MAGICS = st.sampled_from([b"QFI\xfb", b"KDMV", b"vhdxfile", b"conectix", b"COWD", b"QED\0", b"\x1f\x8b", b"", b"LUKS"])


@given(MAGICS, st.binary(max_size=4096))
@settings(max_examples=400)
def test_any_bytes_are_answered_or_refused(magic: bytes, rest: bytes) -> None:
    try:
        image = examine(magic + rest, 1 << 40)
    except UnsafeImage as refusal:
        assert str(refusal)  # noqa: PT017  a refusal is one of two right answers
        assert refusal.reason  # noqa: PT017
    else:
        assert image.virtual_bytes <= 1 << 40


def header(**fields: int) -> bytes:
    """A sound version 3 header of a 1 GiB image, but for `fields`."""
    values = {
        "version": 3, "backing_offset": 0, "backing_size": 0, "bits": 16, "size": 1 << 30, "crypt": 0, "l1_entries": 2,
        "l1_offset": 0x30000, "refs": 0x10000, "ref_clusters": 1, "snapshots": 0, "snapshot_offset": 0,
        "incompatible": 0, "compatible": 0, "autoclear": 0, "order": 4, "length": 104,
    } | fields  # fmt: skip
    return struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", *values.values()).ljust(1 << 16, b"\0")


def test_a_sound_header_is_read() -> None:
    assert qcow2_header(header()).virtual_bytes == 1 << 30


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"backing_offset": 512, "backing_size": 10}, "BackingFile"),
        ({"backing_size": 10}, "BackingFile"),
        ({"incompatible": 4}, "DataFile"),
        ({"incompatible": 2}, "MalformedImage"),
        ({"incompatible": 1 << 40}, "MalformedImage"),
        ({"crypt": 1}, "EncryptedImage"),
        ({"crypt": 2}, "EncryptedImage"),
        ({"bits": 30}, "MalformedImage"),
        ({"bits": 0}, "MalformedImage"),
        ({"size": 0}, "MalformedImage"),
        ({"size": MAX_VIRTUAL_BYTES + 1}, "MalformedImage"),
        ({"l1_entries": 0}, "MalformedImage"),
        ({"l1_entries": 0xFFFFFFFF}, "MalformedImage"),
        ({"l1_offset": 77}, "MalformedImage"),
        ({"length": 1 << 20}, "MalformedImage"),
        ({"version": 9}, "MalformedImage"),
    ],
)
def test_each_dangerous_field_is_refused(fields: dict[str, int], reason: str) -> None:
    with pytest.raises(UnsafeImage) as refusal:
        qcow2_header(header(**fields))
    assert refusal.value.reason == reason


@pytest.mark.parametrize(("kind", "reason"), [(0x44415441, "DataFile"), (0xE2792ACA, "BackingFile")])
def test_header_extensions_that_name_files_are_refused(kind: int, reason: str) -> None:
    data = header()
    extension = struct.pack(">II", 0x0803F857, 4) + bytes(8) + struct.pack(">II", kind, 8) + b"/etc/pwd"
    with pytest.raises(UnsafeImage) as refusal:
        qcow2_header(data[:104] + extension + data[104 + len(extension) :])
    assert refusal.value.reason == reason


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1))
def test_whatever_is_let_in_fits_its_tables(size: int, entries: int, offset: int) -> None:
    try:
        found = qcow2_header(header(size=size, l1_entries=entries, l1_offset=offset))
    except UnsafeImage:
        return
    assert found.l1_entries * (1 << (2 * found.cluster_bits - 3)) >= found.virtual_bytes
    assert found.l1_offset % (1 << found.cluster_bits) == 0
