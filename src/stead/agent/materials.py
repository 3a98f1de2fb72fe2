"""What the agent takes from the storage and image rooms, as narrow contracts: volumes of pools, container disks, ISO
images.

`run` passes the concrete things in; `disks.py` knows only these. Every call returns what QEMU may open directly;
formats are always explicit. Calls may take long (a pull) and are cancellable.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec


class RegistryAccess(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials for a registry: user name and password ("" = anonymous) and PEM of a private CA ("" = the
    system's).
    """

    username: str = ""
    password: str = ""
    ca: str = ""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A disk file on this host: absolute path, format raw or qcow2, virtual size in bytes, content digest if known."""

    path: str
    format: str
    virtual_bytes: int
    digest: str = ""


class Materials(Protocol):
    """Everything that `disks.py` asks of other rooms."""

    def roots(self) -> tuple[Path, ...]:
        """Folders under which every returned path lies (pools and the container disk store)."""
        ...

    async def volume(self, pool_uid: str, volume_uid: str) -> File:
        """The volume behind a handle. FileNotFoundError names what is missing."""
        ...

    async def container_disk(self, image: str, pull_policy: str, access: RegistryAccess, path: str) -> File:
        """The disk in a container image, pulled if needed; `path` names the file inside ("" = the one in /disk).

        Raises LookupError or OSError with a sentence for people when it cannot be had.
        """
        ...

    async def container_files(
        self, image: str, pull_policy: str, access: RegistryAccess, paths: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Plain files of a container image (kernel, initrd) as paths on this host, in the order asked."""
        ...

    async def fetch(self, url: str, target: Path) -> None:
        """One plain file to `target`: from a server (http, https), or a copy of one directly in a pool (file).

        Raises LookupError or OSError with a sentence for people.
        """
        ...

    async def overlay(self, base: File, target: Path, owner: tuple[int, int]) -> None:
        """Make a qcow2 at `target` whose explicit base is `base`."""
        ...

    async def empty(self, target: Path, size: int, owner: tuple[int, int]) -> None:
        """Make an empty qcow2 of `size` bytes at `target`."""
        ...

    async def iso(self, files: Mapping[str, bytes], label: str, target: Path, owner: tuple[int, int]) -> None:
        """Write an ISO 9660 image (Joliet and Rock Ridge) with those files."""
        ...
