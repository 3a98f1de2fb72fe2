"""`stead up --detach|down|status|uninstall`: what people and programs are told, and which release ends up running."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stead import installation, supervise
from stead.cli import hosts
from stead.cli.main import main
from stead.config import Settings, load


class Host:
    """The commands with settings below a folder, and a `stead up` that is only pretended."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.environ = {"STEAD_STATE_DIR": str(folder / "state"), "STEAD_RUN_DIR": str(folder / "run"),
                        "STEAD_USER": "", "STEAD_LISTEN_PORT": "1", "KUBECONFIG": ""}  # fmt: skip
        self.settings = load(None, self.environ)
        self.pid = 0
        self.is_current = True
        self.done: list[str] = []
        monkeypatch.setattr(hosts.os, "geteuid", lambda: 0)
        monkeypatch.setattr(installation, "running_pid", lambda _settings, what: self.pid if what == "up" else 0)
        monkeypatch.setattr(installation, "runs_this_release", lambda _settings: self.is_current)
        monkeypatch.setattr(supervise, "detach", self._detach)
        monkeypatch.setattr(hosts, "_stop", self._stop)

    def _detach(self, settings: Settings, config: Path | None) -> int:
        self.done.append("start")
        self.pid = 4711
        return self.pid

    def _stop(self, settings: Settings, pid: int, timeout: float) -> None:
        self.done.append(f"stop {pid}")
        self.pid = 0

    def stead(self, *words: str) -> Result:
        return CliRunner().invoke(main, words, env=self.environ)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_up_detached_twice_starts_once(host: Host) -> None:
    assert "pid 4711" in host.stead("up", "--detach").output
    again = host.stead("up", "--detach")
    assert again.exit_code == 0
    assert again.output == "Stead runs already (pid 4711).\n"
    assert host.done == ["start"]


def test_up_detached_replaces_a_running_stead_of_another_release(host: Host) -> None:
    host.pid, host.is_current = 7, False
    outcome = host.stead("up", "--detach")
    assert outcome.exit_code == 0
    assert host.done == ["stop 7", "start"]
    assert "Machines go on running" in outcome.output


def test_up_detached_says_why_it_did_not_start(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(settings: Settings, config: Path | None) -> int:
        raise supervise.NotStarted("Stead did not start; its log is L. Last line: port taken")

    monkeypatch.setattr(supervise, "detach", refused)
    outcome = host.stead("up", "--detach")
    assert outcome.exit_code == 1
    assert outcome.output == "Error: Stead did not start; its log is L. Last line: port taken\n"


def test_down_without_a_stead_is_no_failure(host: Host) -> None:
    outcome = host.stead("down")
    assert (outcome.exit_code, outcome.output) == (0, "Stead does not run here.\n")


def test_status_of_nothing_fails_with_the_next_step_and_as_json_is_one_object(host: Host) -> None:
    table = host.stead("status")
    assert table.exit_code == 1
    assert "`stead up` has not run yet" in table.output
    outcome = host.stead("status", "-o", "json")
    assert outcome.exit_code == 1
    state = json.loads(outcome.stdout)
    assert state["ready"] is False
    assert state["processes"] == {"up": 0, "plane": 0, "agent": 0}


def test_status_says_that_the_api_does_not_answer(host: Host) -> None:
    installation.prepare(host.settings)
    outcome = host.stead("status")
    assert outcome.exit_code == 1
    assert "the API does not answer" in outcome.output
    assert "Traceback" not in outcome.output


def test_uninstalling_nothing_says_so(host: Host) -> None:
    outcome = host.stead("uninstall")
    assert outcome.exit_code == 0
    assert "nothing to remove" in outcome.output
    assert host.done == []


def test_uninstall_leaves_all_alone_when_it_cannot_list_what_exists(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.prepare(host.settings)
    broken = {"ready": False, "message": "the API does not answer: x"}
    monkeypatch.setattr(hosts, "_await_ready", lambda _settings, _seconds: broken)
    outcome = host.stead("uninstall", "--delete-machines-and-disks")
    assert outcome.exit_code == 1
    assert "cannot be listed" in outcome.output
    assert host.done == ["start"]
    assert host.settings.plane_dir.exists()
