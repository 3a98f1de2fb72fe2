"""Packs and indexes: how granules lie together in a file, and how one is found. Pure.

A pack: magic, salt; records; the list of its granules, sealed; that list's length; magic. Each record is sealed by the
pack's own key with its place in the file as nonce and the granule's name as associated data. An index names packs and
the granules in them; each pack repeats its part, so that an index can be made anew. Names are 32 bytes; numbers are
big-endian. Everything read is bounded: `PACK_LIMIT`, `INDEX_LIMIT`, and places that lie inside the pack.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import zstandard
from cryptography.exceptions import InvalidTag

from stead.storage.backup.keys import SALT_BYTES, TAG_BYTES, BackupError, Keys
from stead.storage.backup.store import content_name

PACK_BYTES = 4 << 20
PACK_LIMIT = 64 << 20
INDEX_LIMIT = 64 << 20
#: granules in one index object
INDEX_GRANULES = 1 << 20
NAME_BYTES = 32
_MAGIC, _END = b"STEADPK1", b"STEADPKE"
_HEAD = len(_MAGIC) + SALT_BYTES
_ENTRY = struct.Struct(">32sII")
_PACK = struct.Struct(">32s32sII")
_ROW = struct.Struct(">32sIII")
_LEVEL = 1


class Entry(msgspec.Struct, frozen=True):
    """One granule in a pack: its name, where its record begins and how long it is."""

    name: bytes
    offset: int
    length: int


class PackInfo(msgspec.Struct, frozen=True):
    """What an index says of a pack. `name` is the object's."""

    name: str
    salt: bytes
    size: int
    entries: tuple[Entry, ...]


def squeeze(data: bytes) -> bytes:
    """A granule as it is sealed: a flag, and the data compressed where that makes it smaller."""
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
    return b"\x01" + packed if len(packed) < len(data) else b"\x00" + data


def unsqueeze(data: bytes, granule_bytes: int) -> bytes:
    """BackupError Damaged for anything but one granule."""
    try:
        if data[:1] == b"\x00":
            plain = data[1:]
        elif data[:1] == b"\x01":
            if zstandard.frame_content_size(data[1:]) > granule_bytes:
                raise BackupError("Damaged", "a granule claims to be larger than granules are")
            plain = zstandard.ZstdDecompressor().decompress(data[1:], max_output_size=granule_bytes)
        else:
            raise BackupError("Damaged", "a granule has an unknown form")
    except zstandard.ZstdError as error:
        raise BackupError("Damaged", "a granule cannot be decompressed") from error
    if len(plain) != granule_bytes:
        raise BackupError("Damaged", f"a granule has {len(plain)} bytes, not {granule_bytes}")
    return plain


class PackBuilder:
    """A pack in the making; one thread."""

    def __init__(self, keys: Keys) -> None:
        self._salt = os.urandom(SALT_BYTES)
        self._keys = keys
        self._cipher = keys.file_cipher("pack", self._salt)
        self._data = bytearray(_MAGIC + self._salt)
        self._entries: list[Entry] = []

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def is_empty(self) -> bool:
        return not self._entries

    def add(self, name: bytes, squeezed: bytes) -> None:
        """Append one granule."""
        offset = len(self._data)
        record = self._cipher.encrypt(_nonce(offset), squeezed, name)
        self._data += record
        self._entries.append(Entry(name, offset, len(record)))

    def finish(self) -> tuple[PackInfo, bytes]:
        """The pack as it is to be stored, and what the index says of it."""
        listed = b"".join(_ENTRY.pack(e.name, e.offset, e.length) for e in self._entries)
        offset = len(self._data)
        sealed = self._cipher.encrypt(_nonce(offset), listed, b"entries")
        self._data += sealed + struct.pack(">I", len(sealed)) + _END
        data = bytes(self._data)
        return PackInfo(content_name("packs", data), self._salt, len(data), tuple(self._entries)), data


def _nonce(offset: int) -> bytes:
    return offset.to_bytes(12, "big")


def read_trailer(keys: Keys, name: str, data: bytes) -> PackInfo:
    """What a whole pack says of itself; BackupError Damaged names it."""
    tail = len(_END) + 4
    if not data.startswith(_MAGIC) or not data.endswith(_END) or len(data) < _HEAD + tail:
        raise BackupError("Damaged", f"{name} is torn: it does not begin and end as a pack")
    length = struct.unpack(">I", data[-tail : -len(_END)])[0]
    start = len(data) - tail - length
    if start < _HEAD:
        raise BackupError("Damaged", f"{name} is damaged: its list of granules does not fit in")
    salt = data[len(_MAGIC) : _HEAD]
    try:
        listed = keys.file_cipher("pack", salt).decrypt(_nonce(start), data[start : start + length], b"entries")
    except InvalidTag as error:
        raise BackupError("Damaged", f"{name} is damaged: the seal of its list does not hold") from error
    entries = tuple(Entry(*fields) for fields in _ENTRY.iter_unpack(listed))
    _check_entries(name, entries, start)
    return PackInfo(name, salt, len(data), entries)


