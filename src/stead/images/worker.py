"""The import worker: the only code that reads image, archive and registry bytes. A program of its own, unprivileged.

Started by `stead.images.child` as `python -m stead.images.worker`; standard input's first line is a `Job` (JSON), what
follows it is the body of an upload; standard output is one JSON `Report` a line. It loads all modules, confines itself
(`stead.images.confine`), then fills the descriptors it inherited: the target (a raw disk, all holes), and a spill file
for what must be seen again. It opens no file of its own. Exit code 0 whenever a final report was written.
"""

from __future__ import annotations

import ctypes
import encodings.idna  # noqa: F401  loaded before privileges go, as all lazily imported parts are
import errno
import os
import queue
import sys
import tarfile
import threading
import time
from collections.abc import Iterator

import msgspec

from stead.images import oci
from stead.images.compression import decompressed
from stead.images.confine import Limits, confine
from stead.images.qcow2stream import NotStreamable, Qcow2Stream
from stead.images.safety import HEAD_BYTES, Image, UnsafeImage, check_size, examine, qcow2_header, sniff
from stead.images.sources import Access, HttpStream, SourceError, Stream, checksum_from_text

_REPORT_SECONDS = 0.5
#: the reading thread waits for the interpreter after each receive; the default of 5 ms would bound the throughput
_SWITCH_SECONDS = 0.0005
_WRITE_BACK_SECONDS = 0.25
_QUEUE_PIECES = 16
_HOLE = 64 << 10
#: the largest plain file (kernel, initial ramdisk) taken from an image
_PLAIN_LIMIT = 1 << 30
_ZEROS = bytes(_HOLE)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. `kind` http | registry | upload | resolve; `mode` disk = guest data to a raw target, store = the
    image itself (checked raw or qcow2) to the target, plain = any file as it is (kernel, initrd), scratch = the image
    itself to the spill for qemu-img to convert, examine = only judge the head that is sent.
    """

    kind: str
    mode: str = "disk"
    url: str = ""
    access: Access = Access()
    checksum: str = ""
    limit_bytes: int
    target: int = -1
    spill: int = -1
    insecure: bool = False
    architecture: str = "amd64"
    path: str = ""
    #: `raw`, `qcow2`… when the uploader declared it; must then match what the bytes are
    format: str = ""
    total: int = -1
    limits: Limits = Limits()


class Report(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Progress (`read` of `total` bytes), or the end: `done` with what was made, or `error` with CDI's words."""

    read: int = 0
    total: int = -1
    done: bool = False
    #: format of what lies in the target (raw, qcow2), or in the spill when `convert` is set
    format: str = ""
    convert: bool = False
    virtual_bytes: int = 0
    file_bytes: int = 0
    digest: str = ""
    labels: dict[str, str] = {}
    error: str = ""
    reason: str = ""
    fatal: bool = False
    scratch: bool = False


class _Upload:
    """The body that follows the job on standard input."""

    def __init__(self, first: bytes, total: int) -> None:
        self._first, self.total = first, total
        self._count = 0

    def read(self) -> bytes:
        data, self._first = self._first, b""
        data = data or os.read(0, 1 << 20)
        self._count += len(data)
        if not data and 0 <= self.total != self._count:
            raise SourceError(
                "Error", f"Unable to process data: upload ended after {self._count} of {self.total} bytes"
            )
        return data

    def close(self) -> None:
        """Nothing to give up."""


class _Meter:
    """Counts what was read and reports it, at most twice a second."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._last = stream, 0.0
        self.count = 0

    def pieces(self) -> Iterator[bytes]:
        """The stream's pieces, read ahead by a thread so that network and disk work at the same time."""
        ahead: queue.Queue[bytes | BaseException] = queue.Queue(_QUEUE_PIECES)

        def fetch() -> None:
            try:
                while data := self._stream.read():
                    ahead.put(data)
                ahead.put(b"")
            except BaseException as error:  # handed to the reading thread whole
                ahead.put(error)

        threading.Thread(target=fetch, daemon=True).start()
        while piece := ahead.get():
            if isinstance(piece, BaseException):
                raise piece
            self.count += len(piece)
            self._tell()
            yield piece

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._last >= _REPORT_SECONDS:
            self._last = now
            _emit(Report(read=self.count, total=self._stream.total))


def _emit(report: Report) -> None:
    os.write(1, msgspec.json.encode(report) + b"\n")


