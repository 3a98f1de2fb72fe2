"""The host's `Materials`: volumes of its pools, the container disk store, overlays and ISO images made on demand.

Made by `run` (or a test) from the storage and image rooms' own objects and passed to the agent. Turns those rooms'
failures into the few that `disks.py` knows: LookupError with a sentence, OSError(ENOSPC) for a full disk. Confined to
the loop; blocking look-ups run in threads.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

from stead.agent.materials import File, RegistryAccess
from stead.images.child import TransferFailed
from stead.images.containerdisks import ContainerDisk, ContainerDisks, Wanted
from stead.images.iso import IsoError, write_iso
from stead.images.plainfile import MAX_BYTES, fetch_plain
from stead.images.sources import Access, Policy
from stead.storage.overlays import Overlay, create_empty, create_overlay
from stead.storage.pools import Pool, PoolError

#: volume id of disks made from Secrets, ConfigMaps and the like that name none (as KubeVirt's)
DEFAULT_LABEL = "cfgdata"


class Stock:
    """`insecure` says of an image reference's host whether its registry may be reached without verified TLS."""

    def __init__(
        self,
        pools: Iterable[Pool],
        container_disks: ContainerDisks,
        policy: Policy = Policy(),
        insecure: Callable[[str], bool] = lambda _host: False,
    ) -> None:
        self._pools = {pool.uid: pool for pool in pools}
        self._container_disks = container_disks
        self._policy = policy
        self._insecure = insecure

    def roots(self) -> tuple[Path, ...]:
        return (*(pool.path for pool in self._pools.values()), self._container_disks.root)

    async def volume(self, pool_uid: str, volume_uid: str) -> File:
        pool = self._pools.get(pool_uid)
        if pool is None:
            raise FileNotFoundError(f"this host has no pool {pool_uid}")
        try:
            volume = await asyncio.to_thread(pool.get, volume_uid)
        except PoolError as error:
            raise FileNotFoundError(str(error)) from error
        return File(path=str(volume.path), format=volume.format, virtual_bytes=volume.size_bytes)

    async def container_disk(self, image: str, pull_policy: str, access: RegistryAccess, path: str) -> File:
        found = await self._obtain(self._wanted(image, pull_policy, access, path))
        return File(path=str(found.path), format=found.format, virtual_bytes=found.virtual_bytes, digest=found.digest)

    async def container_files(
        self, image: str, pull_policy: str, access: RegistryAccess, paths: tuple[str, ...]
    ) -> tuple[str, ...]:
        found = []
        for path in paths:
            wanted = self._wanted(image, pull_policy, access, path, plain=True)
            found.append(str((await self._obtain(wanted)).path))
        return tuple(found)

    async def fetch(self, url: str, target: Path) -> None:
        try:
            if not url.startswith("file://"):
                await fetch_plain(url, Access(policy=self._policy), target)
                return
            path = Path(url.removeprefix("file://"))
            pool = next((pool for pool in self._pools.values() if pool.path == path.parent), None)
            if pool is None:
                raise LookupError(f"{path.parent} is not a registered directory of this host")
            await asyncio.to_thread(pool.copy_out, path.name, target, MAX_BYTES)
        except (TransferFailed, PoolError) as error:
            raise LookupError(str(error)) from error

    def _wanted(self, image: str, policy: str, access: RegistryAccess, path: str, *, plain: bool = False) -> Wanted:
        host = image.removeprefix("docker://").partition("/")[0]
        given = Access(user=access.username, password=access.password, ca_pem=access.ca, policy=self._policy)
        insecure = self._insecure(host)
        return Wanted(image=image, policy=policy, access=given, path=path, insecure=insecure, plain=plain)

    async def _obtain(self, wanted: Wanted) -> ContainerDisk:
        try:
            return await self._container_disks.obtain(wanted)
        except TransferFailed as error:
            raise LookupError(str(error)) from error

    async def overlay(self, base: File, target: Path, owner: tuple[int, int]) -> None:
        size = base.virtual_bytes
        overlay = Overlay(path=target, base=Path(base.path), base_format=base.format, size_bytes=size)
        await _as_os_error(create_overlay(overlay))

    async def empty(self, target: Path, size: int, owner: tuple[int, int]) -> None:
        await _as_os_error(create_empty(target, size))

    async def iso(self, files: Mapping[str, bytes], label: str, target: Path, owner: tuple[int, int]) -> None:
        try:
            await write_iso(target, label or DEFAULT_LABEL, files)
        except IsoError as error:
            raise OSError(errno.EIO, str(error)) from error


async def _as_os_error(making: Awaitable[Path]) -> None:
    """Await a maker of the storage room; its PoolError becomes an OSError."""
    try:
        await making
    except PoolError as error:
        number = errno.ENOSPC if error.reason == "NoSpace" else errno.EIO
        raise OSError(number, str(error)) from error
