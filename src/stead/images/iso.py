"""ISO 9660 images from bytes in memory: cloud-init seeds, ConfigDrives, Secret and ConfigMap disks.

Called by the agent before a machine starts. The image is laid out in memory by pycdlib, so that no name from outside is
ever a path of this host, and appears under its name only when complete. Rock Ridge for Linux and Joliet for Windows
carry the names as given; the plain ISO names are numbers. Starting a program for it took a fifth of a machine's start.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import pycdlib
from pycdlib.pycdlibexception import PyCdlibException

MAX_BYTES = 64 << 20
#: ISO 9660 nests eight directories, the root among them
MAX_PARTS = 8
#: bytes of one name; a longer one would need a directory record that no reader expects
MAX_NAME = 240
#: characters of one name in Joliet
_JOLIET_NAME = 64


class IsoError(Exception):
    """The image could not be made; the message says why."""


async def write_iso(target: Path, label: str, files: Mapping[str, bytes], mode: int = 0o600) -> Path:
    """Make `target` hold `files` (relative POSIX paths → content) under the volume id `label`; atomic.

    Raises IsoError for names and sizes that an image cannot hold, OSError when it cannot be written.
    """
    checked = {_checked(name): data for name, data in files.items()}
    if sum(map(len, files.values())) > MAX_BYTES:
        raise IsoError(f"{target.name}: more than {MAX_BYTES >> 20} MiB of files")
    await asyncio.to_thread(_write, target, label, checked, mode)
    return target


def _checked(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or any(part in ("..", ".") for part in path.parts) or "\0" in name:
        raise IsoError(f"{name!r} is not a file name inside an image")
    if len(path.parts) > MAX_PARTS or any(len(part.encode()) > MAX_NAME for part in path.parts):
        raise IsoError(f"{name!r}: an image holds {MAX_PARTS} levels of names of {MAX_NAME} bytes")
    return path


def _write(target: Path, label: str, files: Mapping[PurePosixPath, bytes], mode: int) -> None:
    """Blocking."""
    try:
        image = _image(label, files)
    except PyCdlibException as error:
        raise IsoError(f"{target.name}: {error}") from error
    descriptor, draft = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as out:
            os.fchmod(descriptor, mode)
            out.write(image)
        os.replace(draft, target)
    except BaseException:
        os.unlink(draft)
        raise


def _image(label: str, files: Mapping[PurePosixPath, bytes]) -> bytes:
    """The whole image."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=label)
    plain: dict[PurePosixPath, str] = {PurePosixPath("."): ""}
    for number, folder in enumerate(_folders(files)):
        plain[folder] = f"{plain[folder.parent]}/D{number:07}"
        iso.add_directory(plain[folder], rr_name=folder.name, joliet_path=_joliet(folder))
    for number, (path, data) in enumerate(files.items()):
        iso_path = f"{plain[path.parent]}/F{number:07}.;1"
        iso.add_fp(io.BytesIO(data), len(data), iso_path, rr_name=path.name, joliet_path=_joliet(path))
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()


def _folders(files: Mapping[PurePosixPath, bytes]) -> Iterator[PurePosixPath]:
    """Every directory that a file lies in, parents first."""
    found = {parent for path in files for parent in path.parents if parent.parts}
    yield from sorted(found, key=lambda folder: (len(folder.parts), folder))


def _joliet(path: PurePosixPath) -> str:
    """The path in Joliet: names that are too long end with a digest of themselves."""
    return "".join(f"/{_joliet_name(part)}" for part in path.parts)


def _joliet_name(name: str) -> str:
    if len(name.encode("utf-16-be")) <= 2 * _JOLIET_NAME:
        return name
    return f"{name[:24]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
