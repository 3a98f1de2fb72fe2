"""`stead backup` on a whole Stead: points of a guest that writes and of one that is off, and a machine made of one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.stead_host import VMI, SteadHost, stead_host

from stead.kinds import register
from stead.storage.backup.keys import secret_from_text
from stead.storage.backup.repository import Repository
from stead.storage.backup.restore import Disk
from stead.storage.backup.store import Directory

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]

MIB = 1 << 20


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stead(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SteadHost]:
    async with stead_host(tmp_path_factory.mktemp("stead")) as host:
        yield host


def content_of(repository: Repository, short: str) -> bytes:
    point = repository.find_point(short)
    disk = Disk(repository, point.disks[0])
    return disk.read(0, disk.size_bytes)


async def test_backups_of_a_machine_and_the_way_back(stead: SteadHost, tmp_path: Path) -> None:
    folder = stead.settings.state_dir / "backups" / "main"
    told = await stead.stead("backup", "add-repository", "main", "--directory", str(folder))
    key = told.strip().splitlines()[-1]
    await stead.create(
        register.BACKUP_SCHEDULE,
        {
            "metadata": {"name": "yearly"},
            "spec": {"schedule": "@yearly", "repository": "main", "selector": {"matchLabels": {"backup": "on"}}},
        },
    )
    disk = {"source": {"blank": {}}, "storage": {"resources": {"requests": {"storage": "64Mi"}}}}
    manifest = stead.machine_of(
        "web01",
        volumes=[{"name": "data", "dataVolume": {"name": "web01-data"}}],
        vm={"dataVolumeTemplates": [{"metadata": {"name": "web01-data"}, "spec": disk}]},
    )
    manifest["metadata"]["labels"] = {"backup": "on"}
    await stead.create(register.VIRTUAL_MACHINE, manifest)
    await stead.wait_machine("web01", "running")
    console = await stead.console("web01")
    await console.until("stead-guest: ready", 150)
    vmi = await stead.vmi("web01")
    assert vmi is not None
    assert vmi["status"]["changedBlockTracking"]["state"] == "Enabled"

    async def write(megabyte: int) -> None:
        text = f"dd if=/dev/urandom of=/dev/vdb bs=1M count=1 seek={megabyte} conv=notrunc; sync"
        await console.shell(text)

    async def point(*more: str) -> str:
        told = await stead.stead("backup", "create", "web01", "-r", "main", *more)
        line = next(line for line in told.splitlines() if line.startswith("point "))
        points.append(line)
        return line.split()[1].rstrip(":")

    points: list[str] = []
    await write(3)
    first = await point()
    await write(9)
    second = await point()
    assert "Full" in points[0]
    assert "Incremental" in points[1]
    assert "quiesced" in points[1]
    made = [b for b in (await stead.client.list(register.BACKUP)).items if b["status"]["point"] == second]
    assert MIB <= made[0]["status"]["changedBytes"] <= MIB + 2 * 65536

    # off: the files themselves, to the last byte
    await stead.stead("stop", "web01")
    await stead.wait_machine("web01", "stopped")
    third = await point()
    claim = await stead.get(register.PERSISTENT_VOLUME_CLAIM, "web01-data")
    assert claim is not None
    path = stead.settings.state_dir / "pools" / "default" / claim["metadata"]["uid"] / "disk.img"
    repository = await asyncio.to_thread(Repository.open, Directory(folder), secret_from_text(key))
    whole = await asyncio.to_thread(path.read_bytes)
    assert content_of(repository, third) == whole
    assert content_of(repository, second) == whole
    assert content_of(repository, first)[3 * MIB : 4 * MIB] == whole[3 * MIB : 4 * MIB]
    assert content_of(repository, first)[9 * MIB : 10 * MIB] == bytes(MIB)

    # increments go on after a restart
    await stead.stead("start", "web01")
    await stead.wait_machine("web01", "running")
    console = await stead.console("web01")
    await console.until("stead-guest: ready", 150)
    await write(20)
    fourth = await point()
    assert "Incremental" in points[3]
    assert content_of(repository, fourth)[9 * MIB : 10 * MIB] == whole[9 * MIB : 10 * MIB]
    assert content_of(repository, fourth)[20 * MIB : 21 * MIB] != bytes(MIB)

    # what was lost comes back as another machine
    await stead.stead("delete", "vm", "web01")
    assert "4 of 4 points are whole" in await stead.stead("backup", "verify", "-r", "main")
    listed = await stead.stead("backup", "list", "-r", "main")
    assert [line.split()[0] for line in listed.splitlines()[1:]] == [first, second, third, fourth]
    await stead.stead("backup", "restore", second, "-r", "main", "--as", "web02", "--start")
    await stead.wait_machine("web02", "running")
    restored = await stead.get(register.PERSISTENT_VOLUME_CLAIM, "web02-data")
    assert restored is not None
    copy = path.parent.parent / restored["metadata"]["uid"] / "disk.img"
    assert await asyncio.to_thread(copy.read_bytes) == whole
    console = await stead.console("web02")
    await console.until("stead-guest: ready", 150)
    await stead.stead("backup", "prune", "--keep-last", "1", "-r", "main")
    assert "1 of 1 points are whole" in await stead.stead("backup", "verify", "-r", "main")
    assert VMI.kind in json.dumps(await stead.vmi("web02"))


async def test_what_cannot_be_backed_up_says_why(stead: SteadHost) -> None:
    refused = await stead.stead("backup", "create", "nobody", "-r", "main", check=False)
    assert "not found" in refused
    await stead.create(
        register.BACKUP_REPOSITORY,
        {
            "metadata": {"name": "etc"},
            "spec": {"keySecretName": "main-backup-key", "directory": {"path": "/etc/cron.d"}},
        },
    )
    await stead.vm("plain", run="Halted", volumes=[{"name": "data", "dataVolume": {"name": "plain-data"}}], vm={
        "dataVolumeTemplates": [{"metadata": {"name": "plain-data"}, "spec": {
            "source": {"blank": {}}, "storage": {"resources": {"requests": {"storage": "16Mi"}}}}}]})  # fmt: skip
    refused = await stead.stead("backup", "create", "plain", "-r", "etc", check=False)
    assert "is not below a folder of the setting backup_roots" in refused
