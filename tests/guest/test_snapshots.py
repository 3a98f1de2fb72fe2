"""Snapshots, restores and clones of real machines: what the guest wrote, at one moment, and nothing lost by a kill.

The pool lies on XFS over a loop device, where copies share blocks.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import gzip
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tests.stead_host import SteadHost, has, stead_host

from stead.client.contract import Object
from stead.kinds import register
from stead.storage.pools import Pool

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]

SNAPSHOT, RESTORE, CLONE = register.MACHINE_SNAPSHOT, register.MACHINE_RESTORE, register.MACHINE_CLONE
EXPORT = register.MACHINE_EXPORT
#: writes a rising number to the first sector of both data disks, one after the other
WRITER = (
    "touch /run/quiet; ( n=1; while [ ! -e /run/still ]; do for d in vdb vdc; do "
    "printf '%-511d\\n' $n | dd of=/dev/$d bs=512 oflag=direct conv=notrunc 2>/dev/null; done; n=$((n+1)); done ) & :"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SteadHost]:
    async with stead_host(tmp_path_factory.mktemp("snapshots"), xfs_pool_bytes=1 << 30) as stead:
        yield stead


def pool(stead: SteadHost) -> Pool:
    """The pool, through the agent's eyes: it is mounted in the host's namespace only."""
    return Pool(Path(f"/proc/{stead.pid('agent')}/root{stead.settings.all_pools[0].path}"))


async def number(stead: SteadHost, claim: str, kind: Any = register.PERSISTENT_VOLUME_CLAIM) -> int:
    """The number in the first sector of the disk of a claim or snapshot, as the host's file has it."""
    found = await stead.get(kind, claim)
    assert found is not None, claim
    path = pool(stead).get(found["metadata"]["uid"]).path
    head = await asyncio.to_thread(lambda: path.open("rb").read(512))
    return int(head.strip(b"\0 \n") or 0)


def data_volume(name: str) -> Object:
    return {
        "metadata": {"name": name},
        "spec": {"source": {"blank": {}}, "storage": {"resources": {"requests": {"storage": "16Mi"}}}},
    }


async def machine(stead: SteadHost, name: str, run: str = "Always") -> None:
    disks = [f"{name}-a", f"{name}-b"]
    await stead.vm(
        name,
        run=run,
        volumes=[{"name": n[-1], "dataVolume": {"name": n}} for n in disks],
        vm={"dataVolumeTemplates": [data_volume(n) for n in disks]},
    )


