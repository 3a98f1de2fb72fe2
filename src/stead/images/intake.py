"""What becomes of an image's bytes: judged by their head, unpacked, and written to the descriptors of a job.

Used by the import worker only. A plain raw or qcow2 image from HTTP is dealt with so that another process can go on
after this one dies: every few seconds what was written is synced and noted in the journal (`Progress`). Anything else
(compressed, archived, from a registry, uploaded, a format that qemu-img must convert) begins anew after a death.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from typing import IO

from stead.images import journal
from stead.images.ahead import Piece, ReadAhead
from stead.images.compression import decompressed
from stead.images.holes import write_sparse
from stead.images.jobs import Job, Report
from stead.images.journal import Checkpoint
from stead.images.qcow2stream import Qcow2Stream
from stead.images.safety import (
    COMPRESSIONS,
    HEAD_BYTES,
    Image,
    UnsafeImage,
    check_size,
    examine,
    qcow2_header,
    sniff,
)
from stead.images.sources import Broken, HttpStream, checksum_from_text

_REHASH_BYTES = 4 << 20
_MEMBER_BYTES = 1 << 20


class Progress:
    """The journal of one job; without a journal (or a source that can be resumed) it does nothing."""

    def __init__(self, job: Job) -> None:
        self._job = job
        text = f"{job.url}\n{job.checksum}\n{job.limit_bytes}\n{job.mode}"
        self._source = hashlib.sha256(text.encode()).hexdigest()
        self._due = time.monotonic() + job.checkpoint_seconds
        self.stream: HttpStream | None = None
        self.done: Checkpoint | None = None
        if job.journal >= 0:
            found = journal.read(job.journal)
            # what passed through a hash cannot be had again from a qcow2's parts
            if found and found.source == self._source and not (job.checksum and found.format != "raw"):
                self.done = found

    def open(self) -> HttpStream:
        """The source, from where an earlier process left off where that can be, else from its beginning."""
        job, done = self._job, self.done
        checksum = checksum_from_text(job.checksum) if job.checksum else None
        broken = Broken(done.offset, done.total, done.validator) if done else None
        self.stream = HttpStream(job.url, job.access, checksum, broken=broken)
        if done and self.stream.offset != done.offset:
            self.done = None
        if self.done is None and job.journal >= 0:
            self._begin_anew()
        elif done and checksum:
            for start in range(0, done.offset, _REHASH_BYTES):
                self.stream.hash_before(os.pread(job.target, min(_REHASH_BYTES, done.offset - start), start))
        return self.stream

    def _begin_anew(self) -> None:
        """Whatever an earlier attempt wrote is gone before a byte of another one comes."""
        job = self._job
        os.ftruncate(job.journal, 0)
        os.fdatasync(job.journal)
        if job.spill >= 0:
            os.ftruncate(job.spill, 0)
        length = os.fstat(job.target).st_size
        os.ftruncate(job.target, 0)
        os.ftruncate(job.target, length)

    @property
    def possible(self) -> bool:
        """Whether checkpoints are of any use for this source."""
        return self._job.journal >= 0 and self.stream is not None and bool(self.stream.validator)

    @property
    def is_due(self) -> bool:
        """Time for another checkpoint."""
        return self.possible and time.monotonic() >= self._due

    def note(self, format: str, offset: int) -> None:
        """The first `offset` bytes of the source have been dealt with, durably."""
        assert self.stream is not None
        stream = self.stream
        journal.write(self._job.journal, Checkpoint(source=self._source, validator=stream.validator, format=format,
                                                    offset=offset, total=stream.total))  # fmt: skip
        self._due = time.monotonic() + self._job.checkpoint_seconds


def receive(job: Job, ahead: ReadAhead, progress: Progress) -> Report:
    """Take an image in, by what its first bytes say it is."""
    pieces = ahead.pieces()
    if progress.done is not None:
        return _go_on(job, pieces, progress)
    plain = Progress(Job(kind=job.kind, limit_bytes=0))
    head, pieces = _head(pieces)
    if sniff(bytes(head[:HEAD_BYTES])) in COMPRESSIONS:
        progress = plain
        head, pieces = _head(decompressed(bytes(piece) for piece in _chain(head, pieces)))
    if sniff(bytes(head[:HEAD_BYTES])) == "tar":
        progress = plain
        head, pieces = _from_tar(head, pieces, job.limit_bytes)
    first = bytes(head[:HEAD_BYTES])
    image = examine(first, job.limit_bytes)
    if job.format and job.format not in ("raw", image.format):
        raise UnsafeImage(
            "FormatMismatch", f"Unable to process data: the image is {image.format}, not {job.format} as declared"
        )
    whole = _chain(head, pieces)
    if job.mode == "store":
        return _store(job, image, whole)
    if image.format == "raw":
        return _raw(job, whole, progress)
    if image.format == "qcow2" and job.mode == "disk":
        return _qcow2(job, first, whole, progress)
    length = take_whole(job.spill, whole, 2 * job.limit_bytes + (1 << 30))
    return Report(
        done=True, format=image.format, convert=True, virtual_bytes=max(image.virtual_bytes, 0), file_bytes=length
    )


def _go_on(job: Job, pieces: Iterator[Piece], progress: Progress) -> Report:
    assert progress.done is not None
    if progress.done.format == "raw":
        return _raw(job, pieces, progress)
    return _qcow2(job, os.pread(job.spill, HEAD_BYTES, 0), pieces, progress)


def judge(job: Job, pieces: Iterator[Piece]) -> Report:
    """What an image is by its head, if it may be used as it is: raw or qcow2."""
    head = bytes(_head(pieces)[0])
    image = examine(head[:HEAD_BYTES], job.limit_bytes)
    if image.format not in ("raw", "qcow2") or (job.format and job.format != image.format):
        wanted = job.format or "raw or qcow2"
        raise UnsafeImage("FormatMismatch", f"Unable to process data: the image is {image.format}, not {wanted}")
    return Report(done=True, format=image.format, virtual_bytes=max(image.virtual_bytes, 0))


def take_whole(fd: int, pieces: Iterator[Piece], limit: int) -> int:
    """Write all bytes as they are; answers how many."""
    position = 0
    for piece in pieces:
        check_size(position + len(piece), limit)
        position = write_sparse(fd, piece, position)
    os.ftruncate(fd, position)
    return position


def _head(pieces: Iterator[Piece]) -> tuple[Piece, Iterator[Piece]]:
    """The first piece, long enough to be judged, and the iterator that goes on after it."""
    head = next(pieces, b"")
    while len(head) < HEAD_BYTES and (more := next(pieces, b"")):
        head = bytes(head) + bytes(more)
    if not head:
        raise UnsafeImage("EmptyImage", "Unable to process data: the image is empty")
    return head, pieces


def _chain(head: Piece, pieces: Iterator[Piece]) -> Iterator[Piece]:
    yield head
    yield from pieces


def _from_tar(head: Piece, pieces: Iterator[Piece], limit: int) -> tuple[Piece, Iterator[Piece]]:
    """The one regular file of a tar archive that holds a disk, as a stream of its own."""
    import tarfile  # rarely needed

    from stead.images.oci import TarReader

    reader = TarReader((bytes(piece) for piece in _chain(head, pieces)), 2 * limit + (1 << 30))
    try:
        archive = tarfile.open(fileobj=reader, mode="r|")  # type: ignore[call-overload]  # noqa: SIM115  read() is enough
        for member in archive:
            if member.isreg() and member.size >= 512 and (handle := archive.extractfile(member)):
                return _head(_member(handle))
    except tarfile.TarError as error:
        raise _damaged_tar(error) from error
    raise UnsafeImage("UnsupportedFormat", "Unable to process data: the tar archive holds no disk image")


def _member(handle: IO[bytes]) -> Iterator[Piece]:
    import tarfile

    try:
        while data := handle.read(_MEMBER_BYTES):
            yield data
    except tarfile.TarError as error:
        raise _damaged_tar(error) from error


def _damaged_tar(error: Exception) -> UnsafeImage:
    return UnsafeImage("MalformedImage", f"Unable to process data: tar archive is damaged: {error}")


def _raw(job: Job, pieces: Iterator[Piece], progress: Progress) -> Report:
    """Raw bytes to their place; runs of zeros stay holes."""
    position = progress.done.offset if progress.done else 0
    for piece in pieces:
        check_size(position + len(piece), job.limit_bytes)
        position = write_sparse(job.target, piece, position)
        if progress.is_due:
            os.fdatasync(job.target)
            progress.note("raw", position)
    return Report(done=True, format="raw", virtual_bytes=position, file_bytes=position)


def _qcow2(job: Job, head: bytes, pieces: Iterator[Piece], progress: Progress) -> Report:
    header = qcow2_header(head)
    count = progress.done.offset if progress.done else 0
    stream = Qcow2Stream(header, job.target, job.spill, checkpoints=progress.possible, resume_at=count)
    try:
        for piece in pieces:
            stream.feed(piece)
            count += len(piece)
            if progress.is_due:
                progress.note("qcow2", stream.checkpoint())
        stream.finish()
    finally:
        stream.close()
    return Report(done=True, format="raw", virtual_bytes=header.virtual_bytes, file_bytes=count)


def _store(job: Job, image: Image, pieces: Iterator[Piece]) -> Report:
    if image.format not in ("raw", "qcow2"):
        raise UnsafeImage(
            "UnsupportedFormat", f"Unable to process data: a container disk must be raw or qcow2, not {image.format}"
        )
    length = take_whole(job.target, pieces, job.limit_bytes)
    size = image.virtual_bytes if image.format == "qcow2" else length
    return Report(done=True, format=image.format, virtual_bytes=size, file_bytes=length)
