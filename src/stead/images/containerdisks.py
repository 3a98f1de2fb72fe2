"""The host's store of container disks: `<root>/<digest>/disk` (raw or qcow2 as published) with `record.json` beside it.

Called by the agent when it prepares a machine. A tag is resolved once per use by the pull policy; content is kept by
the image's digest, so machines share a file, read-only, and a restart or migration finds the same bytes. Entries are
complete or absent. What no machine uses is collected, least recently used first, when the store is over its cap. Pulls
of one image at the same time are one pull.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from stead.images.child import TransferFailed, run_worker
from stead.images.jobs import Job
from stead.images.oci import reference_from_text
from stead.images.sources import Access, SourceError

DEFAULT_CAP_BYTES = 50 << 30
#: the largest single disk that is pulled, virtual or real
MAX_DISK_BYTES = 1 << 40
_POLICIES = ("Always", "IfNotPresent", "Never")
_ENTRY = re.compile(r"sha(?:256|512)-[0-9a-f]{64,128}(?:-[0-9a-f]{16})?")


class ContainerDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk in the store: its file, format (raw or qcow2), the size a guest sees, the image's digest and labels."""

    path: Path
    format: str
    virtual_bytes: int
    digest: str
    labels: dict[str, str] = {}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to have: image reference, pull policy ("" = Always for `latest`, else IfNotPresent), access, path inside."""

    image: str
    policy: str = ""
    access: Access = Access()
    path: str = ""
    insecure: bool = False
    architecture: str = "amd64"
    #: the digest that was resolved before (a restart): used whatever the tag points to now
    digest: str = ""
    #: a plain file (kernel, initrd), not a disk
    plain: bool = False


class _Record(msgspec.Struct):
    image: str
    digest: str
    format: str
    virtual_bytes: int
    labels: dict[str, str] = {}


class ContainerDisks:
    """The store below one folder. `in_use` answers whether a machine has the file open."""

    def __init__(
        self, root: Path, cap_bytes: int = DEFAULT_CAP_BYTES, in_use: Callable[[Path], bool] = lambda _path: False
    ) -> None:
        self.root = root
        self._cap_bytes, self._in_use = cap_bytes, in_use
        root.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._pulls: dict[str, asyncio.Future[ContainerDisk]] = {}
        for stale in root.glob(".part-*"):
            shutil.rmtree(stale, ignore_errors=True)

    async def obtain(self, wanted: Wanted, on_percent: Callable[[float], None] | None = None) -> ContainerDisk:
        """The disk, pulled if the policy and the store ask for it. TransferFailed (ImagePullFailed…) says why not."""
        key = msgspec.json.encode(wanted).decode()
        running = self._pulls.get(key)
        if running is None:
            running = asyncio.ensure_future(self._obtain(wanted, on_percent))
            self._pulls[key] = running
            running.add_done_callback(lambda _done: self._pulls.pop(key, None))
        # one caller's cancellation must not end the pull of the others
        return await asyncio.shield(running)

    async def _obtain(self, wanted: Wanted, on_percent: Callable[[float], None] | None) -> ContainerDisk:
        try:
            reference = reference_from_text(wanted.image)
        except SourceError as error:
            raise TransferFailed(error.reason, str(error), fatal=True) from error
        policy = wanted.policy or ("Always" if reference.tag == "latest" and not reference.digest else "IfNotPresent")
        if policy not in _POLICIES:
            raise TransferFailed(
                "Invalid", f"imagePullPolicy {policy!r} is not one of {', '.join(_POLICIES)}", fatal=True
            )
        known = wanted.digest or reference.digest or (self._last_digest(wanted.image) if policy != "Always" else "")
        if known and (found := self._entry(known, wanted)):
            return found
        if policy == "Never":
            raise TransferFailed(
                "ErrImageNeverPull", f'Container image "{wanted.image}" is not present with pull policy of Never'
            )
        pinned = wanted.image if not wanted.digest else reference.pinned(wanted.digest)
        job = Job(kind="resolve", url=pinned, access=wanted.access, insecure=wanted.insecure,
                  limit_bytes=MAX_DISK_BYTES, architecture=wanted.architecture)  # fmt: skip
        resolved = await run_worker(job)
        if not (found := self._entry(resolved.digest, wanted)):
            at = msgspec.structs.replace(job, url=reference.pinned(resolved.digest), path=wanted.path)
            found = await self._pull(at, wanted, resolved.digest, on_percent)
        await asyncio.to_thread(self._remember, wanted.image, resolved.digest)
        return found

    async def _pull(
        self, job: Job, wanted: Wanted, digest: str, on_percent: Callable[[float], None] | None
    ) -> ContainerDisk:
        await asyncio.to_thread(self.collect)
        folder = self.root / _entry_name(digest, wanted.path)
        partial = self.root / f".part-{folder.name}"
        await asyncio.to_thread(shutil.rmtree, partial, True)
        partial.mkdir(mode=0o700)
        try:
            target = os.open(partial / "disk", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                report = await run_worker(
                    msgspec.structs.replace(
                        job, kind="registry", mode="plain" if wanted.plain else "store", target=target
                    ),
                    lambda r: on_percent(100 * r.read / r.total) if on_percent and r.total > 0 else None,
                )
                # machines run under uids of their own and only read
                os.fchmod(target, 0o444)
            finally:
                os.close(target)
            record = _Record(job.url, digest, report.format, report.virtual_bytes, report.labels)
            (partial / "record.json").write_bytes(msgspec.json.encode(record))
            partial.chmod(0o711)
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(shutil.rmtree, folder)
            partial.rename(folder)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, partial, True)
            raise
        found = self._entry(digest, wanted)
        assert found is not None
        return found

    def _entry(self, digest: str, wanted: Wanted) -> ContainerDisk | None:
        """What is stored for a digest; its time of use is noted."""
        folder = self.root / _entry_name(digest, wanted.path)
        try:
            record = msgspec.json.decode((folder / "record.json").read_bytes(), type=_Record)
            os.utime(folder / "record.json")
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return ContainerDisk(path=folder / "disk", format=record.format, virtual_bytes=record.virtual_bytes,
                             digest=digest, labels=record.labels)  # fmt: skip

    def _tags(self) -> dict[str, str]:
        try:
            return msgspec.json.decode((self.root / "tags.json").read_bytes(), type=dict[str, str])
        except (FileNotFoundError, msgspec.DecodeError):
            return {}

    def _last_digest(self, image: str) -> str:
        return self._tags().get(image, "")

    def _remember(self, image: str, digest: str) -> None:
        temporary = self.root / ".tags.json.new"
        temporary.write_bytes(msgspec.json.encode({**self._tags(), image: digest}))
        temporary.replace(self.root / "tags.json")

    def collect(self, cap_bytes: int | None = None) -> list[str]:
        """Remove the least recently used entries that no machine uses until the store is under its cap; their names."""
        cap = self._cap_bytes if cap_bytes is None else cap_bytes
        entries = []
        for entry in os.scandir(self.root):
            if entry.is_dir(follow_symlinks=False) and _ENTRY.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):
                    size = os.stat(Path(entry.path) / "disk").st_blocks * 512
                    entries.append((os.stat(Path(entry.path) / "record.json").st_mtime, size, Path(entry.path)))
        total, removed = sum(size for _, size, _ in entries), []
        for used, size, path in sorted(entries):
            if total <= cap:
                break
            if self._in_use(path / "disk") or time.time() - used < 60:
                continue
            shutil.rmtree(path, ignore_errors=True)
            total -= size
            removed.append(path.name)
        return removed


def _entry_name(digest: str, path: str) -> str:
    """The folder of an image's disk; another path inside the same image has a folder of its own."""
    name = digest.replace(":", "-", 1)
    if path:
        name += "-" + hashlib.sha256(path.strip("/").encode()).hexdigest()[:16]
    if not _ENTRY.fullmatch(name):
        raise TransferFailed("ImagePullFailed", f"digest {digest!r} is malformed", fatal=True)
    return name