async def snapshot(stead: SteadHost, name: str, source: str, **spec: Any) -> Object:
    reference = {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": source}
    await stead.create(SNAPSHOT, {"metadata": {"name": name}, "spec": {"source": reference, **spec}})
    return await done(stead, name)


async def done(stead: SteadHost, name: str) -> Object:
    async def ended() -> Object | None:
        found = await stead.get(SNAPSHOT, name)
        return found if found and (found.get("status") or {}).get("phase") in ("Succeeded", "Failed") else None

    found: Object = await stead.until(ended, f"snapshot {name} is done", 60)
    return found


async def restored(stead: SteadHost, name: str, target: str, source: str, **spec: Any) -> Object:
    reference = {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": target}
    wanted = {"target": reference, "virtualMachineSnapshotName": source, **spec}
    await stead.create(RESTORE, {"metadata": {"name": name}, "spec": wanted})

    async def ended() -> Object | None:
        found = await stead.get(RESTORE, name)
        status = (found or {}).get("status") or {}
        return found if status.get("complete") or (found and has(found, "Failure")) else None

    found: Object = await stead.until(ended, f"restore {name} is done", 90)
    return found


async def numbers_kept(stead: SteadHost, taken: Object) -> list[int]:
    uid = taken["metadata"]["uid"]
    return [await number(stead, f"vmsnapshot-{uid}-volume-{v}", register.VOLUME_SNAPSHOT) for v in "ab"]


async def test_a_running_machine_is_kept_at_one_moment_and_restored(site: SteadHost) -> None:
    await machine(site, "web")
    console = await site.booted("web")
    await site.wait_machine("web", "agent")
    await console.shell(WRITER)
    await site.until(functools.partial(_beyond, site, "web-b", 0), "the guest writes")

    taken = await snapshot(site, "first", "web")
    status = taken["status"]
    assert status["phase"] == "Succeeded", status
    assert (status["readyToUse"], set(status["indications"])) == (True, {"Online", "GuestAgent"})
    assert set(status["snapshotVolumes"]["includedVolumes"]) == {"a", "b"}
    assert status["snapshotVolumes"]["excludedVolumes"] == ["root"]
    a, b = await numbers_kept(site, taken)
    assert a > 0
    assert b in (a, a - 1), "the disks are of two moments"
    # the control: looked at one after the other, the disks of a guest that writes are not
    early = await number(site, "web-a")
    await site.until(functools.partial(_beyond, site, "web-b", early + 1), "the disks are seen at two moments")

    vmi = await site.vmi("web")
    assert vmi is not None
    assert not has(vmi, "Paused")
    vm = await site.get(register.VIRTUAL_MACHINE, "web")
    assert vm is not None
    assert "snapshotInProgress" not in vm["status"]

    failed = await restored(site, "at-once", "web", "first", targetReadinessPolicy="FailImmediate")
    assert has(failed, "Failure")
    back = await restored(site, "back", "web", "first", targetReadinessPolicy="StopTarget")
    assert back["status"]["complete"], back["status"]
    names = {r["volumeName"]: r["persistentVolumeClaim"] for r in back["status"]["restores"]}
    assert names["a"] == f"restore-{back['metadata']['uid']}-a"
    assert set(back["status"]["deletedDataVolumes"]) == {"web-a", "web-b"}
    assert [await number(site, names[v]) for v in "ab"] == [a, b]
    # the restored machine runs again, on what was there
    console = await site.booted("web")
    text = await console.shell("touch /run/quiet; echo value=$(head -c 511 /dev/vdb | tr -d ' ').")
    assert f"value={a}." in text
    await site.call("web", "stop")
    await site.wait_machine("web", "stopped")

    await _cloned(site)
    await _exported(site, a)

    await site.delete("web")
    assert (await site.get(SNAPSHOT, "first") or {})["status"]["readyToUse"]
    again = await restored(site, "again", "reborn", "first", volumeRestorePolicy="PrefixTargetName")
    assert again["status"]["complete"], again["status"]
    assert [await number(site, f"reborn-{v}") for v in "ab"] == [a, b]
    await site.delete("reborn")
    await site.delete("first", resource=SNAPSHOT)
    await site.until(lambda: _is_clear(site), "no data of the snapshot is left", 30)


async def _is_clear(site: SteadHost) -> bool:
    return not [v for v in await asyncio.to_thread(pool(site).volumes) if v.snapshot]


async def _cloned(site: SteadHost) -> None:
    """A clone has the disks of the snapshot, and identities of its own."""
    source = {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "web"}
    target = {**source, "name": "twin"}
    spec = {"source": source, "target": target, "volumeNamePolicy": "PrefixTargetName", "newSMBiosSerial": "S-1"}
    await site.create(CLONE, {"metadata": {"name": "twins"}, "spec": spec})

    async def ended() -> Object | None:
        found = await site.get(CLONE, "twins")
        return found if found and (found.get("status") or {}).get("phase") in ("Succeeded", "Failed") else None

    clone = await site.until(ended, "the clone is made", 60)
    assert clone["status"]["phase"] == "Succeeded", clone["status"]
    assert clone["status"]["targetName"] == "twin"
    web, twin = await site.get(register.VIRTUAL_MACHINE, "web"), await site.get(register.VIRTUAL_MACHINE, "twin")
    assert web is not None
    assert twin is not None
    ours, theirs = (m["spec"]["template"]["spec"]["domain"]["firmware"] for m in (web, twin))
    assert ours["uuid"] != theirs["uuid"]
    assert theirs["serial"] == "S-1"
    assert await number(site, "twin-a") == await number(site, await claim_of(site, "web", "a"))
    await site.until(lambda: _no_helpers(site), "the helpers of the clone are gone", 30)
    await site.delete("twin")


async def _no_helpers(site: SteadHost) -> bool:
    found = (await site.client.list(SNAPSHOT)).items + (await site.client.list(RESTORE)).items
    return not [o for o in found if o["metadata"]["name"].startswith("tmp-")]


async def claim_of(site: SteadHost, name: str, volume: str) -> str:
    vm = await site.get(register.VIRTUAL_MACHINE, name)
    assert vm is not None
    found = next(v for v in vm["spec"]["template"]["spec"]["volumes"] if v["name"] == volume)
    return str(found["dataVolume"]["name"])


async def _exported(site: SteadHost, wanted: int) -> None:
    """A snapshot's disk is downloaded, raw and packed, by those who have the token only."""
    source = {"apiGroup": "snapshot.kubevirt.io", "kind": "VirtualMachineSnapshot", "name": "first"}
    await site.create(EXPORT, {"metadata": {"name": "out"}, "spec": {"source": source}})

    async def ready() -> Object | None:
        found = await site.get(EXPORT, "out")
        return found if found and (found.get("status") or {}).get("phase") == "Ready" else None

    export = await site.until(ready, "the export is ready", 30)
    secret = await site.get(register.SECRET, export["status"]["tokenSecretRef"])
    assert secret is not None
    token = base64.b64decode(secret["data"]["token"]).decode()
    link = export["status"]["links"]["external"]
    formats = {f["format"]: f["url"] for v in link["volumes"] if v["name"] == "web-a" for f in v["formats"]}
    trust = ssl.create_default_context(cadata=link["cert"])
    async with aiohttp.ClientSession() as session:

        async def fetch(url: str, token: str) -> tuple[int, bytes]:
            headers = {"x-kubevirt-export-token": token, "Accept-Encoding": "identity"}
            async with session.get(url, headers=headers, ssl=trust) as answer:
                return answer.status, await answer.read()

        assert (await fetch(formats["raw"], "x" * 20))[0] == 401
        code, raw = await fetch(formats["raw"], token)
        assert (code, len(raw), int(raw[:512].strip(b"\0 \n"))) == (200, 16 << 20, wanted)
        assert gzip.decompress((await fetch(formats["gzip"], token))[1]) == raw
        manifests = {m["type"]: m["url"] for m in link["manifests"]}
        code, text = await fetch(manifests["all"], token)
        assert (code, b"kind: VirtualMachine" in text, b"secretExtraHeaders" in text) == (200, True, True)
        assert token.encode() in (await fetch(manifests["auth-header-secret"], token))[1]
    await site.delete("out", resource=EXPORT)
    assert "GuestAgent" in await site.stead("snapshot", "list", "web")
    target = site.host.root / "exported"
    told = await site.stead("export", "first", "--from-snapshot", "--format", "raw", "--to", str(target))
    assert str(target / "web-a.img") in told
    assert (target / "web-a.img").read_bytes() == raw
    assert b"kind: VirtualMachine" in (target / "machine.yaml").read_bytes()


async def test_a_killed_agent_loses_nothing_and_leaves_no_guest_still(site: SteadHost, tmp_path: Path) -> None:
    """The agent kills itself at a step of the snapshot, once for each; the next one finishes."""
    await machine(site, "kill")
    console = await site.booted("kill")
    await site.wait_machine("kill", "agent")
    await console.shell(WRITER)
    for step in ("take", "go-on", "tell"):
        (tmp_path / step).mkdir()
        await _alter(site, step, tmp_path / step)
        await site.wait_machine("kill", "agent")
        taken = await snapshot(site, f"kill-{step}", "kill")
        assert taken["status"]["phase"] == "Succeeded", taken["status"]
        assert (tmp_path / step / "killed").exists(), f"the control: nobody was killed at {step}"
        a, b = await numbers_kept(site, taken)
        assert b in (a, a - 1), step
        before = await number(site, "kill-a")
        await site.until(functools.partial(_beyond, site, "kill-a", before), f"the guest writes again after {step}", 90)
        vmi = await site.until_vmi("kill", lambda v: not has(v, "Paused"), 30)
        assert not vmi["status"].get("fsFreezeStatus")
        assert not await asyncio.to_thread(pool(site).partials)
        await site.delete(f"kill-{step}", resource=SNAPSHOT)
    await site.delete("kill")


async def _beyond(site: SteadHost, claim: str, before: int) -> bool:
    """Whether the guest has written more than that."""
    return await number(site, claim) > before


async def _alter(site: SteadHost, step: str, folder: Path) -> None:
    """Start an agent that kills itself once at that step."""
    where = {
        "take": ("stead.storage.instant", "Instant", "take"),
        "go-on": ("stead.agent.instants", "Instants", "_go_on"),
        "tell": ("stead.agent.snapshots", "Snapshots", "_tell"),
    }[step]
    (folder / "sitecustomize.py").write_text(KILLER % (*where, folder / "killed"))
    for parent in (folder, *folder.parents):
        with contextlib.suppress(PermissionError):
            parent.chmod(parent.stat().st_mode | 0o055)
    site.altered_by = folder
    await site.down()
    await site.up()
    site.altered_by = None


KILLER = """
import os, signal, sys, threading, time

MODULE, KIND, METHOD, MARK = "%s", "%s", "%s", "%s"

def alter():
    while not hasattr(sys.modules.get(MODULE), KIND):
        time.sleep(0.02)
    kind = getattr(sys.modules[MODULE], KIND)
    real = getattr(kind, METHOD)

    def deadly(*given, **named):
        if not os.path.exists(MARK):
            open(MARK, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    setattr(kind, METHOD, deadly)

if b"agent" in open("/proc/self/cmdline", "rb").read().split(b"\\0"):
    threading.Thread(target=alter, daemon=True).start()
"""
