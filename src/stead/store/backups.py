"""A whole store as one file, and the hash by which contents are compared. Blocks.

A backup is text: a line of JSON that says what it is, a line for each entry, and a last line with count and SHA-256. It
is read whole and checked before anybody uses it. Called by `stead store` and before migrations.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from stead.store.contract import Entry, Range, StoreFailure

_KIND = "stead-store-backup"


class _Head(msgspec.Struct, frozen=True):
    kind: str
    version: int
    revision: int


class _Tail(msgspec.Struct, frozen=True):
    count: int
    sha256: str


def digest(entries: Iterable[Entry]) -> str:
    """SHA-256 (hex) over keys and values in key order; revisions, which a move changes, are left out."""
    found = hashlib.sha256()
    for entry in sorted(entries, key=lambda each: each.key):
        key = entry.key.encode()
        found.update(b"%d %d " % (len(key), len(entry.value)) + key + entry.value)
    return found.hexdigest()


def write(path: Path, found: Range) -> str:
    """Write the file (mode 0600, whole or not at all); its hash. Raises OSError, FileExistsError."""
    encode = msgspec.json.Encoder().encode
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    tail = _Tail(len(found.entries), digest(found.entries))
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"):
        pass  # never over another backup
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(encode(_Head(_KIND, 1, found.revision)) + b"\n")
        for entry in found.entries:
            file.write(encode(entry) + b"\n")
        file.write(encode(tail) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return tail.sha256


def read(path: Path) -> Range:
    """What a backup holds. Raises OSError, StoreFailure when it is no backup, incomplete or damaged."""
    with path.open("rb") as file:
        lines = file.read().split(b"\n")
    try:
        head = msgspec.json.decode(lines[0], type=_Head)
        if head.kind != _KIND or head.version != 1:
            raise StoreFailure(f"{path} is no backup that this release reads")
        tail = msgspec.json.decode(lines[-2], type=_Tail)
        entries = [msgspec.json.decode(line, type=Entry) for line in lines[1:-2]]
    except (msgspec.DecodeError, IndexError) as error:
        raise StoreFailure(f"{path} is no backup, or not a whole one: {error}") from error
    if len(entries) != tail.count or digest(entries) != tail.sha256:
        raise StoreFailure(f"{path} is damaged: its contents are not those that its last line speaks of")
    return Range(tuple(entries), head.revision, False)
