"""The set-up's shell parts with stand-ins: the switch between releases and the way back; the unit file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Prefix:
    """A folder of releases in which each is a directory with a file `works` or without."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started = folder / "started"

    def release(self, name: str, *, works: bool = True) -> None:
        path = self.folder / "releases" / name
        path.mkdir(parents=True)
        (path / ".complete").touch()
        if works:
            (path / "works").touch()

    def switch(self, name: str) -> subprocess.CompletedProcess[str]:
        """switch_release with a start that notes which release it started, and succeeds where `works` lies."""
        script = f"""
        set -euo pipefail
        . packaging/host.sh
        . packaging/release.sh
        start() {{ readlink "{self.folder}/venv" >>"{self.started}"; [ -e "{self.folder}/venv/works" ]; }}
        switch_release "{self.folder}" "{name}" start
        echo "in use: $(readlink "{self.folder}/venv")"
        """
        return subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30)

    @property
    def in_use(self) -> str:
        return (self.folder / "venv").readlink().name

    @property
    def kept(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "releases").iterdir())

    @property
    def starts(self) -> list[str]:
        return [Path(line).name for line in self.started.read_text().split()]


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    return Prefix(tmp_path)


def test_the_release_before_is_kept_and_earlier_ones_go(prefix: Prefix) -> None:
    for name in ("one", "two", "three"):
        prefix.release(name)
        assert prefix.switch(name).returncode == 0
        assert prefix.in_use == name
    assert prefix.kept == ["three", "two"]
    assert (prefix.folder / "previous").readlink().name == "two"
    assert prefix.switch("three").returncode == 0
    assert prefix.kept == ["three", "two"], "a repeated run forgets nothing"


def test_a_release_that_does_not_become_ready_gives_way_to_the_one_before(prefix: Prefix) -> None:
    prefix.release("good")
    prefix.release("bad", works=False)
    prefix.switch("good")
    outcome = prefix.switch("bad")
    assert outcome.returncode == 1
    assert prefix.in_use == "good"
    assert prefix.starts == ["good", "bad", "good"]
    assert outcome.stderr.count("\n") == 1
    assert "The new release (bad) did not become ready, so the previous one was put back and runs" in outcome.stderr
    assert "good" in prefix.kept


def test_without_an_earlier_release_the_failure_is_said_and_nothing_is_lost(prefix: Prefix) -> None:
    prefix.release("bad", works=False)
    outcome = prefix.switch("bad")
    assert outcome.returncode == 1
    assert "Stead did not become ready" in outcome.stderr
    assert prefix.in_use == "bad"


def test_an_environment_made_in_place_becomes_a_release_to_go_back_to(prefix: Prefix) -> None:
    (prefix.folder / "venv").mkdir()
    (prefix.folder / "venv" / "works").touch()
    prefix.release("bad", works=False)
    assert prefix.switch("bad").returncode == 1
    assert prefix.in_use == "unnamed"


def test_the_name_of_a_release_follows_its_text_and_its_pinned_packages(tmp_path: Path) -> None:
    for name in ("src/stead/__init__.py", "benchmarks/x.py", "proofs/x.py", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def name() -> str:
        script = f". packaging/host.sh; . packaging/release.sh; release_name {tmp_path}"
        return subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    first = name()
    assert name() == first
    (tmp_path / "requirements.lock").write_text("another")
    second = name()
    (tmp_path / "src/stead/__init__.py").write_text("another")
    assert len({first, second, name()}) == 3


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--remove", "--nonsense"]])
def test_quickstart_refuses_what_it_does_not_know(arguments: list[str]) -> None:
    outcome = subprocess.run([ROOT / "quickstart", *arguments], capture_output=True, text=True, timeout=30)
    assert outcome.returncode == 1
    assert "unknown argument --nonsense" in outcome.stderr


def test_the_unit_is_one_that_systemd_accepts() -> None:
    if shutil.which("systemd-analyze") is None:
        print("not verified: systemd-analyze is not installed here")
        return
    unit = ROOT / "packaging" / "stead.service"
    outcome = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    # Whether the program and other units are installed is not the file's matter.
    mine = [line for line in outcome.stderr.splitlines() if "stead.service" in line and "is not executable" not in line]
    assert mine == []
