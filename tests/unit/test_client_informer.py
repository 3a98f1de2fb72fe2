"""The informer keeps a true copy through lost watches, expiry and errors; the lease gives at most one leader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fake_client import FakeClient
from stead.client.informer import Informer, Informers, Key, NotSynced
from stead.client.lease import LeaderElection, LeaseTerms
from stead.kinds.register import CONFIG_MAP, LEASE
from stead.kube.errors import ApiError

Object = dict[str, Any]


def config_map(name: str, **data: str) -> Object:
    labels = {"colour": data.pop("colour")} if "colour" in data else {}
    return {"metadata": {"namespace": "n", "name": name, "labels": labels}, "data": data}


@asynccontextmanager
async def running(client: FakeClient) -> AsyncIterator[Informer]:
    informer = Informer(client, CONFIG_MAP)
    informer.add_index("colour", lambda o: [c] if (c := o["metadata"]["labels"].get("colour")) else [])
    task = asyncio.create_task(informer.run())
    await informer.wait_synced(5)
    yield informer
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def same(informer: Informer, client: FakeClient) -> None:
    async with asyncio.timeout(5):
        while {str(o) for o in informer.objects()} != {str(o) for o in client.of("configmaps")}:
            await asyncio.sleep(0.005)


async def test_it_follows_changes_and_tells_them() -> None:
    client = FakeClient()
    await client.create(CONFIG_MAP, config_map("old"))
    told: list[tuple[str, str]] = []
    async with running(client) as informer:
        informer.add_listener(
            lambda old, new: told.append(((new or old or {})["metadata"]["name"], f"{bool(old):d}{bool(new):d}"))
        )
        await client.create(CONFIG_MAP, config_map("a", colour="red"))
        await client.patch(CONFIG_MAP, "n", "a", {"metadata": {"labels": {"colour": "blue"}}})
        await client.delete(CONFIG_MAP, "n", "old")
        await same(informer, client)
        assert told == [("old", "01"), ("a", "01"), ("a", "11"), ("old", "10")]
        assert [o["metadata"]["name"] for o in informer.by_index("colour", "blue")] == ["a"]
        assert informer.by_index("colour", "red") == []
        assert informer.keys() == [Key("n", "a")]
        assert informer.objects("other") == []


async def test_after_410_it_lists_again_and_tells_only_differences() -> None:
    client = FakeClient()
    for name in ("kept", "changed", "gone", "reborn"):
        await client.create(CONFIG_MAP, config_map(name))
    async with running(client) as informer:
        told: list[str] = []
        held = asyncio.Event()
        client.fail = lambda verb, resource, name: None if held.is_set() else ApiError("ServiceUnavailable", "away")
        client.expire()
        held.set()
        await client.patch(CONFIG_MAP, "n", "changed", {"data": {"x": "1"}})
        await client.delete(CONFIG_MAP, "n", "gone")
        await client.delete(CONFIG_MAP, "n", "reborn")
        await client.create(CONFIG_MAP, config_map("reborn"))
        informer.add_listener(lambda old, new: told.append((new or old or {})["metadata"]["name"]))
        told.clear()
        client.expire()
        await client.wake()
        await same(informer, client)
        assert "kept" not in told


async def test_errors_are_retried() -> None:
    client = FakeClient()
    failures: list[BaseException] = [ApiError("InternalError", "x"), OSError("y"), ApiError("Unauthorized", "z")]
    client.fail = lambda verb, resource, name: failures.pop() if failures and verb in ("list", "watch") else None  # type: ignore[return-value]  # the union is narrower than the list
    async with running(client) as informer:
        await client.create(CONFIG_MAP, config_map("a"))
        await same(informer, client)


async def test_a_silent_watch_is_opened_anew() -> None:
    client = FakeClient()
    opened = 0

    def count(verb: str, resource: Any, name: str) -> None:
        nonlocal opened
        opened += verb == "watch"

    client.fail = count
    informer = Informer(client, CONFIG_MAP, idle_seconds=0.01)
    task = asyncio.create_task(informer.run())
    async with asyncio.timeout(5):
        while opened < 2:
            await asyncio.sleep(0.01)
    await client.create(CONFIG_MAP, config_map("a"))
    await same(informer, client)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_failing_listener_harms_nobody_else() -> None:
    client = FakeClient()
    told: list[str] = []

    def broken(old: Object | None, new: Object | None) -> None:
        raise RuntimeError("bug")

    async with running(client) as informer:
        informer.add_listener(broken)
        informer.add_listener(lambda old, new: told.append("seen"))
        await client.create(CONFIG_MAP, config_map("a"))
        await same(informer, client)
        assert told == ["seen"]


async def test_waiting_for_a_list_has_a_deadline() -> None:
    with pytest.raises(NotSynced):
        await Informer(FakeClient(), CONFIG_MAP).wait_synced(0.01)


async def test_informers_are_shared_and_may_be_added_late() -> None:
    client = FakeClient()
    informers = Informers(client)
    first = informers.of(CONFIG_MAP)
    assert informers.of(CONFIG_MAP) is first
    informers.start()
    late = informers.of(LEASE)
    await informers.wait_synced(5)
    assert late.synced
    await informers.stop()


# lease ---------------------------------------------------------------------------------------------------------------


class Candidate:
    def __init__(self, client: FakeClient, identity: str) -> None:
        self.leads = asyncio.Event()
        self.lost = asyncio.Event()
        terms = LeaseTerms("kube-system", "l", identity, duration=0.6, renew_deadline=0.4, retry_period=0.05)
        self.election = LeaderElection(client, LEASE, terms)
        self.task = asyncio.create_task(self.election.run(self._work))

    async def _work(self) -> None:
        self.leads.set()
        try:
            await asyncio.sleep(3600)
        finally:
            self.lost.set()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_one_leads_and_the_other_follows_on_release() -> None:
    client = FakeClient()
    first = Candidate(client, "a")
    await asyncio.wait_for(first.leads.wait(), 5)
    second = Candidate(client, "b")
    await asyncio.sleep(0.3)
    assert not second.leads.is_set()
    await first.stop()
    await asyncio.wait_for(second.leads.wait(), 0.5)
    assert (await client.get(LEASE, "kube-system", "l"))["spec"]["holderIdentity"] == "b"
    await second.stop()


async def test_a_leader_cut_off_stops_before_another_takes_over() -> None:
    class Cut(FakeClient):
        """A second face of the same store that can be cut off."""

        cut = False

        async def _gate(self, verb: str, resource: Any, name: str) -> None:
            if self.cut:
                raise OSError("no route to host")
            await super()._gate(verb, resource, name)

    client, near = FakeClient(), Cut()
    near.__dict__.update({k: v for k, v in client.__dict__.items()})
    near.objects = client.objects
    first = Candidate(near, "a")
    await asyncio.wait_for(first.leads.wait(), 5)
    second = Candidate(client, "b")
    near.cut = True
    await asyncio.wait_for(second.leads.wait(), 5)
    assert first.lost.is_set(), "the old leader stopped first"
    for candidate in (first, second):
        await candidate.stop()
