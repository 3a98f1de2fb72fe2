"""`stead up`: the plane and the agent as two processes, kept running, the plane without privileges; on a host that has
joined another's plane, the agent alone.

A plain loop without threads. A child that ends is started again, at first at once, then with a back-off of up to
`MAX_DELAY`. On SIGTERM both get it too and `STOP_SECONDS` to end; when this process dies unasked, the kernel tells
them to end, so that the next `stead up` finds their places free. Machines are children of nobody here: they go on.
Certificates are renewed in passing, since only this process may write both halves' files. In the background, the log
that all three write is kept below `LOG_BYTES` times `LOGS_KEPT + 1`.

`stead up` becomes `python -m stead.supervise [SETTINGS FILE]`, which imports a tenth of what the command line does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from stead import installation
from stead.config import ConfigError, Settings, load

MAX_DELAY = 30.0
STOP_SECONDS = 15.0
#: How long a child must have run for its next failure to count as a first one.
STEADY_SECONDS = 60.0
RENEW_SECONDS = 6 * 3600.0
#: How often a child's end, a signal and the log are looked for, seconds.
BEAT_SECONDS = 0.1
LOG_SECONDS = 10.0
LOG_BYTES = 16 * 1024**2
LOGS_KEPT = 3
#: How long systemd is let wait for an API that does not come up before it hears that we run, seconds.
READY_SECONDS = 20.0
#: How long `detach` waits for the process that it started to hold its place, seconds.
START_SECONDS = 20.0


class NotStarted(Exception):
    """`stead up` ended at once in the background; the message says where the reason stands, and its last line."""


class Child:
    """One supervised process."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._started = 0.0
        self._next = 0.0

    def tend(self, now: float) -> None:
        """Start it when it is due; notice its end."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            if now - self._started > STEADY_SECONDS:
                self._failures = 0
            delay = self._delay()
            self._failures += 1
            self._next = now + delay
            self._process = None
            print(f"stead up: {self.name} ended with {code}; starting it again in {delay:.1f} s", file=sys.stderr)
        if now >= self._next:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, cwd="/")
            self._started = now

    def _delay(self) -> float:
        """None after the first failure, then doubling; the exponent is bounded since failures are not."""
        return min(MAX_DELAY, 0.2 * 2.0 ** min(self._failures, 10)) if self._failures else 0.0

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None


def _command(settings: Settings, name: str, arguments: Sequence[str]) -> list[str]:
    """setpriv(1) drops the plane's privileges and has the kernel end the child when this process is no more."""
    owner = installation.account(settings) if name == "plane" else None
    identity = ["--reuid", str(owner.pw_uid), "--regid", str(owner.pw_gid), "--clear-groups"] if owner else []
    return ["setpriv", *identity, "--pdeathsig", "TERM", "--",
            sys.executable, "-P", "-m", "stead.cli.main", *arguments, name]  # fmt: skip


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)) when it asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send(state.encode())


def _api_answers(settings: Settings) -> bool:
    """Whether somebody accepts connections where the API listens; a host without a plane need not wait for that."""
    if settings.is_joined:
        return True
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.listen_address, settings.listen_address)  # noqa: S104
    with contextlib.suppress(OSError), socket.create_connection((address, settings.listen_port), timeout=0.2):
        return True
    return False


def command(config: Path | None) -> list[str]:
    """The command line of this module as a process."""
    return [sys.executable, "-P", "-m", "stead.supervise", *([str(config)] if config else [])]


