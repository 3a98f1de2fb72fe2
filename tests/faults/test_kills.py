"""`kill -9` of the plane, the agent and libvirtd: nothing acknowledged is lost, no guest is disturbed, nothing is
started twice, and what is told is true again soon.

Each run of this file is a small N of what `stead prove` repeats. The check for lost writes is itself checked: a plane
that acknowledges before it has committed must be caught.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from tests.stead_host import TROUBLE, VM, VMI, SteadHost, phase, stead_host, ticks, uid

from stead.client.contract import Selection
from stead.client.direct import DirectClient
from stead.client.kubeconfig import load
from stead.kinds import register
from stead.kube.errors import ApiError

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]

#: seconds in which a killed process serves again on an idle machine, and how much slower this one may be
BACK_SECONDS, SLOWER = 5.0, 4.0


class Writers:
    """Clients that create and change ConfigMaps without pause, and remember what they were told is written."""

    def __init__(self, stead: SteadHost, count: int = 4) -> None:
        self.stead = stead
        self.acknowledged: dict[str, int] = {}
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(count)]

    async def _write(self, number: int) -> None:
        name, value = f"written-{number}", 0
        client = DirectClient(load(self.stead.kubeconfig))
        try:
            while True:
                value += 1
                try:
                    await self._put(client, name, value)
                    self.acknowledged[name] = value
                except TROUBLE:
                    await asyncio.sleep(0.02)
        finally:
            await client.close()

    async def _put(self, client: DirectClient, name: str, value: int) -> None:
        data = {"data": {"value": str(value)}}
        try:
            await client.patch(register.CONFIG_MAP, "default", name, data)
        except ApiError as error:
            if error.reason != "NotFound":
                raise
            if name in self.acknowledged:
                return  # lost: `lost` tells
            await client.create(
                register.CONFIG_MAP,
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, **data},
            )

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def lost(self) -> list[str]:
        """Names whose stored value is older than the last one acknowledged."""
        found = await self.stead.client.list(register.CONFIG_MAP, Selection("default"))
        stored = {item["metadata"]["name"]: int((item.get("data") or {}).get("value", 0)) for item in found.items}
        return [name for name, value in self.acknowledged.items() if stored.get(name, 0) < value]


async def test_the_plane_dies_while_clients_write(stead: SteadHost) -> None:
    """Writes, watches, guests and a start in hand, with the plane killed at four random moments."""
    await stead.vm("bystander")
    console = await stead.booted("bystander")
    pid = await stead.qemu_pid("bystander")
    assert pid
    writers = Writers(stead)
    seconds = []
    moments = random.Random(7)
    try:
        for turn in range(4):
            await asyncio.sleep(0.3 + moments.random())
            if turn == 1:  # in the middle of a start
                await stead.vm("starting", run="Manual")
                with contextlib.suppress(*TROUBLE):
                    await stead.call("starting", "start")
            seconds.append(await stead.killed("plane"))
        await asyncio.sleep(0.5)
    finally:
        await writers.stop()
    assert sum(writers.acknowledged.values()) > 40, "hardly anything was written: this proves nothing"
    assert await writers.lost() == []
    # the supervisor's back-off is part of the later ones
    assert seconds[0] < BACK_SECONDS * SLOWER, f"serving again after {seconds}"

    vm = await stead.get(VM, "starting")
    assert vm is not None, "an acknowledged machine is lost"
    if "starting" not in await _running(stead):
        with contextlib.suppress(ApiError):
            await stead.call("starting", "start")
    await stead.wait_machine("starting", "running")
    assert await stead.qemu_pid("starting") > 0
    assert await stead.qemu_pid("bystander") == pid
    assert len(await stead.domains()) == 2
    # the console's stream ended with the plane; what the guest says now continues its clock
    again = await stead.console("bystander")
    await again.until("tick")
    assert ticks(again.text)[0] > ticks(console.text)[-1]
    await stead.delete("starting")
    await stead.delete("bystander")


async def _running(stead: SteadHost) -> set[str]:
    found = await stead.client.list(VMI, Selection(stead.namespace))
    return {vmi["metadata"]["name"] for vmi in found.items}


async def test_agent_and_libvirtd_die_at_every_stage(stead: SteadHost) -> None:
    """Killed while a machine is prepared, started, running, stopping: one domain, one process, true status."""
    for what, delay in (("agent", 0.4), ("libvirtd", 1.0), ("agent", 1.2)):
        name = f"{what}-{int(delay * 10)}"
        await stead.vm(name)
        await asyncio.sleep(delay)
        await stead.kill(what)
        await stead.wait_machine(name, "running")
        pid = await stead.qemu_pid(name)
        assert pid
        assert await stead.domains() == {stead.domain(name)}
        first = uid(await stead.wait_machine(name, "running"))
        if what == "agent":
            # killed again while the guest runs: the same process, and calls work again
            console = await stead.booted(name)
            begun = time.monotonic()
            await stead.kill("agent")
            await stead.kill("libvirtd")
            await stead.until(lambda n=name: _pause(stead, n), "the machine can be paused", 60)  # type: ignore[misc]
            await stead.printable(name, "Paused")
            assert time.monotonic() - begun < BACK_SECONDS * SLOWER
            await stead.call(name, "unpause")
            vmi = await stead.wait_machine(name, "agent")
            assert (uid(vmi), await stead.qemu_pid(name)) == (first, pid)
            again = await stead.console(name)
            await again.until("tick")
            assert ticks(again.text)[0] > ticks(console.text)[-1]
        deletion = asyncio.create_task(stead.delete(name))
        await asyncio.sleep(0.3)
        await stead.kill(what)
        await deletion
        assert not Path(f"/proc/{pid}").exists()
        assert await stead.domains() == set()

    # a guest that ends while nobody looks is still judged
    await stead.vm("unseen", run="RerunOnFailure")
    console = await stead.booted("unseen")
    vmi = await stead.wait_machine("unseen", "running")
    pid = await stead.qemu_pid("unseen")
    os.kill(stead.pid("agent"), signal.SIGSTOP)
    stopped = stead.pid("agent")
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(1)
    os.kill(stopped, signal.SIGKILL)
    await stead.until_vmi("unseen", lambda v: uid(v) != uid(vmi) and phase(v) == "Running")
    await stead.delete("unseen")


async def _pause(stead: SteadHost, name: str) -> bool:
    await stead.call(name, "pause")
    return True


async def test_the_plane_is_unprivileged_and_files_are_closed(stead: SteadHost) -> None:
    """The plane has another user, no capability and no way to libvirt; keys and stores are nobody else's."""
    status = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{stead.pid('plane')}/status").read_text().splitlines()
        if ":" in line
    )
    assert set(status["Uid"].split()) == {"65534"}
    assert int(status["CapEff"], 16) == 0
    open_files = [os.readlink(path) for path in Path(f"/proc/{stead.pid('plane')}/fd").iterdir()]
    assert not any("libvirt" in name for name in open_files)
    assert stead.settings.plane_dir.stat().st_uid == 65534
    for path in (*stead.settings.plane_dir.rglob("*"), *stead.settings.agent_dir.rglob("*.key"), stead.kubeconfig):
        if path.is_file() and path.suffix != ".crt":
            assert path.stat().st_mode & 0o027 == 0, f"{path} is open to others: {oct(path.stat().st_mode)}"


