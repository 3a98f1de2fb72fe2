"""Carries one volume from its source to a finished disk in a pool: import, upload, clone or blank.

Called by the agent's volume workers and the image commands. It holds the descriptors and the order of steps; bytes are
read by children only (`stead.images.child`). Whatever happens, the pool holds either a whole volume or none: what was
begun is discarded on failure and on cancellation. Only an import from HTTP whose journal (`stead.images.journal`) names
a checkpoint is kept under its partial name when its source or this process goes away, and gone on with next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from stead.images.child import Program, TransferFailed, run_program, run_worker
from stead.images.jobs import Job, Report
from stead.images.safety import HEAD_BYTES
from stead.images.sources import Access
from stead.storage.overlays import create_empty
from stead.storage.pools import Pool, PoolError, Volume, VolumeSpec

#: beside the disk of a volume that is being imported: what must be seen again, how far it has come
SPILL, JOURNAL = "spill", "journal"
#: what is told while a transfer runs: percent done, or None while that is not known
OnPercent = Callable[[float | None], None]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where a volume's content comes from, with all references resolved.

    `kind`: http, registry, upload, pvc, blank, existing (the file that the volume's spec names, as it is).
    """

    kind: str
    url: str = ""
    checksum: str = ""
    access: Access = Access()
    insecure: bool = False
    #: the volume to clone, for `pvc`
    volume: Volume | None = None
    #: declared by an uploader: format, length of the body
    format: str = ""
    total: int = -1
    #: of a registry image that is not wanted once more
    known_digest: str = ""
    #: how often an import from HTTP notes how far it has come
    checkpoint_seconds: float = 5.0


class Filled(msgspec.Struct, frozen=True, kw_only=True):
    """A finished volume, the image's own size, its registry digest and the labels it suggests for the claim."""

    volume: Volume
    virtual_bytes: int
    digest: str = ""
    labels: dict[str, str] = {}


async def fill(
    pool: Pool,
    spec: VolumeSpec,
    source: Source,
    on_percent: OnPercent | None = None,
    body: AsyncIterator[bytes] | None = None,
) -> Filled:
    """Make the volume with the source's content. TransferFailed or PoolError; nothing is left behind then."""
    tell = on_percent or (lambda _percent: None)
    try:
        if source.kind == "blank":
            volume = await _blank(pool, spec)
            return Filled(volume=volume, virtual_bytes=volume.size_bytes)
        if source.kind == "existing":
            volume = await _adopt(pool, spec)
            return Filled(volume=volume, virtual_bytes=volume.size_bytes)
        if spec.format != "raw":
            raise PoolError("Invalid", f"a volume filled from {source.kind} is kept as raw, not {spec.format}")
        if source.kind == "pvc" and source.volume is not None:
            volume = await _clone(pool, spec, source.volume, tell)
            return Filled(volume=volume, virtual_bytes=volume.size_bytes)
        return await _import(pool, spec, source, tell, body)
    except PoolError as error:
        raise TransferFailed(
            error.reason, f"Unable to process data: {error}", fatal=error.reason == "Invalid"
        ) from error


async def _blank(pool: Pool, spec: VolumeSpec) -> Volume:
    """An empty volume, raw or qcow2."""
    if spec.format == "raw":
        return await asyncio.to_thread(pool.create, spec)
    if spec.format != "qcow2":
        raise PoolError("Invalid", f"a volume is kept as raw or qcow2, not {spec.format[:20]!r}")
    path = await asyncio.to_thread(pool.begin, spec)
    try:
        await create_empty(path, spec.size_bytes, spec.format)
        return await asyncio.to_thread(pool.publish, spec.uid)
    except BaseException:
        await asyncio.to_thread(pool.discard, spec.uid)
        raise


async def _adopt(pool: Pool, spec: VolumeSpec) -> Volume:
    """A file that is there becomes the volume. Its head is read here and judged in the child, like any image's."""
    path = await asyncio.to_thread(pool.check_adoptable, spec.file)
    head, length = await asyncio.to_thread(_head, path)

    async def body() -> AsyncIterator[bytes]:
        yield head

    declared = "" if spec.format == "raw" else spec.format
    # a raw disk's own length is its size; a qcow2 says in its head what it claims to be
    job = Job(kind="upload", mode="examine", limit_bytes=spec.size_bytes, format=declared)
    report = await run_worker(job, None, body())
    if report.format != spec.format:
        raise PoolError("Invalid", f"file {spec.file} is {report.format}, not {spec.format} as declared")
    virtual = length if spec.format == "raw" else report.virtual_bytes
    if virtual > spec.size_bytes:
        raise PoolError(
            "TooSmall", f"file {spec.file} has {virtual} bytes, more than the {spec.size_bytes} of its claim"
        )
    return await asyncio.to_thread(pool.adopt, spec, 0 if spec.format == "raw" else virtual)