def _check_entries(name: str, entries: Iterable[Entry], end: int) -> None:
    for entry in entries:
        if entry.offset < _HEAD or entry.length <= TAG_BYTES or entry.offset + entry.length > end:
            raise BackupError("Damaged", f"{name} is damaged: a granule lies outside of it")


def open_record(keys: Keys, salt: bytes, entry: Entry, record: bytes, granule_bytes: int) -> bytes:
    """One granule, proved to be the one of its name. BackupError Damaged (without the pack's name)."""
    try:
        squeezed = keys.file_cipher("pack", salt).decrypt(_nonce(entry.offset), record, entry.name)
    except InvalidTag as error:
        raise BackupError(
            "Damaged", f"the granule at byte {entry.offset} is damaged: its seal does not hold"
        ) from error
    data = unsqueeze(squeezed, granule_bytes)
    if keys.name_granule(data) != entry.name:
        raise BackupError("Damaged", f"the granule at byte {entry.offset} is not the one of its name")
    return data


# indexes ---------------------------------------------------------------------------------------------------------


def encode_indexes(packs: Sequence[PackInfo]) -> Iterator[bytes]:
    """The plain text of as many index objects as these packs need."""
    part: list[bytes] = []
    count = 0
    for pack in packs:
        digest = bytes.fromhex(pack.name.partition("/")[2])
        part.append(_PACK.pack(digest, pack.salt, pack.size, len(pack.entries)))
        part.extend(_ENTRY.pack(e.name, e.offset, e.length) for e in pack.entries)
        count += len(pack.entries)
        if count >= INDEX_GRANULES:
            yield b"\x01" + b"".join(part)
            part, count = [], 0
    if part:
        yield b"\x01" + b"".join(part)


def decode_index(name: str, data: bytes) -> list[PackInfo]:
    """The packs of one index object; BackupError Damaged or TooNew."""
    if data[:1] != b"\x01":
        raise BackupError("TooNew", f"{name} was written by a newer release")
    found, at = [], 1
    while at < len(data):
        if at + _PACK.size > len(data):
            raise BackupError("Damaged", f"{name} is damaged: it ends in the middle")
        digest, salt, size, count = _PACK.unpack_from(data, at)
        at += _PACK.size
        end = at + count * _ENTRY.size
        if end > len(data) or size > PACK_LIMIT:
            raise BackupError("Damaged", f"{name} is damaged: it speaks of more than there is")
        entries = tuple(Entry(*fields) for fields in _ENTRY.iter_unpack(data[at:end]))
        pack = PackInfo(f"packs/{digest.hex()}", salt, size, entries)
        _check_entries(pack.name, entries, size)
        found.append(pack)
        at = end
    return found


class Table:
    """All granules of a repository, 44 bytes each: names in order, found by their place among evenly spread numbers."""

    def __init__(self, packs: Iterable[PackInfo]) -> None:
        self.packs: list[PackInfo] = []
        seen: set[str] = set()
        rows: list[bytes] = []
        for pack in packs:
            if pack.name in seen:
                continue
            seen.add(pack.name)
            number = len(self.packs)
            self.packs.append(PackInfo(pack.name, pack.salt, pack.size, ()))
            rows.extend(_ROW.pack(e.name, number, e.offset, e.length) for e in pack.entries)
        rows.sort()
        self._rows = b"".join(rows)
        self.count = len(rows)

    def find(self, name: bytes) -> int:
        """The row of a granule, or -1."""
        rows, size = self._rows, _ROW.size
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            at = middle * size
            if rows[at : at + NAME_BYTES] < name:
                low = middle + 1
            else:
                high = middle
        at = low * size
        return low if low < self.count and rows[at : at + NAME_BYTES] == name else -1

    def place(self, row: int) -> tuple[int, Entry]:
        """(number of the pack, the entry) of a row."""
        name, pack, offset, length = _ROW.unpack_from(self._rows, row * _ROW.size)
        return pack, Entry(name, offset, length)

    def rows_of(self, name: bytes) -> Iterator[int]:
        """Every copy of a granule."""
        row = self.find(name)
        while 0 <= row < self.count and self._rows[row * _ROW.size : row * _ROW.size + NAME_BYTES] == name:
            yield row
            row += 1

    def __contains__(self, name: bytes) -> bool:
        return self.find(name) >= 0
