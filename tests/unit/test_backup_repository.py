"""The repository: what is written comes back, crashes and writers side by side lose nothing, damage is named."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.backup_world import GRANULE, SECRET, Crashed, Dying, Memory, back_up, restored

from stead.storage.backup import keys, maps, packs
from stead.storage.backup.keys import BackupError
from stead.storage.backup.prune import prune
from stead.storage.backup.repository import Repository
from stead.storage.backup.restore import Disk
from stead.storage.backup.retention import Retention, kept
from stead.storage.backup.session import Extent, Session, declare, forget_writers, plan_runs, writers
from stead.storage.backup.store import Cached, Directory
from stead.storage.backup.verify import verify

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses its power: what the disk has synced is of no concern, and takes long on a busy one."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)


def make(path: Path) -> Repository:
    return Repository.create(Directory(path), SECRET, GRANULE)


def reopened(path: Path) -> Repository:
    return Repository.open(Directory(path), SECRET)


def chain(repository: Repository, disk: Memory, count: int) -> list[tuple[object, bytes]]:
    found, parent = [], None
    for number in range(count):
        disk.scribble()
        point = back_up(repository, disk, f"2026-04-{number + 1:02}T00:00:00Z", parent)
        found.append((point, bytes(disk.data)))
        parent = point
    return found


def test_every_point_comes_back(tmp_path: Path) -> None:
    disk = Memory(100 * GRANULE + 512)
    points = chain(make(tmp_path), disk, 12)
    repository = reopened(tmp_path)
    assert [p.name for p in repository.points()] == [point.name for point, _ in points]
    for point, content in points:
        assert restored(repository, point) == content
        found = Disk(repository, point.disks[0])
        assert found.read(5000, 9000) == content[5000:14000]
    assert verify(repository).ok


def test_a_long_chain_of_maps_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stead.storage.backup.session.CHAIN", 6)
    disk, repository = Memory(16 * GRANULE), make(tmp_path)
    points = chain(repository, disk, 15)
    depths = [repository.read_map(point.disks[0].map).depth for point, _ in points]
    assert max(depths) == 5
    assert depths.count(0) == 3
    for point, content in points:
        assert restored(repository, point) == content


def test_a_skipped_granule_is_noticed(tmp_path: Path) -> None:
    """The control of all comparisons here: a bitmap that lost one granule makes another disk."""
    disk, repository = Memory(64 * GRANULE), make(tmp_path)
    disk.scribble(20)
    parent = back_up(repository, disk, "2026-04-01T00:00:00Z")
    disk.dirty.clear()
    disk.data[7 * GRANULE] ^= 1
    point = back_up(repository, disk, "2026-04-02T00:00:00Z", parent)
    assert restored(repository, point) != disk.data


def test_equal_granules_of_two_machines_lie_there_once(tmp_path: Path) -> None:
    one, repository = Memory(64 * GRANULE), make(tmp_path)
    one.data[:] = random.Random(3).randbytes(len(one.data))
    back_up(repository, one, "2026-04-01T00:00:00Z")
    before = sum(size for _, size in repository.store.list("packs"))
    back_up(repository, one, "2026-04-01T00:00:01Z")
    assert sum(size for _, size in repository.store.list("packs")) == before


def test_nothing_of_the_disk_or_key_can_be_read_without_the_key(tmp_path: Path) -> None:
    disk, repository = Memory(8 * GRANULE), make(tmp_path)
    disk.data[: 20 * 100] = b"the quick brown fox " * 100
    back_up(repository, disk, "2026-04-01T00:00:00Z")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            text = path.read_bytes()
            assert b"quick" not in text
            assert SECRET not in text
            assert b"default" not in text
            assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(BackupError) as refused:
        Repository.open(Directory(tmp_path), bytes(32))
    assert refused.value.reason == "WrongKey"


def test_key_text(tmp_path: Path) -> None:
    secret = keys.new_secret()
    text = keys.text_from_secret(secret)
    assert keys.secret_from_text(text + "\n") == secret
    for broken in (text[:-1], text[:30] + ("A" if text[30] != "A" else "B") + text[31:], "", "x" * 80):
        with pytest.raises(BackupError):
            keys.secret_from_text(broken)


# crashes -------------------------------------------------------------------------------------------------------------


def test_a_crash_at_every_byte_loses_nothing(tmp_path: Path) -> None:
    """A backup, and then a prune, die after each step in turn: all that was published before comes back, the same work
    then succeeds, and after a prune nothing is left of the attempt. Every byte of the small disk's writes near their
    ends is tried, the middles in strides (`STEAD_CRASH_STRIDE=1` tries all).
    """
    stride = int(os.environ.get("STEAD_CRASH_STRIDE", "911"))
    base = tmp_path / "base"
    disk = Memory(6 * GRANULE, seed=5)
    points = chain(make(base), disk, 3)
    disk.scribble(3)
    dirty, after = set(disk.dirty), bytes(disk.data)
    budget, tried = 0, 0
    while True:
        work = tmp_path / "work"
        shutil.copytree(base, work)
        dying = Dying(work, budget)
        disk.dirty = set(dirty)
        try:
            repository = Repository.open(dying, SECRET)
            fourth = back_up(repository, disk, "2026-04-04T00:00:00Z", points[-1][0])
            prune(repository, [points[0][0].name], NOW)
        except Crashed:
            pass
        else:
            dying.left = 0
        finished = budget > dying.spent
        _judge_after_crash(work, points, disk, (dirty, after))
        shutil.rmtree(work)
        tried += 1
        if finished:
            break
        budget += 1 if tried % 3 else stride
    assert tried > 10
    assert fourth.name


def _judge_after_crash(
    work: Path, points: list[tuple[object, bytes]], disk: Memory, wanted: tuple[set[int], bytes]
) -> None:
    repository = reopened(work)
    forget_writers(repository, "test")
    forget_writers(repository, "prune")
    left = {point.name for point in repository.points()}
    assert {point.name for point, _ in points[1:]} <= left
    for point, content in points:
        if point.name in left:
            assert restored(repository, point) == content
    assert verify(repository).ok
    disk.dirty = set(wanted[0])
    again = back_up(repository, disk, "2026-04-05T00:00:00Z", points[-1][0])
    assert restored(repository, again) == wanted[1]
    prune(repository, [], NOW)
    report = verify(repository)
    assert report.ok
    assert len(list(repository.store.list("packs"))) == report.packs
    assert restored(repository, again) == wanted[1]


def test_a_full_disk_is_told_and_leaves_old_points_whole(tmp_path: Path) -> None:
    class Full(Directory):
        def _write(self, fd: int, data: bytes) -> None:  # type: ignore[override]  # as the kernel says it
            raise OSError(28, "No space left on device")

    disk = Memory(32 * GRANULE)
    ((point, content),) = chain(make(tmp_path), disk, 1)
    with pytest.raises(BackupError) as refused:
        back_up(Repository.open(Full(tmp_path), SECRET), disk, "2026-04-02T00:00:00Z")
    assert refused.value.reason == "NoSpace"
    assert restored(reopened(tmp_path), point) == content


# writers and prunes --------------------------------------------------------------------------------------------------


def test_prune_keeps_what_is_needed_and_frees_the_rest(tmp_path: Path) -> None:
    disk, repository = Memory(200 * GRANULE), make(tmp_path)
    points = chain(repository, disk, 10)
    before = sum(size for _, size in repository.store.list("packs"))
    gone = prune(repository, [point.name for point, _ in points[:9]], NOW)
    assert gone.points == 9
    assert sum(size for _, size in repository.store.list("packs")) < before
    last, content = points[-1]
    assert restored(reopened(tmp_path), last) == content
    assert verify(repository).ok
    everything = prune(repository, [last.name], NOW)
    assert not list(repository.store.list("packs"))
    assert not list(repository.store.list("maps"))
    assert everything.packs


def test_a_prune_takes_nothing_that_a_writer_rests_on(tmp_path: Path) -> None:
    disk, repository = Memory(40 * GRANULE), make(tmp_path)
    ((first, content),) = chain(repository, disk, 1)
    with Session(repository, "writer") as session:  # it knows the first point's granules, and stores none again
        made = session.add_disk("root", len(disk.data), disk, [Extent(0, len(disk.data))])
        told = prune(reopened(tmp_path), [first.name], NOW)
        assert told.waits_for == ("writer",)
        point = session.publish(
            type(first)(namespace="default", machine="vm", time="2026-04-09T00:00:00Z", disks=(made,))
        )
    assert restored(reopened(tmp_path), point) == content
    prune(reopened(tmp_path), [], NOW)
    assert restored(reopened(tmp_path), point) == content
    assert verify(reopened(tmp_path)).ok


def test_an_increment_outlives_the_prune_of_its_parent(tmp_path: Path) -> None:
    disk, repository = Memory(40 * GRANULE), make(tmp_path)
    ((first, _),) = chain(repository, disk, 1)
    disk.scribble(1)
    with Session(repository, "writer") as session:
        made = session.add_disk("root", len(disk.data), disk, list(disk.extents()), first.disks[0].map)
        prune(reopened(tmp_path), [first.name], NOW)
        point = session.publish(
            type(first)(namespace="default", machine="vm", time="2026-04-09T00:00:00Z", disks=(made,))
        )
    assert restored(reopened(tmp_path), point) == disk.data


def test_writers_and_prunes_side_by_side(tmp_path: Path) -> None:
    """Threads back up and prune as fast as they can: every point that is still there comes back whole."""
    make(tmp_path)
    contents: dict[str, bytes] = {}
    failures: list[BaseException] = []
    done = threading.Event()

    def write(seed: int) -> None:
        try:
            disk, parent = Memory(30 * GRANULE, seed), None
            disk.scribble(8)
            for number in range(6):
                disk.scribble(2)
                time = f"2026-04-{seed:02}T00:00:{number:02}Z"
                try:
                    parent = back_up(reopened(tmp_path), disk, time, parent, f"writer {seed}")
                except BackupError as error:
                    if error.reason != "NotFound":  # its parent was pruned: from the beginning
                        raise
                    parent = back_up(reopened(tmp_path), disk, time, None, f"writer {seed}")
                contents[parent.name] = bytes(disk.data)
        except BaseException as error:
            failures.append(error)

    def clean() -> None:
        draw = random.Random(9)
        try:
            while not done.is_set():
                points = reopened(tmp_path).points()
                prune(reopened(tmp_path), [p.name for p in points[:-3] if draw.random() < 0.5], NOW)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in (1, 2, 3)]
    cleaner = threading.Thread(target=clean)
    for thread in (*threads, cleaner):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    cleaner.join()
    assert not failures, failures
    repository = reopened(tmp_path)
    prune(repository, [], NOW)
    found = repository.points()
    assert len(found) >= 3
    for point in found:
        assert restored(repository, point) == contents[point.name]
    assert verify(repository).ok


def test_two_prunes_do_not_meet(tmp_path: Path) -> None:
    repository = make(tmp_path)
    declare(repository, "another", "prune")
    with pytest.raises(BackupError, match="being pruned by another"):
        prune(repository, [], datetime.now(UTC))
    assert writers(repository, datetime.now(UTC) + timedelta(days=8)) == {}


# damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["packs", "indexes", "maps", "points"])
def test_any_flipped_or_missing_byte_is_found_and_named(tmp_path: Path, kind: str) -> None:
    disk, repository = Memory(20 * GRANULE), make(tmp_path)
    points = chain(repository, disk, 3)
    draw = random.Random(kind)
    for _ in range(12):
        victim = draw.choice(sorted(path for path in (tmp_path / kind).rglob("*") if path.is_file()))
        whole = victim.read_bytes()
        text = bytearray(whole)
        at = draw.randrange(len(text))
        if draw.random() < 0.5:
            text[at] ^= draw.randrange(1, 256)
        else:
            del text[at:]
        victim.write_bytes(text)
        report = verify(reopened(tmp_path))
        assert any(victim.name in finding.object for finding in report.findings)
        for point, content in points:
            with contextlib.suppress(BackupError):  # never other bytes than those that were
                assert restored(reopened(tmp_path), point) == content
        victim.write_bytes(whole)
    assert verify(reopened(tmp_path)).ok


def test_what_a_lost_pack_costs_is_named(tmp_path: Path) -> None:
    disk, repository = Memory(20 * GRANULE), make(tmp_path)
    points = chain(repository, disk, 2)
    name, _ = next(repository.store.list("packs"))
    repository.store.delete(name)
    report = verify(repository)
    assert not all(report.points.values())
    assert any(finding.volume == "root" and "has lost its bytes from" in finding.message for finding in report.findings)
    assert points


def test_a_hostile_repository_is_refused_within_bounds(tmp_path: Path) -> None:
    repository = make(tmp_path)
    secret = tmp_path.parent / "canary"
    secret.write_text("canary")
    name = "points/" + "ab" * 32
    (tmp_path / "points/ab").mkdir(parents=True)
    (tmp_path / name.replace("/", "/ab/")).symlink_to(secret)
    assert repository.points() == []
    with pytest.raises(BackupError):
        repository.store.get(name, 100)
    for bad in ("points/../../canary", "/etc/passwd", "packs/xyz", "points/" + "AB" * 32):
        with pytest.raises(BackupError):
            repository.store.get(bad, 100)
    (tmp_path / "repository.json").write_text('{"formatVersion":99,"id":"x","granuleBytes":65536,"keyCheck":""}')
    with pytest.raises(BackupError, match="newer"):
        reopened(tmp_path)


@given(data=st.binary(max_size=400))
def test_readers_raise_only_what_they_say(data: bytes) -> None:
    key = keys.Keys(SECRET, "x")
    for read in (
        lambda: packs.read_trailer(key, "packs/x", b"STEADPK1" + data + b"STEADPKE"),
        lambda: packs.decode_index("indexes/x", b"\x01" + data),
        lambda: packs.unsqueeze(data, GRANULE),
        lambda: maps.decode("maps/x", b"\x01" + data),
        lambda: key.unseal("points", "x", data),
    ):
        with contextlib.suppress(BackupError):
            read()


# what to take, what to keep ------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3000), st.booleans()), max_size=8),
    st.integers(1, 20 * 1000),
)
def test_runs_cover_all_that_changed_and_nothing_twice(pieces: list[tuple[int, int, bool]], size: int) -> None:
    at, extents = 0, []
    for gap, length, zero in pieces:
        extents.append(Extent(at + gap, length, zero))
        at += gap + length
    seen: dict[int, bool] = {}
    for run in plan_runs(extents, size, 1000):
        for number in range(run.first, run.first + run.count):
            assert number not in seen
            seen[number] = run.zero
    for extent in extents:
        for byte in {extent.offset, min(extent.offset + extent.length, size) - 1}:
            if extent.offset <= byte < size:
                assert byte // 1000 in seen
    for number, zero in seen.items():
        if zero:  # all of it is known to be zeros
            covered = sum(
                max(0, min(e.offset + e.length, (number + 1) * 1000, size) - max(e.offset, number * 1000))
                for e in extents
                if e.zero
            )
            assert covered == min((number + 1) * 1000, size) - number * 1000


@given(
    st.lists(st.datetimes(datetime(2020, 1, 1), datetime(2026, 1, 1)), max_size=60),
    st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5),
)  # fmt: skip
def test_retention(times: list[datetime], last: int, daily: int, weekly: int, monthly: int, yearly: int) -> None:
    points = [(str(number), time.replace(tzinfo=UTC)) for number, time in enumerate(times)]
    policy = Retention(last=last, daily=daily, weekly=weekly, monthly=monthly, yearly=yearly)
    keep = kept(points, policy)
    if policy.keeps_all:
        assert set(keep) == {name for name, _ in points}
        return
    assert len(keep) <= last + daily + weekly + monthly + yearly
    assert len(keep) >= min(last, len(points))
    when = dict(points)
    ordered = sorted(points, key=lambda point: (point[1], point[0]), reverse=True)
    if ordered:
        assert ordered[0][0] in keep  # the newest always
    if daily:
        days = sorted({f"{time:%Y-%m-%d}" for _, time in points}, reverse=True)[:daily]
        assert set(days) <= {f"{when[name]:%Y-%m-%d}" for name in keep}
    # Pruning twice is pruning once.
    assert set(kept([(name, when[name]) for name in keep], policy)) == set(keep)


def test_a_cache_saves_reading_again_and_is_never_believed(tmp_path: Path) -> None:
    disk = Memory(40 * GRANULE)
    points = chain(make(tmp_path / "repository"), disk, 4)
    cache = tmp_path / "cache"
    opened = [Repository.open(Cached(Directory(tmp_path / "repository"), cache), SECRET) for _ in range(2)]
    assert restored(opened[0], points[-1][0]) == points[-1][1]
    for path in cache.rglob("*"):
        if path.is_file():
            path.write_bytes(b"broken")
    assert restored(opened[1], points[-1][0]) == points[-1][1]
