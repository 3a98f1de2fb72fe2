"""`stead up` with tiny children: kept running, backed off, ended, orphaned, and the log kept small."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stead
from stead import installation, supervise
from stead.config import Settings

SOURCE = str(Path(stead.__file__).resolve().parent.parent)
#: what stands in for `stead plane` and `stead agent`: notes its start, holds its place, ends on SIGTERM
CHILD = """
import pathlib, signal, sys, time
sys.path.insert(0, {source!r})
from stead import installation
from stead.config import Settings
folder, name = pathlib.Path({folder!r}), sys.argv[1]
with (folder / (name + ".starts")).open("a") as starts:
    starts.write("x")
if (folder / (name + ".broken")).exists():
    sys.exit(3)
def end(*_):
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
with installation.running(Settings(state_dir=folder / "state", run_dir=folder / "run"), name):
    (folder / (name + ".up")).touch()
    while True:
        time.sleep(0.05)
"""
#: `stead up` of those children
UP = """
import pathlib, sys
sys.path.insert(0, {source!r})
from stead import supervise
from stead.config import Settings
command = supervise._command
def fake(settings, name, arguments):
    real = command(settings, name, arguments)
    return [*real[:real.index(sys.executable)], sys.executable, {child!r}, name]
supervise._command = fake
folder = pathlib.Path({folder!r})
settings = Settings(state_dir=folder / "state", run_dir=folder / "run", user="", host_name="h")
supervise.up(settings, None)
"""


class Place:
    """One installation in a folder, with children of ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings(state_dir=folder / "state", run_dir=folder / "run", user="", host_name="h")
        child, script = folder / "child.py", folder / "up.py"
        child.write_text(CHILD.format(source=SOURCE, folder=str(folder)))
        script.write_text(UP.format(source=SOURCE, folder=str(folder), child=str(child)))
        self.script = script
        self.started: list[subprocess.Popen[bytes]] = []

    def up(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, str(self.script)], stderr=subprocess.PIPE)
        self.started.append(process)
        return process

    def pid(self, name: str) -> int:
        return installation.running_pid(self.settings, name)

    def are_up(self) -> bool:
        return bool(self.pid("up") and self.pid("plane") and self.pid("agent"))

    def starts(self, name: str) -> int:
        path = self.folder / f"{name}.starts"
        return path.stat().st_size if path.exists() else 0

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
        until(lambda: not (self.pid("plane") or self.pid("agent")), "the children have ended")


def until(wanted: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain until {what}"
        time.sleep(0.02)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_ends_its_children_on_sigterm_and_leaves_nothing(place: Place) -> None:
    process = place.up()
    until(place.are_up, "all run")
    process.terminate()
    assert process.wait(20) == 0
    assert (place.pid("up"), place.pid("plane"), place.pid("agent")) == (0, 0, 0)


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 0.6])
def test_sigterm_while_starting_leaves_nothing(place: Place, delay: float) -> None:
    process = place.up()
    time.sleep(delay)
    process.terminate()
    assert process.wait(20) in (0, -signal.SIGTERM)
    until(lambda: not (place.pid("plane") or place.pid("agent")), "no child is left")


def test_keeps_no_library_in_memory_that_only_its_preparation_needs(place: Place) -> None:
    place.up()
    until(place.are_up, "all run")
    assert installation.Files.of(place.settings).api.certificate.exists()
    mapped = Path(f"/proc/{place.pid('up')}/maps").read_text()
    assert not [name for name in ("cryptography", "aiohttp", "yaml", "libssl") if name in mapped]


def test_what_cannot_be_prepared_is_said_in_one_sentence(place: Place) -> None:
    (place.folder / "away").mkdir()
    (place.folder / "state").symlink_to(place.folder / "away")
    process = place.up()
    _, told = process.communicate(timeout=20)
    assert process.returncode == 1
    assert told.decode().strip().splitlines()[-1].startswith("stead.config.ConfigError: ")
    assert str(place.folder / "state") in told.decode()


