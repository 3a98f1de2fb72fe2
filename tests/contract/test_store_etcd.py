"""What the store on etcd promises beyond the contract: fences, formats, sealed Secrets, and members that die.

Each test that harms a member has a cluster of its own; the others share one and take a name of their own in it.
"""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.etcd_cluster import Cluster

from stead.config import ConfigError, Settings
from stead.store import backups, etcd_format, keyring, location
from stead.store.contract import Conflict, Event, Put, StoreFailure, Unanswered, Unavailable
from stead.store.etcd import FORMAT, EtcdStore, Meta, Superseded
from stead.store.etcd_filling import change, set_meta
from stead.store.etcd_gateway import Gateway, put
from stead.store.migrations import TooNew
from stead.store.sealed import SealedStore
from stead.store.watch import Cache

KEY = "/registry/g/p/ns/a"
SECRET = "/registry/core/secrets/default/a"


@pytest.fixture
def name() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


async def opened(cluster: Any, name: str) -> EtcdStore:
    return await EtcdStore.open(cluster.endpoints, name, cluster.context())


@pytest.fixture
async def harmed(tmp_path: Path) -> AsyncIterator[Any]:
    """A cluster for one test to break."""
    async with Cluster(tmp_path) as cluster:
        yield cluster


async def test_two_planes_see_each_others_writes_at_once_and_only_one_wins(etcd_cluster: Any, name: str) -> None:
    one, two = await opened(etcd_cluster, name), await opened(etcd_cluster, name)
    cache = Cache(two)
    await cache.start()
    for number in range(50):
        revision = await one.commit([Put(f"{KEY}{number}", b"v", 0)])
        newest = await two.latest()
        assert newest >= revision, "a read that comes after the answer knows of the write"
        await cache.wait_for(newest)
        assert cache.get(f"{KEY}{number}") is not None
    answers = await asyncio.gather(
        *(store.commit([Put(KEY, b"", 0)]) for store in (one, two) * 10), return_exceptions=True
    )
    assert sum(isinstance(answer, int) for answer in answers) == 1
    assert sum(isinstance(answer, Conflict) for answer in answers) == 19
    await cache.close()
    await one.close()
    await two.close()


async def test_foreign_keys_in_the_same_etcd_hold_nobody_up(etcd_cluster: Any, name: str) -> None:
    store = await opened(etcd_cluster, name)
    cache = Cache(store)
    await cache.start()
    other = await opened(etcd_cluster, f"{name}-x")
    await other.commit([Put(KEY, b"theirs", 0)])
    await cache.wait_for(await store.latest(), timeout=2)
    assert cache.get(KEY) is None
    assert (await store.range("")).entries == ()
    await cache.close()
    await store.close()
    await other.close()


async def test_a_store_that_was_replaced_takes_nothing_from_planes_of_before(etcd_cluster: Any, name: str) -> None:
    store, later = await opened(etcd_cluster, name), await opened(etcd_cluster, name)
    cache = Cache(store)
    await cache.start()
    await set_meta(later, Meta(offset=1_000_000))
    with pytest.raises(Superseded):
        await store.commit([Put(KEY, b"v", 0)])
    with pytest.raises(Superseded):
        await store.latest()
    assert store.trouble
    with pytest.raises(StoreFailure, match="can no longer be followed"):
        async with asyncio.timeout(10):
            await cache.run_until_broken()
    await cache.close()
    again = await opened(etcd_cluster, name)
    assert await again.get(KEY) is None
    assert await again.commit([Put(KEY, b"v", 0)]) > 1_000_000
    for each in (store, later, again):
        await each.close()


async def test_a_newer_format_and_a_half_filled_store_are_refused(etcd_cluster: Any, name: str) -> None:
    store = await opened(etcd_cluster, name)
    await store.commit([Put(KEY, b"v", 0)])
    await set_meta(store, Meta(format=FORMAT + 1))
    with pytest.raises(TooNew, match="knows formats up to"):
        await opened(etcd_cluster, name)
    await store.close()
    half = await opened(etcd_cluster, f"{name}-h")
    await set_meta(half, Meta(filling="a restore"))
    with pytest.raises(StoreFailure, match="a restore was begun and not finished"):
        await opened(etcd_cluster, f"{name}-h")
    await half.close()


async def test_a_migration_keeps_a_copy_fences_older_planes_and_goes_on_after_a_crash(
    etcd_cluster: Any, name: str, tmp_path: Path
) -> None:
    older, store = await opened(etcd_cluster, name), await opened(etcd_cluster, name)
    await older.commit([Put(KEY, b"old", 0)])
    calls = 0

    async def step(at: EtcdStore) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise StoreFailure("the power fails")
        await change(at, [put(at.base + KEY, b"new"), put(at.head_key, b"")])

    with pytest.raises(StoreFailure, match="the power fails"):
        await etcd_format.migrate(store, tmp_path, (step,))
    with pytest.raises(StoreFailure, match="replaced or migrated"):
        await older.commit([Put(KEY, b"lost", None)])
    with pytest.raises(StoreFailure, match="the migration from format 1 was begun"):
        await opened(etcd_cluster, name)  # this release has no such step: it stays away
    await etcd_format.migrate(store, tmp_path, (step,))
    with pytest.raises(TooNew):
        await opened(etcd_cluster, name)
    entry = await store.get(KEY)
    assert entry is not None
    assert entry.value == b"new"
    kept = backups.read(tmp_path / f"{name}.etcd-format-1")
    assert [found.value for found in kept.entries] == [b"old"]
    await older.close()
    await store.close()


