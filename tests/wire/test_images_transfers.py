"""Imports end to end: real servers on loopback, real unprivileged children, real qemu-img; what users get or are
told.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import lzma
import os
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.image_server import LOOPBACK, Web, layer, registry, registry_program, web_server

from stead.images.child import TransferFailed
from stead.images.containerdisks import ContainerDisks, Wanted
from stead.images.sources import Access, Policy
from stead.images.transfers import Filled, Source, fill
from stead.storage.pools import Pool, PoolError, VolumeSpec

MIB = 1 << 20
LOCAL = Access(policy=Policy(allowed=LOOPBACK))


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as running:
        yield running


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path / "pool")


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk of 8 MiB with data here and there, the rest zeros."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    with path.open("wb") as out:
        out.truncate(8 * MIB)
        for number, offset in enumerate((0, 300_000, 3 * MIB, 5 * MIB + 512, 8 * MIB - 4096)):
            out.seek(offset)
            out.write(hashlib.shake_256(bytes([number])).digest(3000 if number % 2 else 200_000)[: 8 * MIB - offset])
    os.truncate(path, 8 * MIB)
    return path


def convert(source: Path, target: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, str(source), str(target)], check=True, timeout=60)
    return target


def spec(size: int = 16 * MIB, uid: str = "11111111-2222-3333-4444-555555555555") -> VolumeSpec:
    return VolumeSpec(uid=uid, size_bytes=size, namespace="default", name="disk")


def content(filled: Filled, length: int) -> bytes:
    data = filled.volume.path.read_bytes()
    assert not any(data[length:])
    return data[:length]


def url_source(url: str, access: Access = LOCAL, **rest: str) -> Source:
    return Source(kind="http", url=url, access=access, **rest)  # type: ignore[arg-type]


FORMATS = {
    "raw": ("-O", "raw"),
    "qcow2": ("-O", "qcow2"),
    "qcow2 compressed": ("-O", "qcow2", "-c"),
    "qcow2 zstd": ("-O", "qcow2", "-c", "-o", "compression_type=zstd"),
    "qcow2 out of order": ("-O", "qcow2", "-W"),
    "qcow2 small clusters": ("-O", "qcow2", "-o", "cluster_size=512"),
    "qcow2 old": ("-O", "qcow2", "-o", "compat=0.10"),
    "qcow2 extended L2": ("-O", "qcow2", "-o", "extended_l2=on"),
    "vmdk": ("-O", "vmdk", "-o", "subformat=monolithicSparse"),
    "vmdk stream": ("-O", "vmdk", "-o", "subformat=streamOptimized"),
    "vdi": ("-O", "vdi"),
    "vhdx": ("-O", "vhdx"),
    "vhd": ("-O", "vpc", "-o", "force_size=on"),
}


@pytest.mark.parametrize("name", FORMATS)
async def test_every_accepted_format_becomes_the_same_disk(
    name: str, web: Web, pool: Pool, disk: Path, tmp_path: Path
) -> None:
    web.files["image"] = convert(disk, tmp_path / "image", *FORMATS[name])
    filled = await fill(pool, spec(), url_source(web.url("image")))
    assert content(filled, 8 * MIB) == disk.read_bytes()
    assert filled.volume.size_bytes == 16 * MIB
    assert filled.volume.allocated_bytes < 3 * MIB
    assert filled.volume.path.stat().st_uid == os.geteuid()


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
async def test_compressed_images_are_unpacked_while_they_stream(pack: object, web: Web, pool: Pool, disk: Path) -> None:
    web.files["image"] = pack(disk.read_bytes())  # type: ignore[operator]
    filled = await fill(pool, spec(), url_source(web.url("image")))
    assert content(filled, 8 * MIB) == disk.read_bytes()


async def test_a_lost_connection_is_taken_up_where_it_broke(web: Web, pool: Pool, disk: Path) -> None:
    data = disk.read_bytes()
    web.files["image"] = data
    web.cut_after = [3 * MIB, MIB]
    checksum = f"sha256:{hashlib.sha256(data).hexdigest()}"
    filled = await fill(pool, spec(), url_source(web.url("image"), checksum=checksum))
    assert content(filled, 8 * MIB) == data
    assert [headers.get("Range") for _, headers in web.seen] == [None, f"bytes={3 * MIB}-", f"bytes={4 * MIB}-"]


async def test_a_source_that_cannot_resume_fails_the_attempt_and_leaves_nothing(
    web: Web, pool: Pool, disk: Path
) -> None:
    web.files["image"] = disk
    web.cut_after, web.ranges = [MIB], False
    with pytest.raises(TransferFailed, match="cannot resume") as failed:
        await fill(pool, spec(), url_source(web.url("image")))
    assert not failed.value.fatal
    assert pool.volumes() == []
    assert pool.partials() == []


async def test_a_wrong_checksum_is_final(web: Web, pool: Pool, disk: Path) -> None:
    web.files["image"] = disk
    with pytest.raises(TransferFailed, match="checksum mismatch") as failed:
        await fill(pool, spec(), url_source(web.url("image"), checksum="md5:" + "0" * 32))
    assert failed.value.fatal
    assert failed.value.reason == "ChecksumError"
    assert pool.volumes() == []


async def test_a_missing_image_says_what_cdi_says(web: Web, pool: Pool) -> None:
    with pytest.raises(TransferFailed) as failed:
        await fill(pool, spec(), url_source(web.url("none")))
    words = "Unable to connect to http data source: expected status code 200, got 404. Status: 404 Not Found"
    assert str(failed.value) == words


async def test_credentials_and_headers_stay_with_their_origin(web: Web, pool: Pool, disk: Path) -> None:
    web.basic = "me:secret"
    web.files["image"] = disk
    access = Access(user="me", password="secret", headers=("X-Token: 7",), policy=LOCAL.policy)
    await fill(pool, spec(), url_source(web.url("image"), access))
    assert web.seen[-1][1]["X-Token"] == "7"
    with web_server() as other:
        other.files["image"] = disk
        web.redirects["away"] = other.url("image")
        await fill(pool, spec(uid="second"), url_source(web.url("away"), access))
        assert "Authorization" not in other.seen[-1][1]
        assert "X-Token" not in other.seen[-1][1]


async def test_loopback_is_refused_unless_it_is_allowed_and_redirects_are_checked(
    web: Web, pool: Pool, disk: Path
) -> None:
    web.files["image"] = disk
    with pytest.raises(TransferFailed, match="loopback address"):
        await fill(pool, spec(), url_source(web.url("image"), Access()))
    assert web.seen == []
    web.redirects["away"] = "http://169.254.169.254/latest/meta-data"
    with pytest.raises(TransferFailed, match="link-local address"):
        await fill(pool, spec(), url_source(web.url("away")))
    own = Access(policy=Policy(allowed=LOOPBACK, forbidden=(f"127.0.0.1:{web.port}",)))
    with pytest.raises(TransferFailed, match="endpoint of Stead itself"):
        await fill(pool, spec(), url_source(web.url("image"), own))


def hostile(kind: str, folder: Path, disk: Path) -> bytes:
    """Images that must not get in."""
    good = convert(disk, folder / "good", "-O", "qcow2").read_bytes()
    if kind == "backing file":
        subprocess.run(
            [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-u",
                "-b",
                "/etc/shadow",
                "-F",
                "raw",
                str(folder / "bad"),
                "8M",
            ],
            check=True,
        )
        return (folder / "bad").read_bytes()
    if kind == "data file":
        path = folder / "bad"
        subprocess.run(
            [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                f"data_file={folder}/d,data_file_raw=on",
                str(path),
                "8M",
            ],
            check=True,
        )
        return path.read_bytes()
    if kind == "vmdk of other files":
        text = '# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 16384 FLAT "/etc/shadow" 0\n'
        return text.encode().ljust(4096, b"\0")
    if kind == "truncated":
        return good[: len(good) // 2]
    if kind == "truncated header":
        return good[:60]
    if kind == "huge":
        return good[:24] + struct.pack(">Q", 1 << 60) + good[32:]
    if kind == "too large":
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(folder / "bad"), "32G"], check=True)
        return (folder / "bad").read_bytes()
    if kind == "encrypted":
        return good[:32] + struct.pack(">I", 2) + good[36:]
    if kind == "gzip bomb":
        return gzip.compress(bytes(64 * MIB))
    if kind == "damaged gzip":
        return gzip.compress(good)[:-2000]
    if kind == "l1 beyond the end":
        return good[:40] + struct.pack(">Q", 1 << 40) + good[48:]
    assert kind == "empty"
    return b""


HOSTILE = {
    "backing file": "backing file",
    "data file": "external data file",
    "vmdk of other files": "vmdk-descriptor is not supported",
    "truncated": "truncated",
    "truncated header": "truncated",
    "huge": "virtual size",
    "too large": "A larger PVC is required",
    "encrypted": "encrypted",
    "gzip bomb": "A larger PVC is required",
    "damaged gzip": "gz stream is damaged",
    "l1 beyond the end": "truncated",
    "empty": "empty",
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_hostile_image_is_refused_by_name_and_leaves_nothing(
    kind: str, web: Web, pool: Pool, disk: Path, tmp_path: Path
) -> None:
    web.files["image"] = hostile(kind, tmp_path, disk)
    with pytest.raises(TransferFailed, match=HOSTILE[kind]):
        await fill(pool, spec(), url_source(web.url("image")))
    assert pool.volumes() == []
    assert pool.partials() == []


async def test_cancelling_an_import_ends_its_child_and_leaves_nothing(web: Web, pool: Pool, disk: Path) -> None:
    web.files["image"] = disk
    web.slow_seconds = 30
    running = asyncio.create_task(fill(pool, spec(), url_source(web.url("image"))))
    while not web.seen:
        await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert pool.partials() == []


async def pieces(data: bytes, broken_at: int = -1) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        if 0 <= broken_at <= start:
            raise ConnectionResetError("the client went away")
        yield data[start : start + 100_000]


async def test_an_upload_is_filled_from_the_stream(pool: Pool, disk: Path, tmp_path: Path) -> None:
    data = convert(disk, tmp_path / "image", "-O", "qcow2").read_bytes()
    filled = await fill(pool, spec(), Source(kind="upload"), body=pieces(data))
    assert content(filled, 8 * MIB) == disk.read_bytes()


async def test_an_upload_that_breaks_off_is_never_taken_for_whole(pool: Pool, disk: Path) -> None:
    with pytest.raises(TransferFailed):
        await fill(pool, spec(), Source(kind="upload"), body=pieces(disk.read_bytes(), broken_at=2 * MIB))
    assert pool.volumes() == []
    assert pool.partials() == []


async def test_a_clone_may_lie_in_another_pool_on_another_filesystem(web: Web, pool: Pool, disk: Path) -> None:
    web.files["image"] = disk
    first = await fill(pool, spec(), url_source(web.url("image")))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        other = Pool(Path(folder) / "pool", "memory")
        copy = await fill(other, spec(uid="copy"), Source(kind="pvc", volume=first.volume))
        assert content(copy, 8 * MIB) == disk.read_bytes()
        assert copy.volume.allocated_bytes < 3 * MIB


async def test_a_clone_shares_nothing_with_its_source(web: Web, pool: Pool, disk: Path) -> None:
    web.files["image"] = disk
    first = await fill(pool, spec(), url_source(web.url("image")))
    second = await fill(pool, spec(32 * MIB, "clone"), Source(kind="pvc", volume=first.volume))
    pool.delete(first.volume.uid)
    assert content(second, 8 * MIB) == disk.read_bytes()
    assert second.volume.size_bytes == 32 * MIB
    with pytest.raises(TransferFailed, match="smaller than the source"):
        await fill(pool, spec(MIB, "small"), Source(kind="pvc", volume=second.volume))


needs_registry = pytest.mark.skipif(registry_program() is None, reason="docker-registry is not installed on this host")


@needs_registry
async def test_a_registry_image_becomes_a_disk_with_its_labels(pool: Pool, disk: Path, tmp_path: Path) -> None:
    image = convert(disk, tmp_path / "image", "-O", "qcow2")
    with registry() as server:
        environment = ("PATH=/bin", "INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE=ubuntu")
        digest = server.push("disks/test", "1", [layer({"disk/disk.img": image})], environment)
        source = Source(kind="registry", url=f"docker://{server.host}/disks/test:1", access=LOCAL, insecure=True)
        filled = await fill(pool, spec(), source)
    assert content(filled, 8 * MIB) == disk.read_bytes()
    assert filled.digest == digest
    assert filled.labels["instancetype.kubevirt.io/default-preference"] == "ubuntu"


@needs_registry
async def test_layers_that_try_to_escape_are_refused(pool: Pool, disk: Path) -> None:
    with registry() as server:
        server.push("bad/link", "1", [layer({}, links={"disk/disk.img": "/etc/shadow"})])
        server.push("bad/none", "1", [layer({"../disk/disk.img": disk, "etc/passwd": b"x"})])
        server.push("bad/tar", "1", [b"this is not a tar archive" * 100])
        for name in ("bad/link", "bad/none", "bad/tar"):
            source = Source(kind="registry", url=f"docker://{server.host}/{name}:1", access=LOCAL, insecure=True)
            with pytest.raises(TransferFailed, match="Failed to pull image"):
                await fill(pool, spec(), source)
            assert pool.partials() == []


@needs_registry
async def test_the_container_disk_store_keeps_by_digest_and_obeys_the_policy(disk: Path, tmp_path: Path) -> None:
    image = convert(disk, tmp_path / "image", "-O", "qcow2")
    store = ContainerDisks(tmp_path / "store")
    with registry() as server:
        first = server.push("disks/test", "1", [layer({"disk/disk.img": image}, "zst")])
        wanted = Wanted(image=f"{server.host}/disks/test:1", access=LOCAL, insecure=True, policy="IfNotPresent")
        never = Wanted(image=wanted.image, access=LOCAL, insecure=True, policy="Never")
        with pytest.raises(TransferFailed, match="not present with pull policy of Never"):
            await store.obtain(never)
        one, two = await asyncio.gather(store.obtain(wanted), store.obtain(wanted))
        assert one == two
        assert (one.digest, one.format, one.virtual_bytes) == (first, "qcow2", 8 * MIB)
        assert one.path.read_bytes() == image.read_bytes()
        second = server.push("disks/test", "1", [layer({"disk/other.raw": disk})])
        assert (await store.obtain(wanted)).digest == first
        moved = await store.obtain(Wanted(image=wanted.image, access=LOCAL, insecure=True, policy="Always"))
        assert (moved.digest, moved.format) == (second, "raw")
        pinned = Wanted(image=wanted.image, access=LOCAL, insecure=True, policy="Always", digest=first)
        assert (await store.obtain(pinned)).digest == first
    assert (await store.obtain(never)).digest == second
    with registry() as server:
        vmdk = convert(disk, tmp_path / "vmdk", "-O", "vmdk")
        server.push("disks/vmdk", "1", [layer({"disk/disk.vmdk": vmdk})])
        foreign = Wanted(image=f"{server.host}/disks/vmdk:1", access=LOCAL, insecure=True)
        with pytest.raises(TransferFailed, match="must be raw or qcow2"):
            await store.obtain(foreign)


@needs_registry
async def test_plain_files_of_an_image_are_had_by_path(tmp_path: Path) -> None:
    store = ContainerDisks(tmp_path / "store")
    with registry() as server:
        server.push("boot/kernel", "1", [layer({"boot/vmlinuz": b"MZ kernel", "boot/initrd": b"\x1f\x8b not gzip"})])
        wanted = Wanted(
            image=f"{server.host}/boot/kernel:1", access=LOCAL, insecure=True, path="/boot/initrd", plain=True
        )
        assert (await store.obtain(wanted)).path.read_bytes() == b"\x1f\x8b not gzip"


async def test_a_full_pool_is_said_and_cleaned(pool: Pool, web: Web, disk: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("a file system of one MiB cannot be mounted here")
    try:
        tight = Pool(small / "pool")
        web.files["image"] = os.urandom(4 * MIB)
        with pytest.raises(TransferFailed, match="no space left") as failed:
            await fill(tight, spec(), url_source(web.url("image")))
        assert failed.value.reason == "NoSpace"
        assert tight.partials() == []
        assert tight.volumes() == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_pool_refuses_what_is_not_a_uid(pool: Pool) -> None:
    for name in ("../../etc", "a/b", "", ".part-x"):
        with pytest.raises(PoolError):
            pool.get(name)
