"""The life cycle of machines with real guests, end to end: run strategies, restarts, pauses, reboots, endings.

One Stead serves the module; guests that do not need each other run at the same time. Each test names the rows of
KubeVirt's life-cycle table that it proves.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import signal
import time
from pathlib import Path

import pytest
from tests import image_server
from tests.agent_host import Console
from tests.stead_host import VM, VMI, SteadHost, condition, has, phase, printables, ticks, uid

from stead.client.contract import Object, Selection
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.kube.meta import parse_time

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]


async def type_in(console: Console, line: str) -> None:
    """Type a line into the guest's shell, without waiting for what it answers."""
    await console.ws.send_bytes(f"\n{line}\n".encode())


async def refusal(call: object) -> ApiError:
    """What an awaited call is refused with."""
    with pytest.raises(ApiError) as caught:
        await call  # type: ignore[misc]  # any awaitable
    return caught.value


def boots(console: Console) -> int:
    return console.text.count("stead-guest: ready")


async def test_always_restarts_reboots_pauses_and_revisions(stead: SteadHost) -> None:
    """Always, phases, VM and VMI conditions, pause/unpause, soft reboot, reset, RestartRequired, ControllerRevisions,
    restart, force restart; the address is kept throughout.
    """
    async with stead.following(VM, "web") as seen:
        vm = await stead.vm("web")
        console = await stead.booted("web")
        vmi = await stead.wait_machine("web", "agent")
        await stead.printable("web", "Running")
        assert printables(seen)[-2:] == ["Starting", "Running"]
    first, pid, address = uid(vmi), await stead.qemu_pid("web"), vmi["status"]["interfaces"][0]["ipAddress"]

    stamps = vmi["status"]["phaseTransitionTimestamps"]
    assert [stamp["phase"] for stamp in stamps] == ["Pending", "Scheduling", "Scheduled", "Running"]
    times = [stamp["phaseTransitionTimestamp"] for stamp in stamps]
    assert times == sorted(times)
    await stead.until_vm("web", lambda v: has(v, "Ready") and has(v, "AgentConnected"))

    # one start revision, which the instance names
    revision = vmi["status"]["virtualMachineRevisionName"]
    generation = vmi["metadata"]["annotations"]["kubevirt.io/vm-generation"]
    assert revision == f"revision-start-vm-{uid(vm)}-{generation}"

    # pause: the guest's clock stands
    await stead.call("web", "pause")
    paused = await stead.until_vmi("web", lambda v: has(v, "Paused"))
    assert condition(paused, "Paused")["reason"] == "PausedByUser"  # type: ignore[index]  # asserted by the wait
    assert condition(paused, "Paused")["lastTransitionTime"]  # type: ignore[index]  # as above
    await stead.printable("web", "Paused")
    await asyncio.sleep(1)
    length = len(console.text)
    await asyncio.sleep(3)
    assert ticks(console.text[length:]) == []
    await stead.call("web", "unpause")
    await stead.printable("web", "Running")
    await console.until("tick", 30, start=length)
    assert (await refusal(stead.call("web", "unpause"))).code == 409

    # soft reboot and reset: another boot of the same process and instance
    for verb in ("softreboot", "reset"):
        before = boots(console)
        length = len(console.text)
        await stead.call("web", verb)
        await console.until("stead-guest: address", start=length)
        assert boots(console) == before + 1
        vmi = await stead.wait_machine("web", "agent")
        assert (uid(vmi), await stead.qemu_pid("web")) == (first, pid)

    # a change of the template needs a restart; taking it back clears that; a restart does, too
    template = {"spec": {"template": {"spec": {"hostname": "other"}}}}
    await stead.patch_vm("web", template)
    vm = await stead.until_vm("web", lambda v: has(v, "RestartRequired"))
    message = condition(vm, "RestartRequired")["message"]  # type: ignore[index]  # asserted by the wait
    assert message == "a non-live-updatable field was changed in the template spec"
    await stead.patch_vm("web", {"spec": {"template": {"spec": {"hostname": None}}}})
    await stead.until_vm("web", lambda v: not has(v, "RestartRequired"))
    await stead.patch_vm("web", template)
    await stead.until_vm("web", lambda v: has(v, "RestartRequired"))
    await stead.call("web", "restart")
    vmi = await stead.until_vmi("web", lambda v: uid(v) != first and phase(v) == "Running")
    assert await stead.qemu_pid("web") != pid
    assert "stead-guest: poweroff" in console.text, "the guest was not asked to shut down"
    console = await stead.booted("web")
    vm = await stead.until_vm("web", lambda v: not has(v, "RestartRequired"))
    assert vmi["status"]["interfaces"][0]["ipAddress"] == address
    generation = str(vm["metadata"]["generation"])
    assert vmi["metadata"]["annotations"]["kubevirt.io/vm-generation"] == generation
    revisions = (await stead.client.list(register.CONTROLLER_REVISION, Selection(stead.namespace))).items
    mine = [
        r["metadata"]["name"] for r in revisions if r["metadata"]["name"].startswith(f"revision-start-vm-{uid(vm)}")
    ]
    assert mine == [f"revision-start-vm-{uid(vm)}-{generation}"]

    # powered off inside: a new instance at once
    second = uid(vmi)
    async with stead.following(VMI, "web") as instances:
        await type_in(console, "poweroff -f")
        vmi = await stead.until_vmi("web", lambda v: uid(v) != second and phase(v) == "Running")
    assert {phase(v) for v in instances if uid(v) == second} >= {"Succeeded"}
    third = uid(vmi)

    # pulled and plugged in again: the guest is not asked
    begun = time.monotonic()
    await stead.call("web", "restart", {"gracePeriodSeconds": 0})
    await stead.until_vmi("web", lambda v: uid(v) != third)
    assert time.monotonic() - begun < 10, "a forced restart waited"
    await stead.wait_machine("web", "running")

    # deletion leaves nothing
    await stead.booted("web")
    await stead.delete("web")
    assert stead.domain("web") not in await stead.domains()


