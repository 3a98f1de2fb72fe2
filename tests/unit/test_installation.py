"""What `prepare` makes and keeps, who holds which place, and which release runs."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from cryptography import x509

from stead import installation
from stead.config import Pool, Settings


def settings_in(folder: Path, **more: object) -> Settings:
    return Settings(state_dir=folder / "state", run_dir=folder / "run", user="", host_name="h", **more)  # type: ignore[arg-type]  # of Settings' own fields


def test_prepare_is_idempotent_and_keys_are_private(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    files = installation.prepare(settings)
    before = {path: path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()}
    installation.prepare(settings)
    assert before == {path: path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()}
    for path in (files.authority.key, files.api.key, files.plane.key, files.agent.key, files.token_key,
                 files.admin_kubeconfig):  # fmt: skip
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_administrators_kubeconfig_follows_the_url(tmp_path: Path) -> None:
    installation.prepare(settings_in(tmp_path))
    files = installation.prepare(settings_in(tmp_path, listen_port=7443))
    assert "https://127.0.0.1:7443" in files.admin_kubeconfig.read_text()


@pytest.mark.parametrize("listened", ["0.0.0.0", "::"])
def test_the_certificate_names_the_hosts_addresses_of_both_families(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listened: str
) -> None:
    addresses = ("192.0.2.7", "2001:db8::7", "fe80::7%eth0")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_all: [(0, 0, 0, "", (a, 0)) for a in addresses])
    files = installation.prepare(settings_in(tmp_path, listen_address=listened))
    found = x509.load_pem_x509_certificate(files.api.certificate.read_bytes()).extensions
    names = found.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.IPAddress)
    assert {str(name) for name in names} == {"127.0.0.1", "::1", "192.0.2.7", "2001:db8::7"}


def test_a_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        installation.prepare(settings_in(tmp_path))
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("text", ["", "4711", "not a number"])
def test_a_stale_pid_file_says_that_nothing_runs_and_is_taken_over(tmp_path: Path, text: str) -> None:
    settings = settings_in(tmp_path)
    settings.run_dir.mkdir()
    (settings.run_dir / "up.pid").write_text(text)
    assert installation.running_pid(settings, "up") == 0
    assert installation.started_at(settings, "up") == 0
    with installation.running(settings, "up"):
        assert installation.running_pid(settings, "up") == os.getpid()
        assert installation.started_at(settings, "up") > 0
        with pytest.raises(installation.AlreadyRunning, match=str(os.getpid())), installation.running(settings, "up"):
            pass
    assert installation.running_pid(settings, "up") == 0


def test_another_release_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_in(tmp_path)
    settings.run_dir.mkdir()
    assert not installation.runs_this_release(settings)
    installation.note_release(settings)
    assert installation.runs_this_release(settings)
    monkeypatch.setattr(installation, "release", lambda: "another")
    assert not installation.runs_this_release(settings)


def test_forgetting_leaves_only_what_others_keep_there(tmp_path: Path) -> None:
    pools = (Pool(name="default", path=tmp_path / "state/pools/default"), Pool(name="images", path=tmp_path / "images"))
    settings = settings_in(tmp_path, pools=pools)
    installation.prepare(settings)
    for pool in pools:
        pool.path.mkdir(exist_ok=True)
        (pool.path / "pool.json").write_text("{}")
    (tmp_path / "images/theirs.qcow2").touch()
    (tmp_path / "state/golden").mkdir()
    installation.forget(settings)
    assert not (tmp_path / "state").exists()
    assert not (tmp_path / "run").exists()
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["theirs.qcow2"]


def test_forgetting_keeps_disks_and_the_identity_of_their_pool(tmp_path: Path) -> None:
    pool = Pool(name="default", path=tmp_path / "state/pools/default")
    settings = settings_in(tmp_path, pools=(pool, Pool(name="images", path=tmp_path / "images")))
    installation.prepare(settings)
    (pool.path / "some-uid").mkdir(parents=True)
    for name in ("pool.json", "some-uid/volume.json", "some-uid/disk.img"):
        (pool.path / name).touch()
    installation.forget(settings)
    assert (pool.path / "some-uid/disk.img").exists()
    assert (pool.path / "pool.json").exists()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["pools"]
