"""Disks with a name of their own in a pool's folder: never overwritten, adopted as they are, judged as hostile."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stead.controllers.disk_source import Lookups, resolve
from stead.images.child import TransferFailed
from stead.images.transfers import Source, discard_useless, fill
from stead.storage.pools import Pool, PoolError, VolumeSpec

MIB = 1 << 20
BLANK, EXISTING = Source(kind="blank"), Source(kind="existing")


def spec(uid: str = "u1", file: str = "web01.qcow2", form: str = "qcow2", size: int = 64 * MIB) -> VolumeSpec:
    return VolumeSpec(uid=uid, size_bytes=size, namespace="ns", name=uid, file=file, format=form)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path / "pool", "images")


def qcow2(path: Path, *options: str, size: str = "64M") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), size], check=True)
    return path


async def test_a_new_disk_has_the_name_and_format_that_were_asked_for(pool: Pool) -> None:
    volume = (await fill(pool, spec(), BLANK)).volume
    assert volume.path == pool.path / "web01.qcow2"
    assert (volume.format, volume.size_bytes) == ("qcow2", 64 * MIB)
    assert volume.path.read_bytes()[:4] == b"QFI\xfb"
    assert pool.get("u1") == volume
    raw = (await fill(pool, spec("u2", "a.img", "raw"), BLANK)).volume
    assert (raw.path.name, raw.size_bytes, raw.path.stat().st_mode & 0o777) == ("a.img", 64 * MIB, 0o600)
    pool.delete("u1")
    assert not volume.path.exists()
    assert raw.path.exists()


async def test_a_file_that_is_there_is_never_overwritten(pool: Pool) -> None:
    mine = pool.path / "web01.qcow2"
    mine.write_bytes(b"precious")
    with pytest.raises(TransferFailed, match="not overwritten"):
        await fill(pool, spec(), BLANK)
    assert mine.read_bytes() == b"precious"
    mine.unlink()
    mine.symlink_to("/etc/hostname")
    with pytest.raises(TransferFailed, match="not overwritten"):
        await fill(pool, spec(), BLANK)
    assert not pool.partials()


@pytest.mark.parametrize("file", ["../x", "a/b", ".hidden", "pool.json", "", "a\nb", "x" * 300])
async def test_a_name_that_leads_elsewhere_is_refused(pool: Pool, file: str) -> None:
    with pytest.raises((TransferFailed, PoolError)):
        await fill(pool, spec(file=file), EXISTING)
    if file:
        with pytest.raises((TransferFailed, PoolError)):
            await fill(pool, spec(file=file), BLANK)


async def test_an_existing_disk_is_adopted_and_stays(pool: Pool) -> None:
    path = qcow2(pool.path / "old.qcow2")
    volume = (await fill(pool, spec(file="old.qcow2"), EXISTING)).volume
    assert (volume.path, volume.format, volume.size_bytes, volume.adopted) == (path, "qcow2", 64 * MIB, True)
    with pytest.raises(TransferFailed, match="is the volume of claim ns/u1"):
        await fill(pool, spec("u2", "old.qcow2"), EXISTING)
    pool.delete("u1")
    assert path.exists()
    assert (await fill(pool, spec("u2", "old.qcow2"), EXISTING)).volume.path == path


async def test_hostile_files_are_not_adopted(pool: Pool, tmp_path: Path) -> None:
    qcow2(tmp_path / "base.qcow2")
    qcow2(pool.path / "backed.qcow2", "-b", str(tmp_path / "base.qcow2"), "-F", "qcow2")
    (pool.path / "link.qcow2").symlink_to(tmp_path / "base.qcow2")
    os.link(tmp_path / "base.qcow2", pool.path / "hard.qcow2")
    os.mkfifo(pool.path / "fifo.qcow2")
    (pool.path / "folder.qcow2").mkdir()
    (pool.path / "text.qcow2").write_bytes(b"no image at all" * 100)
    qcow2(pool.path / "big.qcow2", size="1G")
    for name in ("backed", "link", "hard", "fifo", "folder", "text", "big", "absent"):
        with pytest.raises(TransferFailed):
            await fill(pool, spec(name, f"{name}.qcow2"), EXISTING)
    qcow2(pool.path / "x.img")
    with pytest.raises(TransferFailed):  # a qcow2 is not taken for a raw disk, which could name other files later
        await fill(pool, spec("x", "x.img", "raw"), EXISTING)
    assert pool.volumes() == []


async def test_a_crash_before_the_disk_got_its_name_is_mended(pool: Pool) -> None:
    await fill(pool, spec(form="raw", file="a.img"), BLANK)
    (pool.path / "a.img").rename(pool.path / "u1" / "disk.img")  # as it was before the last step
    assert Pool(pool.path, "images").get("u1").path == pool.path / "a.img"
    assert (pool.path / "a.img").exists()


def test_two_steads_in_one_folder_leave_alone_what_the_other_has_begun(pool: Pool) -> None:
    other = Pool(pool.path, "images", "two")
    for each, uid in ((pool, "u1"), (other, "u2")):
        each.begin(VolumeSpec(uid=uid, size_bytes=1 << 20))
    discard_useless(pool, {"u1"})
    assert (pool.partials(), other.partials()) == ([], ["u2"])
    pool.begin(VolumeSpec(uid="u1", size_bytes=1 << 20))
    discard_useless(other, {"u2"})
    assert (pool.partials(), other.partials()) == (["u1"], [])
    assert pool.publish("u1").size_bytes == 1 << 20


async def test_a_qcow2_volume_cannot_grow_and_is_cloned_as_it_is(pool: Pool) -> None:
    await fill(pool, spec(), BLANK)
    with pytest.raises(PoolError, match="cannot grow yet"):
        pool.resize("u1", 128 * MIB)
    made = pool.clone(pool.get("u1"), VolumeSpec(uid="u2", size_bytes=128 * MIB))
    assert (made.format, made.size_bytes) == ("qcow2", 64 * MIB)
    assert made.path.read_bytes() == pool.get("u1").path.read_bytes()


def test_a_data_volume_that_adopts_says_so_to_the_host() -> None:
    nothing = Lookups(*(lambda *_names: None for _ in range(3)), in_use_by=lambda *_names: "")
    metadata: dict[str, Any] = {
        "name": "d",
        "namespace": "ns",
        "annotations": {"stead.io/file": "a.img", "stead.io/adopt": "true"},
    }
    volume = {"metadata": metadata, "spec": {"source": {"blank": {}}, "storage": {}}}
    assert resolve(volume, nothing).source == {"kind": "existing"}
    del metadata["annotations"]["stead.io/adopt"]
    assert resolve(volume, nothing).source == {"kind": "blank"}
