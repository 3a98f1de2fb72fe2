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
    now = datetime.datetime.now(datetime.UTC)
    assert not pki.is_due(path, identity, now=now + datetime.timedelta(seconds=30))
    assert pki.is_due(path, identity, now=now + datetime.timedelta(seconds=50))
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


def names_of(authority: pki.Pair) -> list[int]:
    return [certificate.serial_number for certificate in pki.trusted(authority)]


def test_a_ca_changes_in_steps_and_what_the_old_one_issued_is_trusted_until_the_last(tmp_path: Path) -> None:
    authority = pki.ensure_authority(tmp_path, "stead")
    pair, identity = pki.Pair(tmp_path / "a.crt", tmp_path / "a.key"), pki.Identity("a", names=("127.0.0.1",))
    pki.ensure_certificate(authority, pair, identity)
    [old] = names_of(authority)
    pki.introduce(authority, "stead")
    pki.introduce(authority, "stead")
    assert len(names_of(authority)) == 2, "twice is once"
    assert pki.issuing(authority).serial_number == old
    assert not pki.ensure_certificate(authority, pair, identity), "nothing is issued anew yet"
    pki.switch(authority)
    assert pki.issuing(authority).serial_number != old
    assert old in names_of(authority)
    assert pki.ensure_certificate(authority, pair, identity), "by the new one now"
    pki.server_context(pair, authority.certificate, require_client=True)
    assert pki.drop(authority)
    assert names_of(authority) == [pki.issuing(authority).serial_number]
    assert not pki.drop(authority)
    with pytest.raises(FileNotFoundError):
        pki.switch(authority)


def test_an_aging_ca_makes_place_by_itself(tmp_path: Path) -> None:
    authority = pki.ensure_authority(tmp_path, "stead", datetime.timedelta(days=600))
    [old] = names_of(authority)
    start = datetime.datetime.now(datetime.UTC)

    def tended(day: int) -> tuple[int, bool]:
        pki.tend_authority(authority, "stead", start + datetime.timedelta(days=day))
        return len(names_of(authority)), pki.issuing(authority).serial_number == old

    assert [tended(day) for day in (0, 300)] == [(1, True)] * 2
    assert [tended(day) for day in (410, 450)] == [(2, True)] * 2, "both are trusted, the old one issues"
    assert [tended(day) for day in (510, 590)] == [(2, False)] * 2, "both are trusted, the new one issues"
    assert tended(601) == (1, False)


def test_no_certificate_outlives_its_ca(tmp_path: Path) -> None:
    authority = pki.ensure_authority(tmp_path, "stead", datetime.timedelta(days=10))
    certificate, _ = pki.issue_pair(authority, pki.Identity("a"), datetime.timedelta(days=365))
    ends = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    assert ends <= pki.issuing(authority).not_valid_after_utc