def run(job: Job, upload: bytes = b"") -> Report:
    """Carry the job out and answer its final report; errors become reports here."""
    try:
        return _run(job, upload)
    except UnsafeImage as error:
        return Report(error=str(error), reason=error.reason)
    except SourceError as error:
        return Report(error=str(error), reason=error.reason, fatal=error.fatal)
    except NotStreamable:
        return Report(error="Scratch space required", reason="Scratch space required", scratch=True)
    except MemoryError:
        return Report(
            error="Unable to process data: the image needs more memory than an import may use", reason="OOMKilled"
        )
    except OSError as error:
        return Report(error=_os_words(error), reason="NoSpace" if error.errno == errno.ENOSPC else "Error")
    except Exception as error:
        # hostile bytes may find any weakness of a parser; the process is ours alone, so say what happened and end
        return Report(error=f"Unable to process data: {type(error).__name__}: {error}", reason="Error")


def _os_words(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "Unable to process data: no space left in the pool"
    if error.errno == errno.EFBIG:
        return "Unable to process data: image data does not fit the volume. A larger PVC is required."
    return f"Unable to process data: {error}"


def _run(job: Job, upload: bytes) -> Report:
    if job.kind == "resolve":
        registry = oci.Registry(oci.reference_from_text(job.url), job.access, insecure=job.insecure)
        resolved = registry.resolve(job.architecture)
        return Report(done=True, digest=resolved.digest, labels=_labels(resolved))
    digest, labels = "", {}
    stream: Stream
    if job.kind == "registry":
        registry = oci.Registry(oci.reference_from_text(job.url), job.access, insecure=job.insecure)
        resolved = registry.resolve(job.architecture)
        digest, labels = resolved.digest, _labels(resolved)
        stream = registry.file(resolved, job.path, job.limit_bytes)
    elif job.kind == "http":
        checksum = checksum_from_text(job.checksum) if job.checksum else None
        stream = HttpStream(job.url, job.access, checksum)
    else:
        stream = _Upload(upload, job.total)
    meter = _Meter(stream)
    if job.mode == "examine":
        return _examine(job, b"".join(meter.pieces()))
    if job.mode == "plain":
        length = _whole(job.target, b"", meter.pieces(), min(job.limit_bytes, _PLAIN_LIMIT))
        report = Report(done=True, format="plain", file_bytes=length)
    else:
        report = _receive(job, decompressed(meter.pieces()))
    return msgspec.structs.replace(report, digest=digest, labels=labels, read=meter.count, total=meter.count)


def _labels(resolved: oci.Resolved) -> dict[str, str]:
    return {**resolved.labels, **oci.labels_from_environment(resolved.environment)}


def _examine(job: Job, head: bytes) -> Report:
    """What an image is by its head, if it may be used as it is: raw or qcow2."""
    if not head:
        raise UnsafeImage("EmptyImage", "Unable to process data: the image is empty")
    image = examine(head[:HEAD_BYTES], job.limit_bytes)
    if image.format not in ("raw", "qcow2") or (job.format and job.format != image.format):
        wanted = job.format or "raw or qcow2"
        raise UnsafeImage("FormatMismatch", f"Unable to process data: the image is {image.format}, not {wanted}")
    return Report(done=True, format=image.format, virtual_bytes=max(image.virtual_bytes, 0))


def _receive(job: Job, pieces: Iterator[bytes]) -> Report:
    head = b""
    while len(head) < HEAD_BYTES and (piece := next(pieces, b"")):
        head += piece
    if not head:
        raise UnsafeImage("EmptyImage", "Unable to process data: the image is empty")
    if sniff(head) == "tar":
        head, pieces = _from_tar(head, pieces, job.limit_bytes)
    image = examine(head[:HEAD_BYTES], job.limit_bytes)
    if job.format and job.format not in ("raw", image.format):
        raise UnsafeImage(
            "FormatMismatch", f"Unable to process data: the image is {image.format}, not {job.format} as declared"
        )
    if job.mode == "store":
        return _store(job, image, head, pieces)
    if image.format == "raw":
        return _raw(job, head, pieces)
    if image.format == "qcow2" and job.mode == "disk":
        return _qcow2(job, head, pieces)
    length = _whole(job.spill, head, pieces, 2 * job.limit_bytes + (1 << 30))
    return Report(
        done=True, format=image.format, convert=True, virtual_bytes=max(image.virtual_bytes, 0), file_bytes=length
    )


def _from_tar(head: bytes, pieces: Iterator[bytes], limit: int) -> tuple[bytes, Iterator[bytes]]:
    """The one regular file of a tar archive that holds a disk, as a stream of its own."""
    reader = oci._Reader(_chain(head, pieces), 2 * limit + (1 << 30))
    try:
        archive = tarfile.open(fileobj=reader, mode="r|")  # type: ignore[call-overload]  # noqa: SIM115  read() is enough
        for member in archive:
            if member.isreg() and member.size >= 512 and (handle := archive.extractfile(member)):
                inner = iter(lambda: handle.read(1 << 20), b"")
                first = next(inner, b"")
                return first, inner
    except tarfile.TarError as error:
        raise UnsafeImage("MalformedImage", f"Unable to process data: tar archive is damaged: {error}") from error
    raise UnsafeImage("UnsupportedFormat", "Unable to process data: the tar archive holds no disk image")


def _chain(head: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from pieces


def _raw(job: Job, head: bytes, pieces: Iterator[bytes]) -> Report:
    """Raw bytes to their place; runs of zeros stay holes."""
    position = 0
    for piece in _chain(head, pieces):
        check_size(position + len(piece), job.limit_bytes)
        position = write_sparse(job.target, piece, position)
    return Report(done=True, format="raw", virtual_bytes=position, file_bytes=position)


def _store(job: Job, image: Image, head: bytes, pieces: Iterator[bytes]) -> Report:
    if image.format not in ("raw", "qcow2"):
        raise UnsafeImage(
            "UnsupportedFormat", f"Unable to process data: a container disk must be raw or qcow2, not {image.format}"
        )
    length = _whole(job.target, head, pieces, job.limit_bytes)
    size = image.virtual_bytes if image.format == "qcow2" else length
    return Report(done=True, format=image.format, virtual_bytes=size, file_bytes=length)


def _whole(fd: int, head: bytes, pieces: Iterator[bytes], limit: int) -> int:
    position = 0
    for piece in _chain(head, pieces):
        check_size(position + len(piece), limit)
        position = write_sparse(fd, piece, position)
    os.ftruncate(fd, position)
    return position


def _qcow2(job: Job, head: bytes, pieces: Iterator[bytes]) -> Report:
    header = qcow2_header(head)
    stream = Qcow2Stream(header, job.target, job.spill)
    try:
        count = 0
        for piece in _chain(head, pieces):
            stream.feed(piece)
            count += len(piece)
        stream.finish()
    finally:
        stream.close()
    return Report(done=True, format="raw", virtual_bytes=header.virtual_bytes, file_bytes=count)


def write_sparse(fd: int, data: bytes, offset: int) -> int:
    """Write what is not zero, in pieces that begin at multiples of 64 KiB of the file; answers the offset after it."""
    view, position, start = memoryview(data), 0, -1
    while position < len(view):
        step = min(_HOLE - (offset + position) % _HOLE, len(view) - position)
        if view[position : position + step] == _ZEROS[:step]:
            if start >= 0:
                _write(fd, view[start:position], offset + start)
                start = -1
        elif start < 0:
            start = position
        position += step
    if start >= 0:
        _write(fd, view[start:], offset + start)
    return offset + len(data)


def _write(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def _write_back(fd: int) -> None:
    """Have the kernel write while data still comes, so that the sync at the end has little left to do.

    sync_file_range(2) with SYNC_FILE_RANGE_WRITE starts writing and waits for nothing.
    """
    libc = ctypes.CDLL(None)
    while True:
        time.sleep(_WRITE_BACK_SECONDS)
        libc.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), 2)


def main() -> None:
    """Read the job, confine, run, report."""
    line = b""
    while b"\n" not in line:
        piece = os.read(0, 1 << 16)
        if not piece:
            sys.exit(2)
        line += piece
    text, _, rest = line.partition(b"\n")
    job = msgspec.json.decode(text, type=Job)
    try:
        confine(job.limits)
    except OSError as error:
        _emit(Report(error=f"Unable to confine the import worker: {error}", reason="Error"))
        return
    sys.setswitchinterval(_SWITCH_SECONDS)
    if job.target >= 0:
        threading.Thread(target=_write_back, args=(job.target,), daemon=True).start()
    report = run(job, rest)
    if job.target >= 0 and not report.error:
        try:
            os.fsync(job.target)
        except OSError as error:
            report = Report(error=_os_words(error), reason="NoSpace" if error.errno == errno.ENOSPC else "Error")
    _emit(report)
    os._exit(0)  # a reader thread may still wait for the network


if __name__ == "__main__":
    main()
