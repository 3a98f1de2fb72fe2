"""The import worker: the only code that reads image, archive and registry bytes. A program of its own, unprivileged.

Started by `stead.images.child` as `python -m stead.images.worker`; standard input's first line is a `Job` (JSON), what
follows it is the body of an upload; standard output is one JSON `Report` a line. It loads its modules, confines itself
(`stead.images.confine`), then fills the descriptors it inherited: the target (a raw disk, all holes), a spill file for
what must be seen again, a journal of how far it has come. It opens no file of its own. Exit code 0 whenever a final
report was written. How bytes are dealt with: `stead.images.intake`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
import time

import msgspec

from stead.images.ahead import ReadAhead
from stead.images.confine import confine
from stead.images.intake import Progress, judge, receive, take_whole
from stead.images.jobs import UNCHANGED, Job, Report
from stead.images.qcow2stream import NotStreamable
from stead.images.safety import UnsafeImage
from stead.images.sources import HttpStream, SourceError, Stream, checksum_from_text

_REPORT_SECONDS = 0.5
#: a thread waits for the interpreter after each system call; the default of 5 ms would bound the throughput
_SWITCH_SECONDS = 0.0005
_WRITE_BACK_SECONDS = 0.1
#: the largest plain file (kernel, initial ramdisk) taken from an image
_PLAIN_LIMIT = 1 << 30


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


def _emit(report: Report) -> None:
    os.write(1, msgspec.json.encode(report) + b"\n")


def run(job: Job, upload: bytes = b"") -> Report:
    """Carry the job out and answer its final report; errors become reports here."""
    try:
        return _run(job, upload)
    except UnsafeImage as error:
        return Report(error=str(error), reason=error.reason)
    except SourceError as error:
        return Report(error=str(error), reason=error.reason, fatal=error.fatal, resumable=error.lost)
    except NotStreamable:
        return Report(error="Scratch space required", reason="Scratch space required", scratch=True)
    except MemoryError:
        return Report(
            error="Unable to process data: the image needs more memory than an import may use", reason="OOMKilled"
        )
    except OSError as error:
        return _report_from(error)
    except Exception as error:
        # hostile bytes may find any weakness of a parser; the process is ours alone, so say what happened and end
        return Report(error=f"Unable to process data: {type(error).__name__}: {error}", reason="Error")


def _report_from(error: OSError) -> Report:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Report(error="Unable to process data: no space left in the pool", reason="NoSpace")
    if error.errno == errno.EFBIG:
        words = "Unable to process data: image data does not fit the volume. A larger PVC is required."
        return Report(error=words, reason="Error")
    return Report(error=f"Unable to process data: {error}", reason="Error")


def _run(job: Job, upload: bytes) -> Report:
    stream: Stream
    digest, labels = "", {}
    progress = Progress(job)
    if job.kind in ("registry", "resolve"):
        from stead.images import oci  # loaded before privileges went, by `_load`

        registry = oci.Registry(oci.reference_from_text(job.url), job.access, insecure=job.insecure)
        resolved = registry.resolve(job.architecture)
        digest, labels = resolved.digest, {**resolved.labels, **oci.labels_from_environment(resolved.environment)}
        if job.kind == "resolve":
            return Report(done=True, digest=digest, labels=labels)
        if digest == job.known_digest:
            return Report(error=f"The image is still {digest}", reason=UNCHANGED, fatal=True)
        stream = registry.file(resolved, job.path, job.limit_bytes)
    elif job.kind == "http" and job.mode == "disk":
        stream = progress.open()
    elif job.kind == "http":
        stream = HttpStream(job.url, job.access, checksum_from_text(job.checksum) if job.checksum else None)
    else:
        stream = _Upload(upload, job.total)
    report = _take_in(job, stream, progress)
    return msgspec.structs.replace(report, digest=digest, labels=labels)


def _take_in(job: Job, stream: Stream, progress: Progress) -> Report:
    begun, last = (progress.done.offset if progress.done else 0), 0.0

    def tell() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS:
            last = now
            _emit(Report(read=begun + ahead.count, total=stream.total))

    ahead = ReadAhead(stream, tell)
    if job.mode == "examine":
        return judge(job, ahead.pieces())
    if job.mode == "plain":
        length = take_whole(job.target, ahead.pieces(), min(job.limit_bytes, _PLAIN_LIMIT))
        report = Report(done=True, format="plain", file_bytes=length)
    else:
        report = receive(job, ahead, progress)
    read = begun + ahead.count
    return msgspec.structs.replace(report, read=read, total=read)


def _write_back(fd: int) -> None:
    """Have the kernel write while data still comes, so that the sync at the end has little left to do.

    sync_file_range(2) with SYNC_FILE_RANGE_WRITE starts writing and waits for nothing.
    """
    libc = ctypes.CDLL(None)
    while True:
        time.sleep(_WRITE_BACK_SECONDS)
        libc.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), 2)


def _load(job: Job) -> None:
    """Modules that are needed for this kind of job only. Afterwards files may be out of reach."""
    if job.kind in ("registry", "resolve") or job.url.startswith("https:"):
        import ssl  # noqa: F401

        import stead.images.oci  # noqa: F401
    if not job.url.isascii():
        import encodings.idna  # noqa: F401


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
    _load(job)
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
            report = _report_from(error)
    _emit(report)
    os._exit(0)  # a reader thread may still wait for the network


if __name__ == "__main__":
    main()