async def test_secrets_lie_sealed_in_etcd(etcd_cluster: Any, name: str) -> None:
    raw = await opened(etcd_cluster, name)
    keys = keyring.parse(keyring.new_key(), "test")
    store = await SealedStore.open(raw, keys)
    await store.commit([Put(SECRET, b"horse-battery", 0), Put(KEY, b"plain", 0)])
    gateway = Gateway(etcd_cluster.endpoints, etcd_cluster.context())
    everything = {"key": "AA==", "range_end": "AA=="}
    kept = bytes(await gateway.read("/v3/kv/range", everything, msgspec.Raw))
    values = [base64.b64decode(kv.get("value", "")) for kv in msgspec.json.decode(kept)["kvs"]]
    assert not any(b"horse-battery" in value for value in values)
    assert b"plain" in values, "the control: what is no Secret is found there"
    found = await store.get(SECRET)
    assert found is not None
    assert found.value == b"horse-battery"
    with pytest.raises(StoreFailure, match="not among those given"):
        await SealedStore.open(raw, keyring.parse(keyring.new_key(), "other"))
    await gateway.close()
    await store.close()


async def test_planes_without_the_right_certificate_are_told_why(etcd_cluster: Any, tmp_path: Path) -> None:
    settings = Settings(**etcd_cluster.settings("x"), state_dir=tmp_path)
    place = location.of(settings)
    await (await location.open_store(place)).close()
    stranger = tmp_path / "stranger"
    async with Cluster(stranger, 0):
        with pytest.raises(StoreFailure, match=r"cannot open store etcd://.*certificate verify failed"):
            await location.open_store(msgspec.structs.replace(place, ca=stranger / "tls" / "ca.crt"))
        client = {"certificate": stranger / "tls" / "client.crt", "key": stranger / "tls" / "client.key"}
        with pytest.raises(StoreFailure, match="cannot open store"):
            await location.open_store(msgspec.structs.replace(place, **client))
    with pytest.raises(ConfigError, match="absent"):
        await location.open_store(msgspec.structs.replace(place, certificate=tmp_path / "absent"))


async def follow(store: EtcdStore, after: int, seen: list[Event]) -> None:
    async for batch in store.watch(after):
        seen.extend(batch)


async def keep_writing(store: EtcdStore, prefix: str, acknowledged: list[int], stop: asyncio.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        try:
            acknowledged.append(await store.commit([Put(f"{prefix}{number}", b"v", 0)]))
        except (Unavailable, Unanswered):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("harm", ["kill", "freeze"])
async def test_any_member_may_die_or_fall_silent_and_nothing_is_lost(harmed: Any, harm: str) -> None:
    store = await opened(harmed, "stead")
    seen: list[Event] = []
    acknowledged: list[int] = []
    stop = asyncio.Event()
    watching = asyncio.create_task(follow(store, await store.latest(), seen))
    writing = [asyncio.create_task(keep_writing(store, f"{KEY}{lane}-", acknowledged, stop)) for lane in range(4)]
    for member in harmed.members:
        await asyncio.sleep(0.3)
        getattr(member, harm)()
        harmed_at = time.monotonic()
        known = len(acknowledged)
        while len(acknowledged) < known + 20:
            await asyncio.sleep(0.01)
            assert time.monotonic() < harmed_at + 30, "writes do not go on"
        if harm == "kill":
            harmed.start(member)
        else:
            member.thaw()
        await harmed.wait_ready()
    stop.set()
    await asyncio.gather(*writing)
    async with asyncio.timeout(20):
        while not seen or seen[-1].revision < max(acknowledged):
            await asyncio.sleep(0.02)
    revisions = [event.revision for event in seen]
    assert revisions == sorted(set(revisions)), "in order, each once"
    assert set(acknowledged) <= set(revisions)
    kept = {entry.mod_revision for entry in (await store.range("")).entries}
    assert set(acknowledged) <= kept
    watching.cancel()
    await store.close()


async def test_without_a_majority_writes_and_fresh_reads_fail_clearly_and_all_recovers(harmed: Any) -> None:
    store = await opened(harmed, "stead")
    revision = await store.commit([Put(KEY, b"v", 0)])
    cache = Cache(store)
    await cache.start()
    for member in harmed.members[:2]:
        member.kill()
    with pytest.raises(Unavailable):
        await store.latest()
    with pytest.raises((Unavailable, Unanswered)):
        await store.commit([Put(KEY, b"lie", revision)])
    assert store.trouble
    assert cache.get(KEY) is not None, "what was known can still be read by who asks for any state"
    for member in harmed.members[:2]:
        harmed.start(member)
    await harmed.wait_ready()
    await cache.wait_for(await store.latest())
    assert store.trouble is None
    entry = await store.get(KEY)
    assert entry is not None
    later = await store.commit([Put(KEY, b"w", entry.mod_revision)])
    await cache.wait_for(later)
    await cache.close()
    await store.close()
