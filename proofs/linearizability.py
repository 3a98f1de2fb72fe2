"""`linearizability`: the API behaves as one copy of each object, whatever happens to the plane.

Each round has keys of its own. Ten clients work on them; at a random moment the plane gets `kill -9`, and in every
second round the power fails with it (`power.cut`); it is started again, and the clients go on. Then the histories of
the round's keys are checked, the order of revisions, the events of a watch that went through all rounds, and each
list against those events. The control is the same with `synchronous=OFF`: it must be found out.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from stead.benchmarks import rig
from stead.benchmarks.http import Connection
from stead.benchmarks.served import PATH

from stead.client.kubeconfig import load, tls_context

from . import histories, power
from .clients import Client, Dial, Recording, follow
from .report import Outcome, Request

CLIENTS = 10
KEYS = 4
#: rounds after which a store that is known to be wrong must have been found out
CONTROL_ROUNDS = 6


async def run(request: Request) -> Outcome:
    """See the module's prose."""
    begun = time.monotonic()
    recording, failures = await rounds(request.n, request.seed, "FULL")
    control, caught = await rounds(CONTROL_ROUNDS, request.seed, "OFF", until_caught=True)
    if not caught:
        failures.append("the control (synchronous=OFF under power loss) was not found out: this run proves nothing")
    if len(recording.operations) < 20 * request.n:
        failures.append(f"{len(recording.operations)} operations in {request.n} rounds are too few to prove anything")
    unknown = sum(each.is_open for each in recording.operations)
    facts = {
        "kills": f"{request.n}, every second one with power loss, {CLIENTS} clients on {KEYS} keys a round",
        "operations": f"{len(recording.operations)}, of which {unknown} writes got no answer",
        "writes acknowledged with a revision": str(len(recording.acknowledged)),
        "lists compared with the events up to their revision": str(len(recording.snapshots)),
        "events of the watch": f"{len(recording.events)}, resumed {recording.resumed} times",
        "histories that are not linearizable, lost writes, wrong events": str(len(failures)),
        "control": f"synchronous=OFF: found out by {caught[0] if caught else 'nothing'} "
        f"(after {len(control.operations)} operations)",
    }
    return Outcome(
        name="linearizability", n=request.n, seed=request.seed, facts=facts, failures=failures,
        seconds=time.monotonic() - begun,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def recorded_plane(synchronous: str) -> AsyncIterator[tuple[rig.Rig, Path]]:
    """A plane under `power.py`, and the folder with what is durable."""
    with rig.isolation.scratch() as root:
        folder = root / "durable"
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)  # the account of the plane writes here; nothing of worth lies in it
        root.chmod(0o711)
        async with rig.plane(power.__file__, str(folder), synchronous) as plane:
            yield plane, folder


def dialler(plane: rig.Rig) -> Dial:
    """How clients reach it, as its administrator."""
    endpoint = load(plane.kubeconfig)
    url, context = urlsplit(endpoint.server), tls_context(endpoint)
    assert context is not None
    return lambda: Connection(url.hostname or "127.0.0.1", url.port or 6443, context)


async def revision_now(dial: Dial) -> int:
    """The revision of the store."""
    connection = await dial().open()
    _, answer = await connection.call("GET", f"{PATH}?limit=1")
    await connection.close()
    return int(msgspec.json.decode(answer)["metadata"]["resourceVersion"])


async def rounds(n: int, seed: int, synchronous: str, until_caught: bool = False) -> tuple[Recording, list[str]]:
    """So many kills; what was seen and what was wrong."""
    draw = random.Random(seed)
    recording = Recording()
    failures: list[str] = []
    async with recorded_plane(synchronous) as (plane, folder):
        dial = dialler(plane)
        watch = asyncio.create_task(follow(dial, recording, await revision_now(dial)))
        clients = [Client(each, dial, recording, random.Random(draw.random())) for each in range(CLIENTS)]
        for number in range(n):
            cut = folder if until_caught or number % 2 else None
            try:
                failures += await _round(plane, (number, clients, recording), cut, draw)
            except TimeoutError as error:
                failures.append(f"round {number}: {error}")
                break
            if number % 25 == 24:
                print(f"{number + 1} rounds, {len(recording.operations)} operations", file=sys.stderr, flush=True)
            if until_caught and failures:
                break
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
    failures += histories.broken_order(recording.writes)
    failures += histories.broken_events(recording.events, recording.acknowledged)
    return recording, failures + recording.check_snapshots() + recording.faults


async def _round(
    plane: rig.Rig, players: tuple[int, list[Client], Recording], cut: Path | None, draw: random.Random
) -> list[str]:
    number, clients, recording = players
    first = len(recording.operations)
    keys = [f"proof-{number}-{each}" for each in range(KEYS)]
    stop = asyncio.Event()
    working = [asyncio.create_task(client.work(keys, stop)) for client in clients]
    try:
        await asyncio.sleep(draw.uniform(0.1, 0.6))
        await plane.kill()
        if cut is not None:
            assert plane.settings is not None
            power.cut(plane.settings.plane_dir / "store.db", cut, draw)
        await plane.up("plane")
        await asyncio.sleep(0.25)
    finally:
        stop.set()
        await asyncio.gather(*working)
    await caught_up(recording)
    broken = histories.broken_keys(recording.operations[first:])
    what = "power loss" if cut is not None else "kill -9"
    return [f"round {number} ({what}): the history of {key} is not linearizable" for key in broken]


async def caught_up(recording: Recording) -> None:
    """Until the watch has told the newest acknowledged write. A watch that does not is judged at the end."""
    newest = max(recording.acknowledged, default=0)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(15):
            while not recording.events or recording.events[-1].revision < newest:
                await asyncio.sleep(0.02)
