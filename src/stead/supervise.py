"""`stead up`: the plane and the agent as two processes, kept running, the plane without privileges.

A plain loop without threads. A child that ends is started again, at first at once, then with a back-off of up to
`MAX_DELAY`. On SIGTERM both get it too and `STOP_SECONDS` to end. Machines are children of nobody here: they go on.
Certificates are renewed in passing, since only this process may write both halves' files.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stead import installation
from stead.config import Settings

MAX_DELAY = 30.0
STOP_SECONDS = 15.0
#: How long a child must have run for its next failure to count as a first one.
STEADY_SECONDS = 60.0
RENEW_SECONDS = 6 * 3600.0


class _Child:
    """One supervised process."""

    def __init__(self, name: str, arguments: Sequence[str], settings: Settings) -> None:
        self.name = name
        self._arguments = list(arguments)
        self._settings = settings
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
            delay = min(MAX_DELAY, 0.2 * 2**self._failures) if self._failures else 0.0
            self._failures += 1
            self._next = now + delay
            self._process = None
            print(f"stead up: {self.name} ended with {code}; starting it again in {delay:.1f} s", file=sys.stderr)
        if now >= self._next:
            self._start(now)

    def _start(self, now: float) -> None:
        owner = installation.account(self._settings) if self.name == "plane" else None
        identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
        command = [sys.executable, "-P", "-m", "stead.cli.main", *self._arguments, self.name]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd="/", **identity)  # type: ignore[call-overload]  # keywords chosen above
        self._started = now

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)) when it asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send(state.encode())


def up(settings: Settings, config: Path | None) -> None:
    """Run until SIGTERM or SIGINT. Raises ConfigError, installation.AlreadyRunning."""
    installation.prepare(settings)
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    arguments = ["--config", str(config)] if config else []
    with installation.running(settings, "up"):
        children = [_Child(name, arguments, settings) for name in ("plane", "agent")]
        renewed = time.monotonic()
        for child in children:
            child.tend(time.monotonic())
        _notify("READY=1")
        while not stopping:
            time.sleep(0.1)
            now = time.monotonic()
            for child in children:
                child.tend(now)
            if now - renewed > RENEW_SECONDS:
                installation.prepare(settings)
                renewed = now
        _notify("STOPPING=1")
        _stop(children)


def _stop(children: list[_Child]) -> None:
    for child in children:
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while any(child.is_running for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in children:
        child.signal(signal.SIGKILL)


def detach(settings: Settings, config: Path | None) -> int:
    """Start `stead up` in the background with its log under the state directory; returns its pid."""
    installation.prepare(settings)
    log = os.open(
        settings.state_dir / "log" / "stead.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640
    )
    try:
        arguments = ["--config", str(config)] if config else []
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "stead.cli.main", *arguments, "up"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(log)
    return process.pid
