"""ISO 9660 images from bytes in memory: cloud-init seeds, ConfigDrives, Secret and ConfigMap disks.

Called by the agent before a machine starts. Files are written below a scratch folder, never where a guest's name could
lead; the image appears under its name only when complete. Joliet and Rock Ridge, as NoCloud readers expect.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

_DEADLINE_SECONDS = 60
MAX_BYTES = 64 << 20


class IsoError(Exception):
    """The image could not be made; the message says why."""


async def write_iso(target: Path, label: str, files: Mapping[str, bytes], mode: int = 0o600) -> Path:
    """Make `target` hold `files` (relative POSIX paths → content) under the volume id `label`; atomic."""
    names = {name: _checked(name) for name in files}
    if sum(map(len, files.values())) > MAX_BYTES:
        raise IsoError(f"{target.name}: more than {MAX_BYTES >> 20} MiB of files")
    work = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=f".{target.name}.", dir=target.parent))
    try:
        await asyncio.to_thread(_lay_out, work / "files", {names[name]: data for name, data in files.items()})
        await _xorriso(work, label)
        (work / "image.iso").chmod(mode)
        (work / "image.iso").replace(target)
    finally:
        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
    return target


def _checked(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or any(part in ("..", ".") for part in path.parts) or "\0" in name:
        raise IsoError(f"{name!r} is not a file name inside an image")
    return path


def _lay_out(folder: Path, files: Mapping[PurePosixPath, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


async def _xorriso(work: Path, label: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "xorriso", "-as", "mkisofs", "-quiet", "-volid", label, "-joliet", "-rock", "-o", str(work / "image.iso"),
        str(work / "files"), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE, env={**os.environ, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    try:
        async with asyncio.timeout(_DEADLINE_SECONDS):
            _, err = await process.communicate()
    except TimeoutError:
        raise IsoError(f"xorriso took longer than {_DEADLINE_SECONDS} s for the image {label}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise IsoError(f"xorriso failed for the image {label}: {err.decode(errors='replace').strip()[-500:]}")
