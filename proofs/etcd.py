"""`etcd`: three planes on a real etcd cluster of three; any plane and any minority of members may die at any moment.

Each round has keys of its own, on which ten clients work, each with a plane of its choice. At a random moment one of
the planes, one of the members, or one of each gets `kill -9`; some members are frozen instead. How long each plane that
lives needs until it acknowledges a write again is measured; then what died is started again. Every tenth round, and in
the last, the majority of etcd dies: what is read or written then must be refused with a Status of 503 or 504, but for
reads that accept any state; nothing may lie, and all must serve again. At the end the histories of all keys are judged
as one copy's, the order of revisions, each list, and one watch that went from plane to plane.

Controls: planes that answer writes before etcd has them, and planes that do not ask etcd before they read.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
from stead.benchmarks import rig
from stead.benchmarks.served import PATH

from stead import installation

from . import etcd_broken, histories
from .clients import TROUBLE, Client, Dial, Recording, body, follow
from .etcd_members import Cluster, Member
from .linearizability import caught_up, dialler, revision_now
from .report import Outcome, Request

PLANES, CLIENTS, KEYS = 3, 10, 4
#: what a client waits between two operations on average, seconds: planes must be able to start beside them
PAUSE_SECONDS = 0.02
#: rounds after which planes that are known to be wrong must have been found out
CONTROL_ROUNDS = 8
#: how often the majority dies, and how long a refusal may take, seconds
MAJORITY_EVERY, REFUSAL_SECONDS = 10, 30.0
#: what is promised of the time to serve again (99 of 100), seconds; judged where there are enough rounds
AGAIN_SECONDS, ENOUGH_ROUNDS = 3.0, 100
#: how often a write is tried while a plane does not serve, and how long at most, seconds
PROBE_SECONDS, GIVE_UP_SECONDS = 0.1, 60.0
#: how often a plane is started that does not come up: what it needs may be harmed at that moment
START_TRIES = 3
#: files of the first plane that the others are given
SHARED = ("ca.crt", "ca.key", "token.key", "secrets.key")


class Site:
    """Planes and members of one run, and what has been measured."""

    def __init__(self, planes: list[rig.Rig], cluster: Cluster, draw: random.Random) -> None:
        self.planes, self.cluster, self.draw = planes, cluster, draw
        self._dialling = random.Random(draw.random())  # so that harm does not depend on how often clients dial
        self.kills = [0] * len(planes)
        self.dials = [dialler(plane) for plane in planes]
        self.alive = set(range(len(planes)))
        self.again: list[tuple[float, str]] = []
        self.harms: dict[str, int] = {}
        self.starting: set[asyncio.Task[None]] = set()
        self._probes = 0

    def dial(self) -> Any:
        """A connection to a plane that is not known to be dead."""
        return self.dials[self._dialling.choice(sorted(self.alive))]()

    async def kill(self, plane: int) -> None:
        """`kill -9`; nobody dials it until it is up again."""
        self.alive.discard(plane)
        self.kills[plane] += 1
        await self.planes[plane].kill()

    def start(self, plane: int) -> None:
        """Start it while the next rounds go on."""
        self.starting.add(asyncio.create_task(self._up(plane)))

    async def _up(self, plane: int) -> None:
        for tries in range(START_TRIES):  # as `stead up` does
            try:
                await self.planes[plane].up("plane")
                break
            except TimeoutError:
                await self.planes[plane].kill()
                if tries == START_TRIES - 1:
                    raise
        self.alive.add(plane)

    async def all_up(self) -> None:
        """Return once every plane serves. Raises TimeoutError."""
        starting, self.starting = self.starting, set()
        await asyncio.gather(*starting)

    async def probe(self, plane: int) -> float:
        """Seconds until this plane acknowledges a write that began now or later."""
        begun = time.monotonic()
        pending: set[asyncio.Task[bool]] = set()
        try:
            while time.monotonic() - begun < GIVE_UP_SECONDS:
                self._probes += 1
                pending.add(asyncio.create_task(_writes(self.dials[plane], f"probe-{self._probes}")))
                done, pending = await asyncio.wait(pending, timeout=PROBE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if any(task.result() for task in done):
                    return time.monotonic() - begun
                if done:
                    await asyncio.sleep(PROBE_SECONDS)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        return GIVE_UP_SECONDS


async def _writes(dial: Dial, name: str) -> bool:
    """Whether a write was acknowledged."""
    try:
        code, _ = await _ask(dial, "POST", PATH, body(name, "x").replace(b"stead-proof", b"stead-probe"))
    except TROUBLE:
        return False
    return code == 201


async def _ask(dial: Dial, method: str, path: str, sent: bytes = b"") -> tuple[int, Any]:
    connection = await dial().open()
    try:
        async with asyncio.timeout(REFUSAL_SECONDS):
            code, answer = await connection.call(method, path, sent)
        return code, msgspec.json.decode(answer)
    finally:
        connection.abort()


async def run(request: Request) -> Outcome:
    """See the module's prose."""
    begun = time.monotonic()
    recording, failures, site = await rounds(request.n, request.seed, ())
    found = {}
    for how in ("hasty", "stale"):
        control = (etcd_broken.__file__, how)
        _, caught, _ = await rounds(CONTROL_ROUNDS, request.seed, control, until_caught=True)
        found[how] = caught[0] if caught else "nothing"
        if not caught:
            failures.append(f"the control ({how} planes) was not found out: this run proves nothing")
    p99, times = _times(site.again)
    if request.n >= ENOUGH_ROUNDS and p99 > AGAIN_SECONDS:
        failures.append(f"serving again took {p99:.2f} s (p99); {AGAIN_SECONDS:g} s are promised")
    unknown = sum(each.is_open for each in recording.operations)
    facts = {
        "rounds": f"{request.n}: " + ", ".join(f"{count} × {what}" for what, count in sorted(site.harms.items())),
        "kills of each plane": ", ".join(map(str, site.kills)),
        "operations": f"{len(recording.operations)}, of which {unknown} writes got no definite answer",
        "writes acknowledged with a revision": str(len(recording.acknowledged)),
        "lists compared with the events up to their revision": str(len(recording.snapshots)),
        "events of the watch": f"{len(recording.events)}, resumed {recording.resumed} times on any plane",
        "a living plane acknowledges writes again": times,
        "histories that are not linearizable, lost writes, wrong events, lies": str(len(failures)),
        **{f"control, {how} planes": f"found out by {what}" for how, what in found.items()},
    }
    return Outcome(
        name="etcd", n=request.n, seed=request.seed, facts=facts, failures=failures, seconds=time.monotonic() - begun
    )


