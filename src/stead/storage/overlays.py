"""Disk files that we make ourselves for one machine: throw-away overlays over container disks, and empty disks.

Called by the agent when it prepares a machine. Base and format are always named; a base comes from our content store or
pools, where its header was checked when it came in. `qemu-img create` reads the base's header only when no size is
given, so the size is required.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import msgspec

from stead.storage.pools import PoolError

_DEADLINE_SECONDS = 60


class Overlay(msgspec.Struct, frozen=True, kw_only=True):
    """A qcow2 at `path` over `base` (`base_format` raw or qcow2) of `size_bytes` as the guest sees it."""

    path: Path
    base: Path
    base_format: str
    size_bytes: int


async def create_overlay(overlay: Overlay) -> Path:
    """Make the overlay, replacing a stale one. PoolError Failed or NoSpace."""
    if overlay.base_format not in ("raw", "qcow2"):
        raise PoolError("Invalid", f"an overlay over {overlay.base} cannot have base format {overlay.base_format!r}")
    # -u: the base is not opened, so nothing in it is interpreted here
    await _create(overlay.path, "qcow2", "-u", "-b", str(overlay.base.absolute()), "-F", overlay.base_format,
                  size=overlay.size_bytes)  # fmt: skip
    return overlay.path


async def create_empty(path: Path, size_bytes: int, format: str = "qcow2") -> Path:
    """Make an empty disk, replacing a stale one: qcow2, or raw (sparse)."""
    if format not in ("raw", "qcow2"):
        raise PoolError("Invalid", f"an empty disk at {path} cannot have format {format!r}")
    await _create(path, format, size=size_bytes)
    return path


async def _create(path: Path, format: str, *options: str, size: int) -> None:
    if size <= 0:
        raise PoolError("Invalid", f"disk {path} must be larger than {size} bytes")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    process = await asyncio.create_subprocess_exec(
        "qemu-img", "create", "-q", "-f", format, *options, str(path), str(size),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_DEADLINE_SECONDS):
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        words = err.decode(errors="replace").strip()
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        raise PoolError("NoSpace" if "No space left" in words else "Failed", f"disk {path} cannot be made: {words}")
    os.chmod(path, 0o600)
