"""DataVolumes through the real API server, controllers and volume worker: what their owner is told when a source fails
in each of its ways, and that the import goes on when it is mended.
"""

from __future__ import annotations

import asyncio
import bz2
import gzip
import hashlib
import io
import os
import socket
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import zstandard
from tests.image_server import Web, web_server
from tests.import_world import World, condition, import_world

from stead.kinds.register import (
    DATA_VOLUME,
    PERSISTENT_VOLUME_CLAIM,
    STORAGE_CLASS,
    VIRTUAL_MACHINE_INSTANCE,
)

MIB = 1 << 20
Object = dict[str, Any]
pytestmark = pytest.mark.asyncio(loop_scope="module")

DISK = hashlib.shake_256(b"disk").digest(3 * MIB) + bytes(MIB)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with import_world(tmp_path_factory.mktemp("imports")) as running:
        yield running


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as running:
        yield running


def qcow2(*arguments: str) -> bytes:
    """An image that qemu-img made with these arguments."""
    with open(os.memfd_create("image"), "w+b") as handle:
        path = f"/proc/{os.getpid()}/fd/{handle.fileno()}"
        subprocess.run(["qemu-img", *[a.replace("IMAGE", path) for a in arguments]], check=True, timeout=60)
        return Path(path).read_bytes()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Case(msgspec.Struct, frozen=True):
    """A source that fails. `told` is in the message, `reason` that of the Running condition; a retried one is mended
    (`mend`, if that is possible at all) and must then come through.
    """

    told: str
    break_it: Callable[[Web], Object]
    reason: str = "Error"
    fatal: bool = False
    mend: Callable[[Web], None] | None = None


def _serve(web: Web, data: bytes = DISK, **source: Any) -> Object:
    web.files["disk"] = data
    return {"http": {"url": web.url("disk"), **source}}


def _cut(web: Web) -> Object:
    web.cut_after, web.ranges = [MIB], False
    return _serve(web)


def _good(web: Web) -> None:
    web.files["disk"], web.basic = DISK, ""


def _locked(web: Web) -> Object:
    web.basic = "me:secret"
    return _serve(web)