def main(words: Sequence[str]) -> None:
    """`up` by the command line: WORDS is the settings file, or nothing. Ends with 1 and one sentence on a refusal."""
    config = Path(words[0]) if words else None
    try:
        up(load(config), config)
    except (ConfigError, installation.AlreadyRunning, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


class _Stopping:
    """Becomes true with the first SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self._asked = True

    def __bool__(self) -> bool:
        return self._asked


def up(settings: Settings, config: Path | None) -> None:
    """Run until SIGTERM or SIGINT. Raises ConfigError, installation.AlreadyRunning."""
    stopping = _Stopping()
    _prepare(settings)
    arguments = ["--config", str(config)] if config else []
    with installation.running(settings, "up"):
        installation.note_release(settings)
        _await_orphans(settings, stopping)
        names = ("agent",) if settings.is_joined else ("plane", "agent")
        children = [Child(name, _command(settings, name, arguments)) for name in names]
        try:
            keep(children, stopping, _Chores(settings))
        finally:
            _notify("STOPPING=1")
            stop(children)


def _prepare(settings: Settings) -> None:
    """`installation.prepare` in a child, with which the libraries for certificates leave the memory again (8 MB).

    Raises ConfigError with the child's sentence.
    """
    reading, writing = os.pipe()
    pid = os.fork()  # there are no threads here
    if pid == 0:
        code = 1
        try:
            installation.prepare(settings)
            code = 0
        except (ConfigError, OSError) as error:
            os.write(writing, str(error).encode()[:4000])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode("utf-8", "replace")
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise ConfigError(told or "the directories and certificates of this installation could not be made")


def _await_orphans(settings: Settings, stopping: _Stopping) -> None:
    """Children of a supervisor that was killed end by themselves within seconds; their successors wait for that."""
    deadline = time.monotonic() + STOP_SECONDS
    while not stopping and time.monotonic() < deadline:
        if not any(installation.running_pid(settings, name) for name in ("plane", "agent")):
            return
        time.sleep(BEAT_SECONDS)


class _Chores:
    """What the loop does beside its children: readiness told once, certificates renewed, the log kept small."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log = log_path(settings)
        self._begun = self._renewed = self._rotated = time.monotonic()
        self._is_told = "NOTIFY_SOCKET" not in os.environ

    def __call__(self, now: float) -> None:
        if not self._is_told and (now - self._begun > READY_SECONDS or _api_answers(self._settings)):
            self._is_told = True
            _notify("READY=1")
        if now - self._renewed > min(RENEW_SECONDS, self._settings.certificate_seconds / 12):
            _prepare(self._settings)
            self._renewed = now
        if now - self._rotated > LOG_SECONDS:
            self._rotated = now
            if _is_our_output(self._log):
                rotate(self._log)


def keep(children: Sequence[Child], stopping: object, chores: Callable[[float], None]) -> None:
    """Keep the children running, and call `chores` with the time at each beat, until `stopping` is true."""
    while not stopping:
        now = time.monotonic()
        for child in children:
            child.tend(now)
        chores(now)
        time.sleep(BEAT_SECONDS)


def stop(children: Sequence[Child], seconds: float = STOP_SECONDS) -> None:
    """End the children: SIGTERM, and SIGKILL for those that still run after `seconds`. All are reaped."""
    for child in children:
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while any(child.is_running for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    for child in children:
        child.signal(signal.SIGKILL)
    while any(child.is_running for child in children):
        time.sleep(0.02)


def log_path(settings: Settings) -> Path:
    """Where a Stead in the background writes."""
    return settings.state_dir / "log" / "stead.log"


def _is_our_output(log: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(sys.stderr.fileno()), log.stat())
    return False


def rotate(log: Path, size: int = LOG_BYTES, kept: int = LOGS_KEPT) -> bool:
    """Move the text of a log larger than `size` bytes to `<log>.1`, what was there to `.2`, and so on; True if it did.

    Three processes hold the file open for appending, so it is copied and cut, not renamed; lines written between the
    two steps are lost, which a log can bear and a full disk cannot.
    """
    if log.stat().st_size <= size:
        return False
    for number in range(kept, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            log.with_name(f"{log.name}.{number - 1}").replace(log.with_name(f"{log.name}.{number}"))
    first = log.with_name(f"{log.name}.1")
    try:
        with log.open("rb") as source, os.fdopen(_create(first), "wb") as target:
            source.seek(max(0, log.stat().st_size - size))  # bounded although somebody may write very fast
            shutil.copyfileobj(source, target)
    except OSError:  # no space for the copy is a reason more to cut
        first.unlink(missing_ok=True)
    os.truncate(log, 0)
    return True


def _create(path: Path, mode: int = os.O_TRUNC) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | mode, 0o640)


def detach(settings: Settings, config: Path | None) -> int:
    """Start `stead up` in the background; returns its pid once it holds its place. Raises ConfigError, NotStarted."""
    installation.prepare(settings)
    path = log_path(settings)
    log = _create(path, os.O_APPEND)
    try:
        process = subprocess.Popen(
            command(config),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(log)
    deadline = time.monotonic() + START_SECONDS
    while installation.running_pid(settings, "up") != process.pid:
        if process.poll() is not None or time.monotonic() > deadline:
            last = path.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            raise NotStarted(f"Stead did not start; its log is {path}. Last line: {last[-500:]}")
        time.sleep(0.02)
    return process.pid


if __name__ == "__main__":
    main(sys.argv[1:])