def _head(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file and its length; no link is followed."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.pread(fd, HEAD_BYTES, 0), os.fstat(fd).st_size
    finally:
        os.close(fd)


async def _clone(pool: Pool, spec: VolumeSpec, source: Volume, tell: OnPercent) -> Volume:
    """Clone in a thread, which ends at its next piece when we are cancelled."""
    stop = threading.Event()

    def on_share(share: float) -> None:
        if stop.is_set():
            raise PoolError("Failed", "the clone was given up")
        loop.call_soon_threadsafe(tell, share * 100)

    loop = asyncio.get_running_loop()
    work = asyncio.ensure_future(asyncio.to_thread(pool.clone, source, spec, on_share))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(PoolError):
            await work
        raise


async def _import(
    pool: Pool, spec: VolumeSpec, source: Source, tell: OnPercent, body: AsyncIterator[bytes] | None
) -> Filled:
    begun = await asyncio.to_thread(_begin, pool, spec, resumable=source.kind == "http")
    try:
        report = await _receive(begun, spec, source, tell, body)
        await asyncio.to_thread(begun.forget_progress)
        volume = await asyncio.to_thread(pool.publish, spec.uid, begun.target)
    except BaseException as failure:
        gone_away = isinstance(failure, asyncio.CancelledError) or getattr(failure, "resumable", False)
        if not (gone_away and begun.has_progress()):
            await asyncio.to_thread(pool.discard, spec.uid)
        await asyncio.to_thread(begun.close)
        raise
    # freeing the spill's blocks may take long, and nobody needs to wait for it
    asyncio.get_running_loop().run_in_executor(None, begun.close)
    return Filled(volume=volume, virtual_bytes=report.virtual_bytes, digest=report.digest, labels=report.labels)


class _Begun(msgspec.Struct, frozen=True):
    """A volume that was begun: its folder, and descriptors of the disk, the spill and the journal (-1: none)."""

    folder: Path
    target: int
    spill: int
    journal: int

    def has_progress(self) -> bool:
        """Whether another attempt can go on from here."""
        return self.journal >= 0 and os.fstat(self.journal).st_size > 0

    def forget_progress(self) -> None:
        """The disk is complete: only it is published."""
        for name in (JOURNAL, SPILL):
            (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the descriptors; this gives up the lock, too."""
        for fd in (self.target, self.spill, self.journal):
            if fd >= 0:
                os.close(fd)


def _begin(pool: Pool, spec: VolumeSpec, *, resumable: bool) -> _Begun:
    """Open what an earlier attempt left, if it can be gone on with, else begin anew. TransferFailed(Busy)."""
    path = pool.reopen(spec) if resumable else None
    if path is not None and not _is_gone_on_with(path.parent):
        path = None
    path = path or pool.begin(spec)
    with contextlib.ExitStack() as undo:

        def opened(name: str) -> int:
            fd = os.open(path.parent / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT, 0o600)
            undo.callback(os.close, fd)
            return fd

        target = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        undo.callback(os.close, target)
        if not pool.lock(target):
            raise TransferFailed("Busy", f"Unable to process data: an earlier import of {spec.name} is still ending")
        if resumable:
            begun = _Begun(path.parent, target, opened(SPILL), opened(JOURNAL))
        else:
            begun = _Begun(path.parent, target, open_scratch(path.parent), -1)
        undo.pop_all()
    return begun


def discard_useless(pool: Pool, known: set[str] | None = None) -> None:
    """Remove what was begun, is not worked on by any process (another Stead may share the folder) and cannot be gone
    on with. With `known`, the uids of the claims that there are: also what stands for none of them.
    """
    for volume_uid in pool.partials():
        kept = _is_gone_on_with(pool.partial_path(volume_uid).parent) and (known is None or volume_uid in known)
        if not kept and not pool.is_worked_on(volume_uid):
            pool.discard(volume_uid)


def _is_gone_on_with(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return (folder / JOURNAL).lstat().st_size > 0
    return False


async def _receive(
    begun: _Begun, spec: VolumeSpec, source: Source, tell: OnPercent, body: AsyncIterator[bytes] | None
) -> Report:
    """Fill the begun disk from an image source."""
    target, spill = begun.target, begun.spill
    job = Job(
        kind=source.kind, url=source.url, access=source.access, checksum=source.checksum, insecure=source.insecure,
        limit_bytes=spec.size_bytes, target=target, spill=spill, journal=begun.journal, format=source.format,
        total=source.total, checkpoint_seconds=source.checkpoint_seconds, known_digest=source.known_digest,
        # an upload comes once, so what may need random access is kept whole at once
        mode="disk",
    )  # fmt: skip

    def on_report(report: Report) -> None:
        tell(min(99.0, 100 * report.read / report.total) if report.total > 0 else None)

    try:
        report = await run_worker(job, on_report, body)
    except TransferFailed as failure:
        if not failure.scratch or body is not None:
            raise
        os.ftruncate(target, 0)
        os.ftruncate(target, spec.size_bytes)
        os.ftruncate(spill, 0)
        report = await run_worker(msgspec.structs.replace(job, mode="scratch", journal=-1), on_report)
    if report.convert:
        await convert_to_raw(spill, target, report.format, spec.size_bytes)
        os.fsync(target)
    return report


def open_scratch(folder: Path) -> int:
    """A file without a name on the folder's filesystem: gone when closed, whatever happens."""
    try:
        return os.open(folder, os.O_RDWR | os.O_TMPFILE, 0o600)
    except (OSError, AttributeError):
        path = folder / ".scratch"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        path.unlink()
        return fd


async def convert_to_raw(source: int, target: int, format: str, size_bytes: int) -> None:
    """Convert a checked image to raw with qemu-img in a child of its own; `target` must be all holes, of
    `size_bytes`.
    """
    file = {"driver": "file", "filename": f"/dev/fd/{source}"}
    node: dict[str, object] = {"driver": format, "file": file}
    if format == "qcow2":
        node["backing"] = None  # read no backing file whatever the header says
    output = f"file.driver=file,file.filename=/dev/fd/{target},driver=raw"
    await run_program(
        Program(
            arguments=("qemu-img", "convert", "-n", "--target-is-zero", "-W", "-m", "4", "--target-image-opts",
                       f"json:{msgspec.json.encode(node).decode()}", output),
            descriptors=(source, target),
            file_bytes=size_bytes,
        )
    )  # fmt: skip
