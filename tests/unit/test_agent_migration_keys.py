"""Keys of migrations: who reads them and whom they believe, only while a machine moves; none of others is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stead.agent.migration_keys import MigrationKeys

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user must be tried")


def keys_in(folder: Path, name: str = "a") -> MigrationKeys:
    return MigrationKeys(folder / f"{name}-tls", folder / f"{name}-own", (f"host-{name}", "192.0.2.1"))


def can_read(path: Path, user: int) -> bool:
    """Whether a process of that user could open the file."""
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        os._exit(0 if os.access(path, os.R_OK) else 1)
    return os.waitpid(child, 0)[1] == 0


@needs_root
def test_a_machine_reads_the_keys_only_while_it_moves(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    keys, peer = keys_in(tmp_path), keys_in(tmp_path, "b")
    peer.open()
    key, trusted = tmp_path / "a-tls" / "server-key.pem", tmp_path / "a-tls" / "ca-cert.pem"
    keys.begin("one", peer.authority, 310001)
    keys.begin("two", peer.authority, 310002)
    assert [can_read(key, user) for user in (310001, 310002, 310003)] == [True, True, False]
    assert peer.authority.strip() in trusted.read_text()
    keys.end("one")
    assert [can_read(key, user) for user in (310001, 310002)] == [False, True]
    keys.end("two")
    assert not can_read(key, 310002)
    assert peer.authority.strip() not in trusted.read_text()


def test_nothing_is_made_before_the_first_and_nothing_is_left(tmp_path: Path) -> None:
    keys = keys_in(tmp_path)
    keys.remove()
    assert not list(tmp_path.iterdir())
    keys.open()
    keys.remove()
    assert not list(tmp_path.iterdir())


def test_keys_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a-tls").mkdir()
    (tmp_path / "a-tls" / "server-key.pem").write_text("somebody's")
    keys = keys_in(tmp_path)
    with pytest.raises(OSError, match="migration_tls_dir"):
        keys.open()
    keys.remove()
    assert (tmp_path / "a-tls" / "server-key.pem").read_text() == "somebody's"