def _backing() -> bytes:
    return qcow2("create", "-q", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", "IMAGE", "4M")


def _truncated() -> bytes:
    return qcow2("create", "-q", "-f", "qcow2", "-o", "preallocation=full", "IMAGE", "4M")[:-MIB]


CASES = {
    "nobody listens": Case("Connection refused", lambda w: {"http": {"url": f"http://127.0.0.1:{closed_port()}/d"}}),
    "no such name": Case("lookup nowhere.invalid", lambda w: {"http": {"url": "http://nowhere.invalid/disk"}}),
    "no such file": Case("expected status code 200, got 404", lambda w: {"http": {"url": w.url("disk")}}, mend=_good),
    "credentials missing": Case("expected status code 200, got 401", _locked, mend=_good),
    "cut in the middle": Case("the source cannot resume", _cut, mend=_good),
    "wrong checksum": Case("checksum mismatch", lambda w: _serve(w, checksum="md5:" + "0" * 32), "ChecksumError", True),
    "truncated": Case("truncated", lambda w: _serve(w, _truncated()), "TruncatedImage", mend=_good),
    "too large": Case("A larger PVC is required", lambda w: _serve(w, bytes(12 * MIB)), "ImageTooLarge", mend=_good),
    "bomb": Case("A larger PVC is required", lambda w: _serve(w, gzip.compress(bytes(40 * MIB))), "ImageTooLarge"),
    "other files": Case("backing file", lambda w: _serve(w, _backing()), "BackingFile", mend=_good),
    "unknown format": Case("luks is not supported", lambda w: _serve(w, b"LUKS\xba\xbe" + bytes(MIB)),
                           "UnsupportedFormat", mend=_good),
    "empty": Case("the image is empty", lambda w: _serve(w, b""), "EmptyImage", mend=_good),
    "tar of no disk": Case("holds no disk image", lambda w: _serve(w, tar_of({"readme": b"x"})), "UnsupportedFormat",
                           mend=_good),
    "no registry": Case("Connection refused", lambda w: {"registry": {"url": f"docker://127.0.0.1:{closed_port()}/a"}}),
    "forbidden address": Case("link-local address", lambda w: {"http": {"url": "http://169.254.169.254/disk"}},
                              "AddressNotAllowed"),
}  # fmt: skip


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("what", CASES)
async def test_each_failure_is_told_and_retried_as_cdi_does(what: str, world: World, web: Web) -> None:
    case, name = CASES[what], "dv-" + what.replace(" ", "-")
    await world.data_volume(name, case.break_it(web))
    seen = await world.until(DATA_VOLUME, name, lambda d: case.told in condition(d, "Running").get("message", ""))
    running = condition(seen, "Running")
    assert (running["status"], running["reason"]) == ("False", case.reason)
    assert condition(seen, "Ready")["status"] == "False"
    assert seen["status"]["phase"] == ("Failed" if case.fatal else "ImportInProgress")
    for kind in ("DataVolume", "PersistentVolumeClaim"):
        for _ in range(100):
            told = await world.events(kind, name)
            if any(reason == "ImportFailed" and case.told in text for reason, text in told):
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(f"no event on the {kind}: {told}")
    if case.fatal:
        await asyncio.sleep(1.0)
        assert (await world.client.get(DATA_VOLUME, "default", name))["status"]["restartCount"] == 1
        assert len(web.seen) == 1
    elif case.mend:
        case.mend(web)
        done = await world.phase(name, "Succeeded")
        assert done["status"]["restartCount"] >= 1
        assert condition(done, "Ready")["status"] == "True"
        assert (await world.disk(name)).read_bytes()[: len(DISK)] == DISK
    else:
        await world.until(DATA_VOLUME, name, lambda d: d["status"].get("restartCount", 0) >= 2)
    await world.client.delete(DATA_VOLUME, "default", name)
    pool = world.pools["default"]
    for _ in range(200):
        if not pool.partials():
            break
        await asyncio.sleep(0.05)
    assert pool.partials() == []


@pytest.mark.parametrize("pack", ["zst", "bz2", "tar", "tar.gz"])
async def test_packed_images_are_unpacked(pack: str, world: World, web: Web) -> None:
    packed = {
        "zst": lambda: zstandard.ZstdCompressor().compress(DISK),
        "bz2": lambda: bz2.compress(DISK, 1),
        "tar": lambda: tar_of({"disk.img": DISK}),
        "tar.gz": lambda: gzip.compress(tar_of({"notes": b"x", "disk.img": DISK}), 1),
    }[pack]()
    name = "packed-" + pack.replace(".", "-")
    await world.data_volume(name, _serve(web, packed))
    await world.phase(name, "Succeeded")
    assert (await world.disk(name)).read_bytes()[: len(DISK)] == DISK


async def test_an_archive_to_unpack_is_refused_by_name(world: World, web: Web) -> None:
    await world.client.create(DATA_VOLUME, {
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume",
        "metadata": {"namespace": "default", "name": "archive"},
        "spec": {"source": _serve(web), "contentType": "archive",
                 "storage": {"resources": {"requests": {"storage": "8Mi"}}}},
    })  # fmt: skip
    told = await world.until(DATA_VOLUME, "archive", lambda d: condition(d, "Running").get("reason") == "Unsupported")
    assert "contentType: archive" in condition(told, "Running")["message"]
    assert web.seen == []


async def test_a_disk_of_a_class_that_waits_is_filled_when_its_first_machine_is_placed(world: World, web: Web) -> None:
    await world.client.create(STORAGE_CLASS, {
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "later"},
        "provisioner": "stead.io", "volumeBindingMode": "WaitForFirstConsumer",
    })  # fmt: skip
    await world.data_volume("later", _serve(web), storageClassName="later", accessModes=["ReadWriteOnce"])
    await world.phase("later", "WaitForFirstConsumer")
    assert web.seen == []
    await world.client.create(VIRTUAL_MACHINE_INSTANCE, {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"namespace": "default", "name": "first"},
        "spec": {
            "domain": {"memory": {"guest": "64Mi"}, "devices": {"disks": [{"name": "root", "disk": {}}]}},
            "volumes": [{"name": "root", "dataVolume": {"name": "later"}}],
        },
    })  # fmt: skip
    await world.phase("later", "Succeeded")
    vmi = await world.until(VIRTUAL_MACHINE_INSTANCE, "first", lambda v: v["status"].get("phase") == "Scheduled")
    assert vmi["status"]["nodeName"] == "host1"
    claim = await world.client.get(PERSISTENT_VOLUME_CLAIM, "default", "later")
    assert claim["status"]["phase"] == "Bound"
    assert (await world.disk("later")).read_bytes()[: len(DISK)] == DISK


async def test_a_full_pool_is_told_leaves_nothing_and_goes_on_when_there_is_room(tmp_path: Path, web: Web) -> None:
    small = tmp_path / "small"
    small.mkdir(mode=0o750)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0750", "stead-test", str(small)]).returncode:
        pytest.skip("a file system of 2 MiB cannot be mounted here")
    try:
        async with import_world(tmp_path, small=small) as world:
            await world.until(STORAGE_CLASS, "small", bool)
            await world.data_volume("disk", _serve(web), storageClassName="small")
            told = await world.until(DATA_VOLUME, "disk", lambda d: condition(d, "Running").get("reason") == "NoSpace")
            assert "no space left" in condition(told, "Running")["message"]
            await world.until(DATA_VOLUME, "disk", lambda d: d["status"].get("restartCount", 0) >= 2)
            subprocess.run(["mount", "-o", "remount,size=16m", str(small)], check=True)
            await world.phase("disk", "Succeeded")
            assert (await world.disk("disk", "small")).read_bytes()[: len(DISK)] == DISK
            assert world.pools["small"].partials() == []
            assert small.stat().st_mode & 0o777 == 0o750  # a pool leaves its folder's mode alone
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
