"""Settings come from file, environment and flags, and contradictions are refused; certificates renew before expiry."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509

from stead import config, pki


def test_the_later_source_wins(tmp_path: Path) -> None:
    file = tmp_path / "stead.toml"
    file.write_text('listen_port = 7000\ninstance = "two"\n[[pools]]\nname = "fast"\npath = "/srv/fast"\n')
    environ = {"STEAD_LISTEN_PORT": "7001", "STEAD_LISTEN_NAMES": "a,b", "STEAD_HOST_DISK_ROOTS": "/srv/a,/srv/b"}
    settings = config.load(file, environ, {"host_name": "Host-A"})
    assert settings.host_disk_roots == (Path("/srv/a"), Path("/srv/b"))
    assert settings.listen_port == 7001
    assert settings.instance == "two"
    assert settings.host == "host-a"
    assert settings.listen_names == ("a", "b")
    assert {pool.name for pool in settings.all_pools} == {"default", "fast"}


def test_libvirts_folder_is_a_pool_of_the_usual_instance_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LIBVIRT_IMAGES", tmp_path)
    assert {pool.name for pool in config.Settings().all_pools} == {"default", "images"}
    assert {pool.name for pool in config.Settings(instance="two").all_pools} == {"default"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("listen_prot = 1", "listen_prot"),
        ('pod_cidr = "10.0.0.1/16"', "host bits"),
        ('pod_cidr = "10.0.0.0/30"', "/28"),
        ('log_level = "loud"', "log_level"),
        ('instance = "a/b"', "instance"),
        ('state_dir = "x"', "absolute"),
        ('host_disk_roots = ["disks"]', "host_disk_roots"),
        ('host_disk_roots = ["/srv/../etc"]', "host_disk_roots"),
        ("a = [", "stead.toml"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "stead.toml"
    file.write_text(text)
    with pytest.raises(config.ConfigError, match=told):
        config.load(file, {})


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="does not exist"):
        config.load(tmp_path / "absent.toml", {})


def test_certificates_are_issued_once_and_renewed_when_due(tmp_path: Path) -> None:
    authority = pki.ensure_authority(tmp_path, "stead")
    pair = pki.Pair(tmp_path / "a.crt", tmp_path / "a.key")
    identity = pki.Identity("system:node:a", ("system:nodes",), ("127.0.0.1", "host.example"))
    assert pki.ensure_certificate(authority, pair, identity)
    assert not pki.ensure_certificate(authority, pair, identity)
    assert pair.key.stat().st_mode & 0o777 == 0o600
    found = x509.load_pem_x509_certificates(pair.certificate.read_bytes())[0]
    assert found.subject.rfc4514_string() == "CN=system:node:a,O=system:nodes"
    assert pki.ensure_certificate(authority, pair, pki.Identity("system:node:a", ("system:nodes",), ("127.0.0.2",)))


def test_a_certificate_with_a_third_of_its_life_left_is_due(tmp_path: Path) -> None:
    authority = pki.ensure_authority(tmp_path, "stead")
    identity = pki.Identity("a")
    certificate, _ = pki.issue_pair(authority, identity, datetime.timedelta(seconds=60))
    path = tmp_path / "a.crt"
    path.write_bytes(certificate)
    assert pki.is_due(path, identity)
    certificate, _ = pki.issue_pair(authority, identity)
    path.write_bytes(certificate)
    assert not pki.is_due(path, identity)
    assert pki.is_due(path, pki.Identity("b"))


def test_a_key_is_never_readable_by_others(tmp_path: Path) -> None:
    pki.ensure_key(tmp_path / "sa.key")
    first = (tmp_path / "sa.key").read_bytes()
    pki.ensure_key(tmp_path / "sa.key")
    assert (tmp_path / "sa.key").read_bytes() == first
    assert (tmp_path / "sa.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("listened", "url"),
    [("127.0.0.1", "https://127.0.0.1:6443"), ("::", "https://[::1]:6443"), ("fd00::1", "https://[fd00::1]:6443")],
)
def test_the_url_is_one_that_clients_understand(listened: str, url: str) -> None:
    assert config.Settings(listen_address=listened).url == url