def _times(again: list[tuple[float, str]]) -> tuple[float, str]:
    """The 99th percentile, and all that there is to say."""
    if not again:
        return 0.0, "not measured"
    seconds = sorted(each for each, _ in again)
    p50, p99 = (seconds[min(len(seconds) - 1, int(len(seconds) * share))] for share in (0.5, 0.99))
    worst = {what: max(each for each, of in again if of == what) for _, what in again}
    slowest = ", ".join(f"{what} {each:.2f} s" for what, each in sorted(worst.items()))
    return p99, f"p50 {p50:.2f} s, p99 {p99:.2f} s ({len(seconds)} times); slowest after {slowest}"


@contextlib.asynccontextmanager
async def site_of(program: tuple[str, ...], draw: random.Random) -> AsyncIterator[Site]:
    """A cluster and planes on it that share the first one's keys."""
    async with rig.folder() as root:
        planes = []
        async with Cluster(root / "etcd") as cluster:
            try:
                for number in range(PLANES):
                    planes.append(_plane(root / f"plane{number}", planes[0] if planes else None, program, cluster))
                    await planes[-1].up("plane")
                site = Site(planes, cluster, draw)
                yield site
                await site.all_up()
            finally:
                for plane in planes:
                    await plane.close()


def _plane(root: Path, first: rig.Rig | None, program: tuple[str, ...], cluster: Cluster) -> rig.Rig:
    settings = rig.settings_below(root, "")
    keys = settings.plane_dir / "pki"
    keys.mkdir(parents=True)
    for name in SHARED if first is not None and first.settings is not None else ():
        shutil.copy2(first.settings.plane_dir / "pki" / name, keys / name)
    installation.prepare(settings)
    plane = rig.Rig(root, settings, None)
    plane.program = program or plane.program
    plane.given = cluster.settings()
    return plane


