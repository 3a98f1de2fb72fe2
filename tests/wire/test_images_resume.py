"""Imports that are killed at any moment: what is published is whole, and what was had is not fetched again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.image_server import LOOPBACK, Web, web_server

from stead.images import journal
from stead.images.child import TransferFailed
from stead.images.sources import Access, Policy
from stead.images.transfers import JOURNAL, Source, discard_useless, fill
from stead.storage.pools import Pool, VolumeSpec

MIB = 1 << 20
LOCAL = Access(policy=Policy(allowed=LOOPBACK))
SPEC = VolumeSpec(uid="11111111-2222-3333-4444-555555555555", size_bytes=40 * MIB, namespace="default", name="disk")

#: an agent in little: fills one volume, notes its progress all the time
_IMPORTER = """
import asyncio, json, sys
from pathlib import Path
from stead.images.sources import Access, Policy
from stead.images.transfers import Source, fill
from stead.storage.pools import Pool, VolumeSpec
given = json.loads(sys.argv[1])
source = Source(kind="http", url=given["url"], checksum=given["checksum"], checkpoint_seconds=0.02,
                access=Access(policy=Policy(allowed=("127.0.0.0/8",))))
spec = VolumeSpec(uid=given["uid"], size_bytes=given["size"], namespace="default", name="disk")
asyncio.run(fill(Pool(Path(given["pool"])), spec, source))
"""


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as running:
        running.bytes_a_second = 40 * MIB
        yield running


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path / "pool")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 MiB, two thirds of it data in pieces of odd lengths."""
    path = tmp_path_factory.mktemp("resume") / "disk.raw"
    chance = random.Random(7)
    with path.open("wb") as out:
        while out.tell() < 38 * MIB:
            out.write(chance.randbytes(chance.randrange(1, MIB)))
            out.seek(chance.randrange(1, MIB // 2), os.SEEK_CUR)
    os.truncate(path, 40 * MIB)
    return path


def image(kind: str, disk: Path, folder: Path) -> Path:
    if kind.startswith("raw"):
        return disk
    options = {"qcow2": (), "qcow2 compressed": ("-c",), "qcow2 out of order": ("-W",)}[kind]
    target = folder / "image.qcow2"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, str(disk), str(target)]
    subprocess.run(command, check=True, timeout=120)
    return target


async def _killed_after(seconds: float, given: dict[str, object]) -> bool:
    """Run an importer, kill it after a while; whether it had finished by then."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _IMPORTER, json.dumps(given), stderr=asyncio.subprocess.PIPE
    )
    try:
        _, errors = await asyncio.wait_for(process.communicate(), seconds)
        if process.returncode and b"Busy" not in errors and b"still ending" not in errors:
            raise AssertionError(errors.decode()[-2000:])
        return not process.returncode
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
        return False


def same(pool: Pool, disk: Path) -> bool:
    """The volume holds the disk."""
    path = pool.get(SPEC.uid).path
    return hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(disk.read_bytes()).digest()


@pytest.mark.parametrize("kind", ["raw with checksum", "qcow2", "qcow2 compressed", "qcow2 out of order"])
async def test_killed_at_random_moments_an_import_goes_on_and_nothing_half_is_seen(
    kind: str, web: Web, pool: Pool, disk: Path, tmp_path: Path
) -> None:
    source = image(kind, disk, tmp_path)
    web.files["image"] = source.read_bytes()
    checksum = f"sha256:{hashlib.sha256(disk.read_bytes()).hexdigest()}" if kind == "raw with checksum" else ""
    given: dict[str, object] = {"url": web.url("image"), "uid": SPEC.uid, "size": SPEC.size_bytes,
                                "pool": str(pool.path), "checksum": checksum}  # fmt: skip
    chance, kills, finished = random.Random(kind), 0, False
    while not finished and kills < 40:
        finished = await _killed_after(chance.uniform(0.6, 1.6) * 1.08**kills, given)  # a busy machine gets on at last
        kills += not finished
        if pool.volumes():  # published, perhaps killed just afterwards
            finished = True
            assert same(pool, disk)
    assert same(pool, disk)
    assert pool.partials() == []
    ranges = [headers["Range"] for _, headers in web.seen if "Range" in headers]
    assert ranges or kills == 0, "it began from zero each time"


async def test_the_proof_above_sees_a_journal_that_promises_too_much(web: Web, pool: Pool, disk: Path) -> None:
    """The control: a record that runs ahead of the disk, as a build without its syncs would leave it, is found out."""
    web.files["image"] = disk.read_bytes()
    with contextlib.suppress(TransferFailed):
        web.cut_after, web.vanish_after_cut = [20 * MIB], True
        await fill(pool, SPEC, Source(kind="http", url=web.url("image"), access=LOCAL, checkpoint_seconds=0.02))
    path = pool.partial_path(SPEC.uid).parent / JOURNAL
    fd = os.open(path, os.O_RDWR)
    kept = journal.read(fd)
    assert kept is not None
    ahead = {"source": kept.source, "validator": kept.validator, "format": "raw", "total": kept.total}
    journal.write(fd, journal.Checkpoint(**ahead, offset=kept.offset + 8 * MIB))  # type: ignore[arg-type]
    os.close(fd)
    web.vanish_after_cut = False
    web.files["image"] = disk.read_bytes()
    await fill(pool, SPEC, Source(kind="http", url=web.url("image"), access=LOCAL))
    assert not same(pool, disk)


async def test_a_source_that_went_away_is_gone_on_with_at_the_next_attempt(web: Web, pool: Pool, disk: Path) -> None:
    data = disk.read_bytes()
    web.files["image"], web.cut_after, web.vanish_after_cut = data, [30 * MIB], True
    source = Source(kind="http", url=web.url("image"), access=LOCAL, checkpoint_seconds=0.02)
    with pytest.raises(TransferFailed, match="connection closed after"):
        await fill(pool, SPEC, source)
    assert pool.volumes() == []
    assert pool.partials() == [SPEC.uid]
    discard_useless(pool, {SPEC.uid})
    web.vanish_after_cut, web.files["image"] = False, data
    await fill(pool, SPEC, source)
    assert same(pool, disk)
    first = int(web.seen[-1][1]["Range"].removeprefix("bytes=").removesuffix("-"))
    assert first > 4 * MIB


@pytest.mark.parametrize("change", ["another image", "no ranges", "another url"])
async def test_what_cannot_be_gone_on_with_begins_anew(change: str, web: Web, pool: Pool, disk: Path) -> None:
    web.files["image"], web.cut_after, web.vanish_after_cut = os.urandom(39 * MIB), [30 * MIB], True
    source = Source(kind="http", url=web.url("image"), access=LOCAL, checkpoint_seconds=0.02)
    before = web.files["image"]
    with pytest.raises(TransferFailed):
        await fill(pool, SPEC, source)
    assert pool.partials() == [SPEC.uid]
    web.vanish_after_cut = False
    name = "other" if change == "another url" else "image"
    web.files[name] = before if change == "no ranges" else disk.read_bytes()
    web.ranges = change != "no ranges"
    filled = await fill(pool, SPEC, Source(kind="http", url=web.url(name), access=LOCAL))
    assert filled.volume.path.read_bytes().rstrip(b"\0") == bytes(web.files[name]).rstrip(b"\0")  # type: ignore[arg-type]


async def test_what_was_begun_for_a_claim_that_is_gone_is_removed_unless_somebody_works_on_it(
    web: Web, pool: Pool, disk: Path
) -> None:
    web.files["image"], web.bytes_a_second = disk.read_bytes(), 2 * MIB
    source = Source(kind="http", url=web.url("image"), access=LOCAL, checkpoint_seconds=0.02)
    running = asyncio.create_task(fill(pool, SPEC, source))
    noted = pool.partial_path(SPEC.uid).parent / JOURNAL
    async with asyncio.timeout(120):
        while not noted.exists() or not noted.stat().st_size:
            await asyncio.sleep(0.05)
    discard_useless(pool, set())
    assert pool.partials() == [SPEC.uid]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    discard_useless(pool, {SPEC.uid})
    assert pool.partials() == [SPEC.uid]
    discard_useless(pool, set())
    assert pool.partials() == []