async def test_machines_that_are_not_started(stead: SteadHost) -> None:
    """Halted, WaitAsReceiver, running vs runStrategy."""
    await stead.gates("RebootPolicy", "DecentralizedLiveMigration")
    await stead.vm("halted", run="Halted")
    await stead.vm("receiver", run="WaitAsReceiver")
    await stead.printable("halted", "Stopped")
    await stead.printable("receiver", "WaitingForReceiver")
    assert await stead.vmi("halted") is None
    assert await stead.domains() == set()

    both = stead.machine_of("both")
    both["spec"]["running"] = True
    error = await refusal(stead.create(VM, both))
    assert error.code == 422
    assert "Running and RunStrategy are mutually exclusive" in error.message

    old = stead.machine_of("old")
    del old["spec"]["runStrategy"]
    await stead.create(VM, {**old, "spec": {**old["spec"], "running": False}})
    await stead.printable("old", "Stopped")
    await stead.call("old", "start")
    await stead.printable("old", "Starting", "Running")
    vm = await stead.get(VM, "old")
    assert vm is not None
    assert vm["spec"].get("running") is True
    assert "runStrategy" not in vm["spec"]
    for name in ("halted", "receiver", "old"):
        await stead.delete(name)


async def test_manual_rerun_and_once(stead: SteadHost) -> None:
    """Manual, RerunOnFailure, Once, startStrategy Paused, Ready=False with GuestNotRunning on a crash."""
    await asyncio.gather(_manual(stead), _rerun_then_once(stead))


async def _manual(stead: SteadHost) -> None:
    await stead.vm("manual", run="Manual")
    await stead.printable("manual", "Stopped")
    await stead.call("manual", "start", {"paused": True})
    await stead.printable("manual", "Paused")
    console = await stead.console("manual")
    await asyncio.sleep(2)
    assert console.text == "", "a paused guest has run"
    await stead.call("manual", "unpause")
    await console.until("stead-guest: hostname")
    first = uid(await stead.wait_machine("manual", "running"))
    assert (await refusal(stead.call("manual", "start"))).code == 409
    await type_in(console, "poweroff -f")
    await stead.printable("manual", "Stopped")
    await asyncio.sleep(3)
    ended = await stead.vmi("manual")
    assert ended is not None
    assert (uid(ended), phase(ended)) == (first, "Succeeded")
    await stead.call("manual", "start")
    await stead.until_vmi("manual", lambda v: uid(v) != first and phase(v) == "Running")
    await stead.booted("manual")
    await stead.call("manual", "stop")
    await stead.printable("manual", "Stopped")
    assert (await refusal(stead.call("manual", "stop"))).code == 409
    await stead.delete("manual")


async def _rerun_then_once(stead: SteadHost) -> None:
    await stead.vm("rerun", run="RerunOnFailure")
    vmi = await stead.wait_machine("rerun", "running")
    first = uid(vmi)
    async with stead.following(VM, "rerun") as seen:
        os.kill(await stead.qemu_pid("rerun"), signal.SIGKILL)
        await stead.until_vmi("rerun", lambda v: uid(v) != first and phase(v) == "Running")
        await stead.printable("rerun", "Running")
    reasons = {(condition(v, "Ready") or {}).get("reason") for v in seen}
    assert "GuestNotRunning" in reasons
    console = await stead.booted("rerun")
    await type_in(console, "poweroff -f")
    await stead.printable("rerun", "Stopped")
    await stead.delete("rerun")

    await stead.vm("once", run="Once")
    console = await stead.booted("once")
    assert (await refusal(stead.call("once", "start"))).code == 409
    await type_in(console, "poweroff -f")
    vmi = await stead.until_vmi("once", lambda v: phase(v) == "Succeeded")
    await stead.printable("once", "Stopped")
    error = await refusal(stead.call("once", "start"))
    assert (error.code, "Once does not support manual start requests" in error.message) == (409, True)
    await asyncio.sleep(2)
    still = await stead.vmi("once")
    assert still is not None
    assert uid(still) == uid(vmi)
    await stead.delete("once")