async def rounds(
    n: int, seed: int, program: tuple[str, ...], until_caught: bool = False
) -> tuple[Recording, list[str], Site]:
    """So many rounds; what was seen, what was wrong, and what was measured."""
    draw = random.Random(seed)
    recording = Recording()
    failures: list[str] = []
    async with site_of(program, draw) as site:
        watch = asyncio.create_task(follow(site.dial, recording, await revision_now(site.dial)))
        clients = [Client(each, site.dial, recording, random.Random(draw.random())) for each in range(CLIENTS)]
        for number in range(n):
            try:
                is_last = number == n - 1 and not until_caught
                failures += await _round(site, (number, clients, recording), is_last)
            except TimeoutError as error:
                failures.append(f"round {number}: {error}")
                break
            if number % 25 == 24:
                print(f"{number + 1} rounds, {len(recording.operations)} operations", file=sys.stderr, flush=True)
            if until_caught and (failures or recording.faults):
                break
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
    failures += histories.broken_order(recording.writes)
    failures += histories.broken_events(recording.events, recording.acknowledged)
    return recording, failures + recording.check_snapshots() + recording.faults, site


async def _round(site: Site, players: tuple[int, list[Client], Recording], is_last: bool) -> list[str]:
    number, clients, recording = players
    first = len(recording.operations)
    keys = [f"proof-{number}-{each}" for each in range(KEYS)]
    stop = asyncio.Event()
    working = [asyncio.create_task(client.work(keys, stop, PAUSE_SECONDS)) for client in clients]
    failures: list[str] = []
    try:
        await asyncio.sleep(site.draw.uniform(0.1, 0.6))
        if is_last or number % MAJORITY_EVERY == MAJORITY_EVERY - 1:
            what = "the majority of etcd"
            failures += await _lose_majority(site)
        else:
            what = await _harm(site)
        await asyncio.sleep(0.25)
    finally:
        stop.set()
        await asyncio.gather(*working)
    site.harms[what] = site.harms.get(what, 0) + 1
    await caught_up(recording)
    broken = histories.broken_keys(recording.operations[first:])
    return failures + [f"round {number} ({what}): the history of {key} is not linearizable" for key in broken]


async def _harm(site: Site) -> str:
    """Kill or freeze something, measure how long the living planes need, and mend it; what it was."""
    draw = site.draw
    what = draw.choice(("a plane", "a member", "a plane and a member", "a frozen member"))
    if "plane" in what and len(site.alive) < PLANES:
        await site.all_up()  # while the last one starts, others are harmed, but two planes always live
    plane = draw.randrange(PLANES) if "plane" in what else None
    member = draw.choice(site.cluster.members) if "member" in what else None
    mend: list[Callable[[], None]] = []
    if plane is not None:
        await site.kill(plane)
        mend.append(lambda: site.start(plane))
    if member is not None:
        mend.append(_hit(site, member, freeze="frozen" in what))
    seconds = await asyncio.gather(*(site.probe(each) for each in sorted(site.alive)))
    site.again += [(took, what) for took in seconds]
    for mending in mend:
        mending()
    await site.cluster.wait_ready()
    return what


def _hit(site: Site, member: Member, *, freeze: bool) -> Callable[[], None]:
    """Kill or freeze a member; what mends it."""
    if freeze:
        member.freeze()
        return member.thaw
    member.kill()
    return lambda: site.cluster.start(member)


async def _lose_majority(site: Site) -> list[str]:
    """Two members die: everything is refused clearly or is true; then they come back, and every plane serves again."""
    await site.all_up()
    dead = site.draw.sample(site.cluster.members, 2)
    for member in dead:
        member.kill()
    asked = [(dial, *each) for dial in site.dials for each in (
        ("GET", f"{PATH}?limit=1", b""), ("GET", f"{PATH}?limit=1&resourceVersion=0", b""),
        ("POST", PATH, body("never", "x").replace(b"stead-proof", b"stead-probe")),
    )]  # fmt: skip
    answers = await asyncio.gather(*(_ask(*each) for each in asked), return_exceptions=True)
    failures = []
    for (_, method, path, _sent), answer in zip(asked, answers, strict=True):
        if isinstance(answer, BaseException):
            failures.append(f"without a majority, {method} {path} got no answer: {answer!r}")
        elif "resourceVersion=0" in path:
            failures += [] if answer[0] == 200 else [f"without a majority, a read of any state: {answer}"]
        elif answer[0] not in (503, 504) or answer[1].get("kind") != "Status":
            failures.append(f"without a majority, {method} {path}: {answer}")
    for member in dead:
        site.cluster.start(member)
    await site.cluster.wait_ready()
    slow = [each for each in await asyncio.gather(*map(site.probe, range(PLANES))) if each >= GIVE_UP_SECONDS]
    return failures + [f"{len(slow)} planes do not serve after the majority came back"] * bool(slow)
