"""Disk files that we make ourselves for one machine: throw-away overlays over container disks, and empty disks.

Called by the agent when it prepares a machine. Base and format are always named; a base comes from our content store or
pools, where its header was checked when it came in. `qemu-img create` reads the base's header only when no size is
given, so the size is required.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Any

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


async def create_tracking(path: Path, data_file: Path, size_bytes: int, source: str = "file") -> Path:
    """A qcow2 at `path` for bitmaps of changed blocks only: `data_file` keeps the data, raw, and is read as before.

    `source` is file or block. Made through QEMU's storage daemon: `qemu-img create` would empty the data file.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    driver = "host_device" if source == "block" else "file"
    nodes = (
        {"driver": driver, "filename": str(data_file.absolute()), "node-name": "data"},
        {"driver": "file", "filename": str(path.absolute()), "node-name": "overlay"},
    )
    made = {"driver": "qcow2", "file": "overlay", "data-file": "data", "data-file-raw": True, "size": size_bytes}
    commands: list[Any] = [{"execute": "qmp_capabilities"}]
    commands += [{"execute": "blockdev-add", "arguments": node} for node in nodes]
    commands.append({"execute": "blockdev-create", "arguments": {"job-id": "make", "options": made}})
    try:
        await _converse(path, commands)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


async def _converse(path: Path, commands: list[Any]) -> None:
    """Give the commands to a storage daemon, wait for the job `make` and end the daemon. PoolError."""
    process = await asyncio.create_subprocess_exec(
        "qemu-storage-daemon", "--chardev", "stdio,id=us", "--monitor", "us",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_DEADLINE_SECONDS):
            process.stdin.write(b"".join(json.dumps(command).encode() + b"\n" for command in commands))
            while line := await process.stdout.readline():
                told = json.loads(line)
                if "error" in told:
                    raise PoolError("Failed", f"disk {path} cannot be made: {told['error'].get('desc')}")
                if told.get("event") == "JOB_STATUS_CHANGE" and told["data"]["status"] == "concluded":
                    process.stdin.write(b'{"execute": "query-jobs"}\n')
                for job in told["return"] if isinstance(told.get("return"), list) else ():
                    if job.get("error"):
                        raise PoolError("Failed", f"disk {path} cannot be made: {job['error']}")
                    return
            raise PoolError("Failed", f"disk {path} cannot be made: qemu-storage-daemon ended")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


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