BROKEN = '''
"""A plane that acknowledges before it has committed: what the test for lost writes must catch."""
import asyncio
import sys

if sys.argv[-1] == "plane":
    from stead.store import sqlite

    whole = sqlite.SqliteStore._commit_group

    class _Late:
        """The connection, whose COMMIT comes late."""

        def __init__(self, connection):
            self._connection = connection

        def execute(self, statement, *rest):
            if statement == "COMMIT":
                return None
            if statement == "BEGIN IMMEDIATE" and self._connection.in_transaction:
                return None
            return self._connection.execute(statement, *rest)

        def __getattr__(self, name):
            return getattr(self._connection, name)

    def connect(self, plain=sqlite.SqliteStore._connect):
        connection = plain(self)
        if getattr(self, "_write_connection", None) is None:
            return _Late(connection)
        return _Shared(self)

    class _Shared:
        """Readers use the writer's connection, to see what is not committed."""

        def __init__(self, store):
            self._store = store

        def __getattr__(self, name):
            return getattr(self._store._write_connection, name)

    sqlite.SqliteStore._connect = connect
'''


async def test_a_plane_that_acknowledges_too_early_is_caught(tmp_path: Path) -> None:
    """The control of the test above: with commits held back, the same clients find writes that are lost."""
    async with stead_host(tmp_path, with_registry=False) as stead:
        await stead.down()
        stead.altered_by = stead.host.root / "broken"
        stead.altered_by.mkdir()
        (stead.altered_by / "sitecustomize.py").write_text(BROKEN)
        await stead.up()
        writers = Writers(stead)
        await asyncio.sleep(1.5)
        await stead.killed("plane")
        await writers.stop()
        assert writers.acknowledged
        assert await writers.lost(), "the check for lost writes does not see lost writes"
