"""Machines may pass libvirt's folder, nobody may list it, and removal puts the mode back."""

from __future__ import annotations

from pathlib import Path

from stead.hypervisor.libvirt import passage


def test_passage_is_added_and_undone(tmp_path: Path) -> None:
    folder, state = tmp_path / "qemu", tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o750)
    assert passage.allow(passage.SYSTEM_URI, state, folder)
    assert folder.stat().st_mode & 0o777 == 0o751
    assert not passage.allow(passage.SYSTEM_URI, state, folder)
    passage.restore(state, folder)
    assert folder.stat().st_mode & 0o777 == 0o750
    passage.restore(state, folder)
    assert folder.stat().st_mode & 0o777 == 0o750


def test_another_libvirt_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    assert not passage.allow("qemu+unix:///system?socket=/run/other", tmp_path, tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o750