async def test_crash_loop_and_why_a_machine_does_not_run(stead: SteadHost) -> None:
    """Crash-loop back-off; each printableStatus that tells a trouble, with its reason."""
    assert stead.registry is not None
    broken = image_server.layer({"disk/d.raw": bytes(1 << 20), "boot/vmlinuz": b"no kernel", "boot/initrd": b"-"})
    stead.registry.push("broken", "1", [broken])
    image = f"{stead.registry.host}/broken:1"
    kernel = {"image": image, "kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initrd"}
    firmware = {"kernelBoot": {"container": kernel}}
    memory = {"memory": {"guest": "64Mi"}}
    await stead.vm("looping", domain={**memory, "firmware": firmware})
    begun = time.monotonic()

    def claim(name: str) -> list[Object]:
        return [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]

    await stead.vm("noclaim", volumes=claim("absent"))
    await stead.vm("noimage", volumes=[{"name": "d", "containerDisk": {"image": f"{stead.registry.host}/none:1"}}])
    await stead.vm("nowhere", nodeSelector={"rack": "nine"})
    await stead.create(
        register.PERSISTENT_VOLUME_CLAIM,
        {
            "metadata": {"name": "unbound"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "nobody-serves-it",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        },
    )
    await stead.vm("waiting", volumes=claim("unbound"))
    template = {
        "metadata": {"name": "unsourced"},
        "spec": {
            "sourceRef": {"kind": "DataSource", "name": "absent", "namespace": "default"},
            "storage": {"resources": {"requests": {"storage": "1Gi"}}},
        },
    }
    volume: list[Object] = [{"name": "data", "dataVolume": {"name": "unsourced"}}]
    await stead.vm("unsourced", volumes=volume, vm={"dataVolumeTemplates": [template]})

    vm = await stead.printable("noclaim", "ErrorPvcNotFound")
    assert "absent" in condition(vm, "Synchronized")["message"]  # type: ignore[index]  # part of the state
    await stead.printable("nowhere", "ErrorUnschedulable")
    await stead.printable("waiting", "WaitingForVolumeBinding")
    vm = await stead.printable("unsourced", "Provisioning")
    assert any("absent" in str(c.get("message")) for c in vm["status"]["conditions"]), "nothing names the DataSource"
    await stead.printable("noimage", "ErrImagePull", "ImagePullBackOff")
    vm = await stead.printable("noimage", "ImagePullBackOff")
    assert "none:1" in condition(vm, "Synchronized")["message"]  # type: ignore[index]  # as above
    for name in ("noclaim", "noimage", "nowhere", "waiting", "unsourced"):
        await stead.delete(name)

    # start failures: each is counted, and the next waits longer: 10·n² s and some jitter
    for count in (1, 2, 3):
        vm = await stead.until_vm("looping", lambda v, n=count: _failures(v) >= n, 150)  # type: ignore[misc]
        assert _failures(vm) >= count
        later = parse_time(vm["status"]["startFailure"]["retryAfterTimestamp"])
        left = (later - datetime.datetime.now(datetime.UTC)).total_seconds()
        low = 10 * _failures(vm) ** 2
        assert left <= low + 5 * _failures(vm)
        if _failures(vm) == 3:
            assert left > low - 10
    await stead.printable("looping", "CrashLoopBackOff")
    assert time.monotonic() - begun >= 10 + 40, "the third try came before its time"
    assert stead.domain("looping") not in await stead.domains() or await stead.qemu_pid("looping") == 0
    assert any("could not be started" in str(e.get("message")) or "start failed" in str(e.get("message"))
               for e in await stead.events("looping"))  # fmt: skip
    await stead.delete("looping")


def _failures(vm: Object) -> int:
    return int((vm.get("status", {}).get("startFailure") or {}).get("consecutiveFailCount") or 0)


async def test_endings(stead: SteadHost) -> None:
    """Graceful shutdown, deletion with a hung QEMU, orphan delete, rebootPolicy Terminate."""
    await stead.gates("RebootPolicy", "DecentralizedLiveMigration")
    await asyncio.gather(_deaf_and_hung(stead), _orphan_and_terminate(stead))


async def _deaf_and_hung(stead: SteadHost) -> None:
    # a guest that does not hear the power button is stopped when its time is over, not before
    await stead.vm("deaf", terminationGracePeriodSeconds=6)
    console = await stead.booted("deaf")
    await console.shell("killall acpid; killall qemu-ga")
    pid = await stead.qemu_pid("deaf")
    begun = time.monotonic()
    await stead.call("deaf", "stop")
    await asyncio.sleep(4.5)
    assert Path(f"/proc/{pid}").exists(), "stopped before its grace period was over"
    await stead.printable("deaf", "Stopped")
    assert 6 <= time.monotonic() - begun < 12

    # a process that does not react does not hold up its deletion
    await stead.call("deaf", "start")
    await stead.wait_machine("deaf", "running")
    pid = await stead.qemu_pid("deaf")
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    await stead.delete("deaf")
    assert time.monotonic() - begun < 6 + 5 + 2
    assert not Path(f"/proc/{pid}").exists()

    # one that listens goes early, and has succeeded
    await stead.vm("polite", terminationGracePeriodSeconds=120)
    console = await stead.booted("polite")
    begun = time.monotonic()
    async with stead.following(VMI, "polite") as seen:
        async with stead.following(VM, "polite") as machines:
            await stead.delete("polite")
    assert time.monotonic() - begun < 60
    assert "stead-guest: poweroff" in console.text
    assert phase(seen[-1]) == "Succeeded"
    assert "Terminating" in printables(machines)


async def _orphan_and_terminate(stead: SteadHost) -> None:
    # an orphaned instance goes on
    await stead.vm("parent")
    await stead.booted("parent")
    pid = await stead.qemu_pid("parent")
    assert pid
    await stead.client.delete(VM, stead.namespace, "parent", propagation="Orphan")

    async def vm_is_gone() -> bool:
        return await stead.get(VM, "parent") is None

    await stead.until(vm_is_gone, "the machine is gone")
    vmi = await stead.until_vmi("parent", lambda v: not v["metadata"].get("ownerReferences"))
    await asyncio.sleep(3)
    assert phase(vmi) == "Running"
    assert await stead.qemu_pid("parent") == pid
    await stead.delete("parent", resource=VMI)
    assert await stead.qemu_pid("parent") == 0

    # a guest's own reboot ends the run
    domain = {**stead.machine_of("x")["spec"]["template"]["spec"]["domain"], "rebootPolicy": "Terminate"}
    await stead.vm("terminate", domain=domain)
    console = await stead.booted("terminate")
    vmi = await stead.wait_machine("terminate", "running")
    await type_in(console, "reboot -f")
    await stead.until_vmi("terminate", lambda v: uid(v) != uid(vmi) and phase(v) == "Running")
    assert boots(console) == 1
    await stead.delete("terminate")


async def test_out_of_band_changes_are_told_and_follow_the_run_strategy(stead: SteadHost) -> None:
    """`virsh shutdown`, `destroy` and `start` on a machine of ours."""
    await stead.vm("taken")
    await stead.booted("taken")
    first = uid(await stead.wait_machine("taken", "running"))
    assert "running" in await stead.host.virsh("domstate", stead.domain("taken"))
    assert stead.domain("taken") in await stead.host.virsh("dominfo", stead.domain("taken"))
    await stead.host.virsh("shutdown", stead.domain("taken"))
    second = await stead.until_vmi("taken", lambda v: uid(v) != first and phase(v) == "Running")
    await stead.host.virsh("destroy", stead.domain("taken"))
    third = await stead.until_vmi("taken", lambda v: uid(v) not in (first, uid(second)) and phase(v) == "Running")
    messages = [str(event.get("message")) for event in await stead.events("taken")]
    assert any("destroyed at the hypervisor" in message for message in messages), messages

    # Manual: what was shut down there stays down; what is started there is not a run that anybody asked for
    await stead.patch_vm("taken", {"spec": {"runStrategy": "Manual"}})
    await stead.until_vm("taken", lambda v: v["status"].get("runStrategy") == "Manual")
    await stead.host.virsh("destroy", stead.domain("taken"))
    await stead.printable("taken", "Stopped")
    with contextlib.suppress(AssertionError):  # the agent may stop it before virsh is done
        await stead.host.virsh("start", stead.domain("taken"))

    async def told() -> bool:
        return "StartedOutOfBand" in await stead.reasons("taken") and await stead.qemu_pid("taken") == 0

    await stead.until(told, "the start at the hypervisor is told and undone", 30)
    still = await stead.vmi("taken")
    assert still is not None
    assert uid(still) == uid(third)
    await stead.delete("taken")
    assert await stead.domains() == set()
