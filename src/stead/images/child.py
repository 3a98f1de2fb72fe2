"""Runs image work in unprivileged children: the import worker and qemu-img, each under a uid of its own.

Called by the agent's volume workers, the container disk store and the image commands, on the event loop; the children
do all blocking work. A child gets open descriptors only and is killed when its caller is cancelled or dies. The agent
reads nothing but the child's JSON reports, bounded in size.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec

import stead
from stead.images.confine import Limits
from stead.images.jobs import Job, Report

#: uids that transfers run under: never those of machines, accounts or containers' usual ranges
FIRST_UID = 2_147_000_000
UIDS = 64

_taken: set[int] = set()
_MAX_LINE = 1 << 20
#: a child that reports nothing for this long is stalled and is ended, in seconds (sources give up after 60 by
#: themselves)
_SILENCE_SECONDS = 900.0

OnReport = Callable[[Report], None]


class TransferFailed(Exception):
    """A transfer ended badly. `reason` is for conditions, the message for people; `fatal` = do not try again."""

    def __init__(
        self, reason: str, message: str, *, fatal: bool = False, scratch: bool = False, resumable: bool = False
    ) -> None:
        """`scratch`: once more, with the whole image kept; `resumable`: what the journal names may be gone on with."""
        super().__init__(message)
        self.reason = reason
        self.fatal = fatal
        self.scratch = scratch
        self.resumable = resumable


@contextlib.contextmanager
def transfer_uid() -> Iterator[int]:
    """A uid that no other transfer of this process uses now; 0 when we are not root and cannot change."""
    if os.geteuid() != 0:
        yield 0
        return
    uid = next((u for u in range(FIRST_UID, FIRST_UID + UIDS) if u not in _taken), 0)
    if not uid:
        raise TransferFailed("Busy", f"more than {UIDS} transfers at once")
    _taken.add(uid)
    try:
        yield uid
    finally:
        _taken.discard(uid)


def _environment() -> dict[str, str]:
    """A child's whole environment: our package's place, the locale, nothing of the caller's but the resolver's."""
    package_root = str(Path(stead.__file__).resolve().parent.parent)
    kept = {k: v for k, v in os.environ.items() if k in ("SSL_CERT_FILE", "SSL_CERT_DIR", "TZ")}
    paths = [p for p in sys.path if p and p != package_root]
    return {**kept, "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join([package_root, *paths])}  # fmt: skip


async def run_worker(job: Job, on_report: OnReport | None = None, body: AsyncIterator[bytes] | None = None) -> Report:
    """Run the import worker on a job and answer its final report; TransferFailed when that is an error.

    The job's descriptors are open in this process; they are passed on and stay open here. `body` is
    an upload's data, written to the worker as fast as it takes it.
    """
    with transfer_uid() as uid:
        if uid:
            for fd in job.descriptors:
                os.fchown(fd, uid, uid)
        limits = Limits(uid=uid, network=job.kind != "upload", file_bytes=2 * job.limit_bytes + (2 << 30))
        try:
            return await _worker(msgspec.structs.replace(job, limits=limits), on_report, body)
        finally:
            if uid:
                for fd in job.descriptors:
                    os.fchown(fd, 0, 0)


async def _worker(job: Job, on_report: OnReport | None, body: AsyncIterator[bytes] | None) -> Report:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-S", "-m", "stead.images.worker", stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        pass_fds=job.descriptors, env=_environment(), cwd="/", limit=_MAX_LINE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read(1 << 16))
    feeding = asyncio.create_task(_feed(process, msgspec.json.encode(job) + b"\n", body))
    try:
        final = Report(error="the import worker ended without a report", reason="Error")
        while True:
            async with asyncio.timeout(_SILENCE_SECONDS):
                line = await process.stdout.readline()
            if not line:
                break
            final = msgspec.json.decode(line, type=Report)
            if on_report and not final.done and not final.error:
                on_report(final)
        await process.wait()
        if feeding.done() and not feeding.cancelled() and (failure := feeding.exception()) and not final.done:
            raise TransferFailed("Error", f"Unable to process data: upload broke off: {failure}") from failure
        if final.error or not final.done:
            told = final.error or "the import worker ended without a report"
            if not final.reason or "without a report" in told:
                told += f" (code {process.returncode}): {(await errors).decode(errors='replace').strip()[-300:]}"
            raise TransferFailed(
                final.reason or "Error", told, fatal=final.fatal, scratch=final.scratch,
                resumable=final.resumable or "without a report" in told,
            )  # fmt: skip
        return final
    except TimeoutError:
        raise TransferFailed("Error", "Unable to transfer source data: no progress for 15 minutes") from None
    finally:
        feeding.cancel()
        errors.cancel()
        await end(process)


async def _feed(process: asyncio.subprocess.Process, job: bytes, body: AsyncIterator[bytes] | None) -> None:
    """Write the job and the body. A body that breaks off must not look complete, so the worker is killed then."""
    stdin = process.stdin
    assert stdin is not None
    try:
        await _pour(stdin, job)
        if body is not None:
            async for piece in body:
                if not await _pour(stdin, piece):
                    return  # the worker has ended; its report says why
        stdin.close()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise


async def _pour(stdin: asyncio.StreamWriter, data: bytes) -> bool:
    """Write and wait for room; False when nobody reads any more."""
    try:
        stdin.write(data)
        await stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill a child that still runs, and reap it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Program(msgspec.Struct, frozen=True):
    """A program to run confined, e.g. qemu-img: arguments, inherited descriptors, the largest file it may write."""

    arguments: tuple[str, ...]
    descriptors: tuple[int, ...] = ()
    file_bytes: int = 0
    deadline_seconds: float = 6 * 3600.0


async def run_program(program: Program, on_percent: Callable[[float], None] | None = None) -> str:
    """Run a program (no network, own uid, filtered calls) to its end; answer its output, TransferFailed on failure.

    The descriptors are given to the child's uid meanwhile, so that it can open them as /dev/fd/N.
    """
    with transfer_uid() as uid:
        limits = Limits(uid=uid, programs=True, file_bytes=program.file_bytes, memory_bytes=4 << 30)
        if uid:
            for fd in program.descriptors:
                os.fchown(fd, uid, uid)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "stead.images.confine", msgspec.json.encode(limits).decode(),
            *program.arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, pass_fds=program.descriptors, env=_environment(), cwd="/",
        )  # fmt: skip
        try:
            async with asyncio.timeout(program.deadline_seconds):
                out, err = await asyncio.gather(_output(process.stdout, on_percent), _output(process.stderr, None))
                code = await process.wait()
        except TimeoutError:
            raise TransferFailed(
                "Error", f"{program.arguments[0]} took longer than {program.deadline_seconds:.0f} s"
            ) from None
        finally:
            await end(process)
            if uid:
                for fd in program.descriptors:
                    os.fchown(fd, 0, 0)
    if code:
        words = err.strip().splitlines()[-1] if err.strip() else f"code {code}"
        reason = "NoSpace" if "No space left" in err else "Error"
        raise TransferFailed(reason, f"Unable to process data: {program.arguments[0]}: {words}")
    return out


async def _output(stream: asyncio.StreamReader | None, on_percent: Callable[[float], None] | None) -> str:
    """All a program prints (the last 64 KiB); `(12.34/100%)` is its progress."""
    assert stream is not None
    kept = ""
    while data := await stream.read(4096):
        text = data.decode(errors="replace")
        found = re.findall(r"\(([0-9.]+)/100%\)", text)
        if found and on_percent:
            on_percent(float(found[-1]))
        kept = (kept + text)[-65536:]
    return kept