def test_starts_a_killed_child_again_at_once(place: Place) -> None:
    place.up()
    until(place.are_up, "all run")
    old = place.pid("agent")
    os.kill(old, signal.SIGKILL)
    until(lambda: place.pid("agent") not in (0, old), "another agent runs", 10)
    assert not Path(f"/proc/{old}").exists(), "the old one is reaped"


def test_children_of_a_killed_supervisor_end_and_the_next_one_takes_over(place: Place) -> None:
    first = place.up()
    until(place.are_up, "all run")
    first.kill()
    first.wait()
    second = place.up()
    until(lambda: place.are_up() and place.pid("up") == second.pid, "the second supervisor's children run")
    assert place.starts("plane") == 2, "its plane did not have to try several times"


def test_a_second_one_is_refused_with_the_pid_of_the_first(place: Place) -> None:
    first = place.up()
    until(place.are_up, "all run")
    _, errors = place.up().communicate(timeout=20)
    assert f"pid {first.pid}" in errors.decode()
    assert place.are_up()


def test_a_crash_loop_is_slowed_down_and_the_other_child_is_left_alone(place: Place) -> None:
    (place.folder / "agent.broken").touch()
    place.up()
    until(lambda: place.starts("agent") >= 3, "the agent was tried several times")
    assert place.starts("plane") == 1
    (place.folder / "agent.broken").unlink()
    until(lambda: place.pid("agent"), "the mended agent runs")


def test_delays_double_to_a_bound_however_long_a_child_fails() -> None:
    child = supervise.Child("agent", ["false"])
    delays = []
    for failures in (*range(10), 5000):
        child._failures = failures
        delays.append(child._delay())
    assert delays[0] == 0.0
    assert delays[1:4] == pytest.approx([0.4, 0.8, 1.6])
    assert delays[-2:] == [supervise.MAX_DELAY, supervise.MAX_DELAY]


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = "import pathlib,signal,sys,time; signal.signal(15, 1); pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    child = supervise.Child("agent", [sys.executable, "-c", script, str(tmp_path / "up")])
    child.tend(1.0)
    until((tmp_path / "up").exists, "it runs")
    supervise.stop([child], 0.2)
    assert not child.is_running


def test_detach_returns_a_running_supervisor_or_says_why_not(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    def popen(command: list[str], **more: object) -> subprocess.Popen[bytes]:
        process = real([sys.executable, str(place.script)], **more)  # type: ignore[call-overload]  # as it was called
        place.started.append(process)
        return process  # type: ignore[no-any-return]

    monkeypatch.setattr(supervise.subprocess, "Popen", popen)
    pid = supervise.detach(place.settings, None)
    assert place.pid("up") == pid
    with pytest.raises(supervise.NotStarted, match=f"pid {pid}"):
        supervise.detach(place.settings, None)


def test_systemd_hears_of_readiness_when_the_api_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    answers = [False, False, True, True]
    monkeypatch.setenv("NOTIFY_SOCKET", "@none")
    monkeypatch.setattr(supervise, "_notify", told.append)
    monkeypatch.setattr(supervise, "_api_answers", lambda _settings: answers.pop(0))
    chores = supervise._Chores(Settings(state_dir=tmp_path, run_dir=tmp_path))
    for beat in range(5):
        chores(chores._begun + beat / 10)
    assert told == ["READY=1"]
    assert answers == [True]


def test_the_log_is_kept_small_and_its_writers_go_on(tmp_path: Path) -> None:
    log = tmp_path / "stead.log"
    with contextlib.closing(os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "wb", 0)) as writer:
        assert not supervise.rotate(log, 100, 2)
        for number in range(5):
            writer.write(f"{number}".encode() * 150)
            assert supervise.rotate(log, 100, 2)
        writer.write(b"after")
    assert log.read_bytes() == b"after"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stead.log", "stead.log.1", "stead.log.2"]
    assert (tmp_path / "stead.log.1").read_bytes() == b"4" * 100
    assert (tmp_path / "stead.log.2").read_bytes() == b"3" * 100
