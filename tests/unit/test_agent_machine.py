"""Life of machines under the agent, against a hypervisor that keeps its machines in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.agent_stand_ins import StandInHypervisor, StandInMaterials, StandInNetworks
from tests.fake_client import FakeClient

from stead.agent.agent import Agent, AgentDeps
from stead.agent.workshop import AgentSettings
from stead.client.contract import Object
from stead.hypervisor.contract import DriverEvent, Failed, State, StopReason, Unsupported
from stead.kinds import register
from stead.kube.errors import ApiError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the agent gives files to machines' uids, which takes root")

VMI = register.VIRTUAL_MACHINE_INSTANCE
UID_BASE = 700_000
ADDRESS = {"ipv4": "10.128.0.5", "mac": "02:00:00:00:00:09"}


class World:
    """One agent with everything around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = FakeClient()
        self.hypervisor = StandInHypervisor()
        self.networks = StandInNetworks()
        (folder / "pool").mkdir()
        self.materials = StandInMaterials(folder / "pool")
        self.agent = self.new_agent()

    def new_agent(self) -> Agent:
        folder = self.folder
        settings = AgentSettings(
            instance="test", host_name="h1", machines_dir=folder / "machines", run_dir=folder / "run",
            state_dir=folder / "state", agent_port=0, uid_base=UID_BASE, host_disk_roots=(folder / "host",),
            pool_labels={"default": "p1"},
        )  # fmt: skip
        return Agent(
            AgentDeps(
                client=self.client, hypervisor=self.hypervisor, materials=self.materials, settings=settings,
                pod_networks=self.networks,
            )
        )  # fmt: skip

    async def restart(self) -> None:
        await self.agent.close()
        self.agent = self.new_agent()
        await self.agent.open()

    async def create(self, name: str = "web", metadata: Object | None = None, **spec: Any) -> Object:
        devices = {
            "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
            "interfaces": [{"name": "default", "masquerade": {}}],
        }
        body: Object = {
            "domain": {"memory": {"guest": "64Mi"}, "devices": devices},
            "volumes": [{"name": "root", "containerDisk": {"image": "registry.test/tiny:1"}}],
            "networks": [{"name": "default", "pod": {}}],
            "terminationGracePeriodSeconds": 1,
        }
        vmi: Object = {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {
                "name": name, "namespace": "ns", "labels": {"kubevirt.io/nodeName": "h1"},
                "finalizers": ["kubevirt.io/foregroundDeleteVirtualMachine"],
                "annotations": {"stead.io/addresses": json.dumps({"default": ADDRESS})},
                **(metadata or {}),
            },
            "spec": body | spec,
            "status": {"phase": "Scheduled", "nodeName": "h1"},
        }  # fmt: skip
        return await self.client.create(VMI, vmi)

    async def get(self, name: str = "web") -> Object:
        return await self.client.get(VMI, "ns", name)

    async def until(self, wanted: Callable[[Object], bool], name: str = "web") -> Object:
        async with asyncio.timeout(15):
            while True:
                vmi = await self.get(name)
                if wanted(vmi):
                    return vmi
                await asyncio.sleep(0.02)

    async def running(self, name: str = "web") -> Object:
        return await self.until(lambda v: v["status"]["phase"] == "Running", name)

    async def gone(self, name: str = "web") -> None:
        async with asyncio.timeout(15):
            while True:
                with contextlib.suppress(ApiError):
                    await self.get(name)
                    await asyncio.sleep(0.02)
                    continue
                return

    async def call(self, verb: str, method: str = "put") -> tuple[int, Any]:
        url = f"http://127.0.0.1:{self.agent.port}/v1/namespaces/ns/machines/web/{verb}"
        async with aiohttp.ClientSession() as session, session.request(method, url) as answer:
            return answer.status, await answer.json(content_type=None)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.agent.open()
    yield world
    await world.agent.close()


def condition(vmi: Object, kind: str) -> Object | None:
    return next((c for c in vmi["status"].get("conditions") or [] if c["type"] == kind), None)


def is_paused(vmi: Object) -> bool:
    return condition(vmi, "Paused") is not None


async def test_a_scheduled_instance_runs_and_leaves_nothing_after_its_deletion(world: World) -> None:
    created = await world.create()
    vmi = await world.running()
    uid = created["metadata"]["uid"]
    machine = world.hypervisor.machines[uid]
    assert machine.isolation.uid == UID_BASE
    overlay = world.folder / "machines" / uid / "root.qcow2"
    assert overlay.stat().st_uid == UID_BASE
    assert stat.S_IMODE(overlay.stat().st_mode) == 0o600
    assert stat.S_IMODE((world.folder / "run" / "machines" / uid).stat().st_mode) == 0o700
    assert world.networks.settled == [uid]
    assert vmi["status"]["interfaces"][0]["ipAddress"] == "10.128.0.5"
    await world.client.delete(VMI, "ns", "web")
    await world.gone()
    assert not world.hypervisor.machines
    assert not world.networks.attached
    assert not list((world.folder / "machines").iterdir())
    assert not list((world.folder / "run" / "machines").iterdir())
    assert ("shutdown", uid) in world.hypervisor.calls
    world.client.assert_untouched()


async def test_a_deaf_guest_is_stopped_when_its_grace_is_over(world: World) -> None:
    world.hypervisor.obedient = False
    created = await world.create()
    await world.running()
    started = asyncio.get_running_loop().time()
    await world.client.delete(VMI, "ns", "web")
    await world.gone()
    assert 0.8 <= asyncio.get_running_loop().time() - started < 6
    assert ("stop", created["metadata"]["uid"]) in world.hypervisor.calls


async def test_a_shorter_grace_given_later_counts(world: World) -> None:
    world.hypervisor.obedient = False
    await world.create(terminationGracePeriodSeconds=300)
    await world.running()
    await world.client.delete(VMI, "ns", "web")
    await asyncio.sleep(0.2)
    patch = [{"op": "replace", "path": "/spec/terminationGracePeriodSeconds", "value": 0}]
    await world.client.patch(VMI, "ns", "web", patch)
    await world.gone()


@pytest.mark.parametrize(
    ("reason", "phase"),
    [(StopReason.SHUTDOWN, "Succeeded"), (StopReason.CRASHED, "Failed"), (StopReason.DESTROYED, "Failed")],
)
async def test_the_final_phase_follows_how_the_guest_ended(world: World, reason: StopReason, phase: str) -> None:
    created = await world.create()
    await world.running()
    world.hypervisor.change(created["metadata"]["uid"], state=State.OFF, reason=reason, pid=0)
    vmi = await world.until(lambda v: v["status"]["phase"] in ("Succeeded", "Failed"))
    assert vmi["status"]["phase"] == phase
    ready = condition(vmi, "Ready")
    assert ready is not None
    assert ready["reason"] == "GuestNotRunning"


async def test_an_agent_that_restarts_adopts_without_touching(world: World) -> None:
    created = await world.create()
    uid = created["metadata"]["uid"]
    before = await world.running()
    pid = world.hypervisor.seen[uid].pid
    writes = world.client.count_writes("virtualmachineinstances")
    await world.restart()
    async with asyncio.timeout(5):
        while uid not in world.agent.machines or not world.agent.machines[uid].alive:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    assert world.hypervisor.seen[uid].pid == pid
    assert world.hypervisor.starts == [uid]
    assert (await world.get())["status"] == before["status"]
    assert world.client.count_writes("virtualmachineinstances") == writes
    assert world.agent.machines[uid].address == "10.128.0.5"


async def test_a_guest_that_ended_while_nobody_looked_has_ended(world: World) -> None:
    created = await world.create()
    uid = created["metadata"]["uid"]
    await world.running()
    await world.agent.close()
    world.hypervisor.change(uid, state=State.OFF, reason=StopReason.SHUTDOWN, pid=0)
    world.agent = world.new_agent()
    await world.agent.open()
    await world.until(lambda v: v["status"]["phase"] == "Succeeded")
    assert world.hypervisor.starts == [uid]


async def test_a_lost_host_fails_its_machines_and_never_starts_them_again(world: World) -> None:
    created = await world.create()
    uid = created["metadata"]["uid"]
    await world.running()
    await world.agent.close()
    world.hypervisor.seen.clear()
    world.agent = world.new_agent()
    await world.agent.open()
    await world.until(lambda v: v["status"]["phase"] == "Failed")
    assert world.hypervisor.starts == [uid]


async def test_pause_and_unpause_by_call(world: World) -> None:
    await world.create()
    await world.running()
    assert (await world.call("pause"))[0] == 200
    vmi = await world.until(is_paused)
    paused = condition(vmi, "Paused")
    assert paused is not None
    assert paused["reason"] == "PausedByUser"
    status, body = await world.call("pause")
    assert (status, body["reason"], body["message"]) == (409, "Conflict", "VMI is already paused")
    assert (await world.call("unpause"))[0] == 200
    await world.until(lambda v: not is_paused(v))
    assert (await world.call("unpause"))[1]["message"] == "VMI is not paused"
    assert (await world.call("freeze"))[1]["message"] == "VMI does not have guest agent connected"
    assert (await world.call("reset"))[0] == 200
    assert (await world.call("softreboot"))[0] == 200


async def test_a_paused_start_waits_for_its_unpause(world: World) -> None:
    await world.create(startStrategy="Paused")
    await world.until(is_paused)
    assert (await world.call("unpause"))[0] == 200
    await world.until(lambda v: not is_paused(v) and v["status"]["phase"] == "Running")


async def test_a_full_disk_pauses_and_space_resumes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    room = False
    monkeypatch.setattr("stead.agent.watchkeeping._has_room", lambda machine: room)
    monkeypatch.setattr("stead.agent.watchkeeping.FIRST_INTERVAL", 0.1)
    created = await world.create()
    uid = created["metadata"]["uid"]
    await world.running()
    world.hypervisor.say(DriverEvent(uid=uid, kind="io-error", detail="root: enospc"))
    world.hypervisor.change(uid, state=State.PAUSED, reason=StopReason.IO_ERROR)
    vmi = await world.until(is_paused)
    paused = condition(vmi, "Paused")
    assert paused is not None
    assert paused["reason"] == "PausedIOError"
    room = True
    await world.until(lambda v: not is_paused(v))


async def test_what_is_not_supported_is_not_started_and_says_which_field(world: World) -> None:
    created = await world.create()
    uid = created["metadata"]["uid"]
    await world.running()
    other = await world.create(
        "other", domain={"memory": {"guest": "64Mi"}, "devices": {"gpus": [{"name": "g"}]}}, volumes=[], networks=[]
    )
    vmi = await world.until(lambda v: condition(v, "Synchronized") is not None, "other")
    synchronized = condition(vmi, "Synchronized")
    assert synchronized is not None
    assert (synchronized["status"], synchronized["reason"]) == ("False", "Unsupported")
    assert "spec.domain.devices.gpus" in synchronized["message"]
    assert vmi["status"]["phase"] == "Scheduled"
    assert world.hypervisor.starts == [uid]
    assert other["metadata"]["uid"] not in world.hypervisor.machines


async def test_a_host_disk_lies_below_a_folder_that_the_settings_name(world: World) -> None:
    disk = {"name": "root", "hostDisk": {"path": "/etc/shadow", "type": "Disk"}}
    await world.create(volumes=[disk])
    vmi = await world.until(lambda v: condition(v, "Synchronized") is not None)
    text = (condition(vmi, "Synchronized") or {})["message"]
    assert "/etc/shadow is not below a folder of the setting host_disk_roots" in text


async def test_a_drivers_refusal_names_the_field(world: World) -> None:
    world.hypervisor.define_error = Unsupported("no hugepages of that size", "memory.hugepage_size")
    await world.create()
    vmi = await world.until(lambda v: condition(v, "Synchronized") is not None)
    synchronized = condition(vmi, "Synchronized")
    assert synchronized is not None
    assert "spec.domain.memory.hugepages.pageSize" in synchronized["message"]
    assert not world.networks.attached


async def test_a_start_that_fails_ends_in_failed_with_the_reason(world: World) -> None:
    world.hypervisor.start_error = Failed("start of web: no such CPU")
    await world.create()
    vmi = await world.until(lambda v: v["status"]["phase"] == "Failed")
    ready = condition(vmi, "Ready")
    assert ready is not None
    assert "no such CPU" in ready["message"]


async def test_an_image_that_cannot_be_pulled_is_told_and_tried_again(world: World) -> None:
    world.materials.missing_images.add("registry.test/tiny:1")
    await world.create()
    vmi = await world.until(lambda v: condition(v, "Synchronized") is not None)
    synchronized = condition(vmi, "Synchronized")
    assert synchronized is not None
    assert synchronized["reason"] == "ErrImagePull"
    world.materials.missing_images.clear()
    machine = world.agent.machines[vmi["metadata"]["uid"]]
    machine.startup.held_until = 0.0  # the back-off is over
    machine.wake()
    await world.running()


async def test_deleting_during_a_pull_gives_up_at_once(world: World) -> None:
    world.materials.delay = 60.0
    await world.create()
    await asyncio.sleep(0.2)
    await world.client.delete(VMI, "ns", "web")
    await world.gone()
    assert world.hypervisor.starts == []
    assert not list((world.folder / "machines").iterdir())


async def test_losing_the_api_disturbs_no_guest(world: World) -> None:
    created = await world.create()
    uid = created["metadata"]["uid"]
    await world.running()
    world.client.fail = lambda verb, resource, name: ApiError("ServiceUnavailable", "the plane is away")
    world.hypervisor.change(uid, state=State.PAUSED, reason=StopReason.USER)
    await asyncio.sleep(0.3)
    assert world.hypervisor.seen[uid].state is State.PAUSED
    assert ("stop", uid) not in world.hypervisor.calls
    world.client.fail = None
    await world.until(is_paused)


async def test_losing_the_hypervisor_changes_no_status(world: World) -> None:
    created = await world.create()
    uid = created["metadata"]["uid"]
    before = await world.running()
    world.hypervisor.away = True
    world.hypervisor.say(DriverEvent(uid="", kind="lost"))
    await asyncio.sleep(0.3)
    assert (await world.get())["status"] == before["status"]
    world.hypervisor.away = False
    world.hypervisor.change(uid, state=State.PAUSED, reason=StopReason.USER)
    await world.until(is_paused)


async def test_a_machine_that_somebody_starts_after_its_end_is_stopped(world: World) -> None:
    created = await world.create()
    uid = created["metadata"]["uid"]
    await world.running()
    world.hypervisor.change(uid, state=State.OFF, reason=StopReason.SHUTDOWN, pid=0)
    await world.until(lambda v: v["status"]["phase"] == "Succeeded")
    world.hypervisor.change(uid, state=State.RUNNING, reason=StopReason.NONE, pid=4711)
    async with asyncio.timeout(5):
        while world.hypervisor.seen[uid].state is State.RUNNING:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    assert any(e["reason"] == "StartedOutOfBand" for e in world.client.of("events"))


async def test_a_change_of_the_definition_raises_a_condition(world: World) -> None:
    created = await world.create()
    await world.running()
    world.hypervisor.change(created["metadata"]["uid"], fingerprint="")
    vmi = await world.until(lambda v: (condition(v, "Synchronized") or {}).get("status") == "False")
    synchronized = condition(vmi, "Synchronized")
    assert synchronized is not None
    assert synchronized["reason"] == "ChangedOutOfBand"


async def test_left_overs_go_and_living_machines_stay(world: World) -> None:
    created = await world.create()
    await world.running()
    stranger = str(uuid.uuid4())
    await world.hypervisor.define(
        world.hypervisor.machines[created["metadata"]["uid"]].__class__(
            uid=stranger, namespace="ns", name="forgotten",
            cpu=world.hypervisor.machines[created["metadata"]["uid"]].cpu,
            memory=world.hypervisor.machines[created["metadata"]["uid"]].memory, run_dir="/nowhere",
        )
    )  # fmt: skip
    await world.hypervisor.start(stranger)
    (world.folder / "machines" / stranger).mkdir()
    await world.agent.clean()
    assert list(world.hypervisor.machines) == [created["metadata"]["uid"]]
    assert world.hypervisor.seen[created["metadata"]["uid"]].state is State.RUNNING
    assert not (world.folder / "machines" / stranger).exists()


async def test_an_unreachable_api_clears_nothing_away(world: World) -> None:
    created = await world.create()
    await world.running()
    await world.agent.close()
    world.agent = world.new_agent()
    world.agent.shop.capabilities = await world.hypervisor.capabilities()
    world.client.fail = lambda verb, resource, name: ApiError("ServiceUnavailable", "the plane is away")
    with pytest.raises(ApiError):
        await world.agent.clean()
    assert world.hypervisor.seen[created["metadata"]["uid"]].state is State.RUNNING
    world.client.fail = None


async def test_an_instance_whose_finalizer_was_removed_by_force_is_ended(world: World) -> None:
    await world.create()
    await world.running()
    await world.client.delete(VMI, "ns", "web")
    await world.client.patch(VMI, "ns", "web", {"metadata": {"finalizers": None}})
    async with asyncio.timeout(10):
        while world.hypervisor.machines or list((world.folder / "machines").iterdir()):
            await asyncio.sleep(0.02)


async def test_the_guest_agents_word_reaches_status_and_calls(world: World) -> None:
    world.hypervisor.agent_answers = {
        "guest-get-osinfo": {"id": "debian", "pretty-name": "Debian"},
        "guest-get-host-name": {"host-name": "web"},
        "guest-fsfreeze-status": "thawed",
        "guest-fsfreeze-freeze": 1,
        "guest-fsfreeze-thaw": 1,
    }
    created = await world.create()
    await world.running()
    world.hypervisor.change(created["metadata"]["uid"], agent_connected=True)
    vmi = await world.until(lambda v: (v["status"].get("guestOSInfo") or {}).get("id") == "debian")
    assert condition(vmi, "AgentConnected") is not None
    status, body = await world.call("guestosinfo", "get")
    assert (status, body["hostname"]) == (200, "web")
    assert (await world.call("freeze"))[0] == 200
    await world.until(lambda v: v["status"].get("fsFreezeStatus") == "frozen")
    assert (await world.call("unfreeze"))[0] == 200
    await world.until(lambda v: "fsFreezeStatus" not in v["status"])


async def test_a_liveness_probe_that_fails_ends_the_run(world: World) -> None:
    probe = {"guestAgentPing": {}, "periodSeconds": 1, "failureThreshold": 1}
    await world.create(livenessProbe=probe)
    vmi = await world.until(lambda v: v["status"]["phase"] == "Failed")
    ready = condition(vmi, "Ready")
    assert ready is not None
    assert "liveness" in ready["message"]


async def test_a_readiness_probe_decides_ready(world: World) -> None:
    await world.create(readinessProbe={"guestAgentPing": {}, "periodSeconds": 1})
    vmi = await world.running()
    assert (condition(vmi, "Ready") or {})["status"] == "False"
    world.hypervisor.agent_answers["guest-ping"] = {}
    await world.until(lambda v: (condition(v, "Ready") or {})["status"] == "True")


async def test_the_host_is_reported_with_capacity_labels_and_a_lease(world: World) -> None:
    async with asyncio.timeout(10):
        while not world.client.of("leases"):
            await asyncio.sleep(0.02)
    node = await world.client.get(register.NODE, None, "h1")
    labels = node["metadata"]["labels"]
    assert labels["kubevirt.io/schedulable"] == "true"
    assert labels["pool.stead.io/default"] == "p1"
    assert "stead.io/capabilities" in node["metadata"]["annotations"]
    assert {c["type"]: c["status"] for c in node["status"]["conditions"]}["Ready"] == "True"
    assert node["status"]["capacity"]["devices.kubevirt.io/kvm"] == "1000"
    writes = world.client.count_writes("nodes", "nodes/status")
    await world.agent.host.report()
    assert world.client.count_writes("nodes", "nodes/status") == writes


async def test_a_host_that_an_administrator_has_closed_stays_closed(world: World) -> None:
    name = "kubevirt.io/schedulable"
    reporter = world.agent.host

    async def label(change: str | None = None) -> str:
        if change is not None:
            await world.client.patch(register.NODE, None, "h1", {"metadata": {"labels": {name: change}}})
        await reporter.report()
        return str((await world.client.get(register.NODE, None, "h1"))["metadata"]["labels"][name])

    await reporter.report()
    assert await label("false") == "false", "although the hypervisor is well"
    assert await label("true") == "true"
    known, reporter.capabilities = reporter.capabilities, None
    assert await label() == "false", "what we have closed ourselves"
    reporter.capabilities = known
    assert await label() == "true", "we open again"


async def test_metrics_name_the_machine(world: World) -> None:
    await world.create()
    await world.running()
    url = f"http://127.0.0.1:{world.agent.port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
    assert 'kubevirt_vmi_cpu_usage_seconds_total{node="h1",namespace="ns",name="web"} 2' in text
    assert 'drive="root"' in text


def owned_by(vm: Object) -> dict[str, Any]:
    reference = {"kind": "VirtualMachine", "name": vm["metadata"]["name"], "uid": vm["metadata"]["uid"]}
    return {"ownerReferences": [{"apiVersion": "kubevirt.io/v1", "controller": True, **reference}]}


async def test_uefi_variables_outlive_the_instance_and_go_with_their_machine(world: World) -> None:
    vm = await world.client.create(
        register.VIRTUAL_MACHINE,
        {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "web", "namespace": "ns"}},
    )
    domain = {
        "memory": {"guest": "64Mi"}, "devices": {},
        "firmware": {"bootloader": {"efi": {"secureBoot": False, "persistent": True}}},
    }  # fmt: skip
    created = await world.create(metadata=owned_by(vm), domain=domain, volumes=[], networks=[])
    await world.running()
    machine = world.hypervisor.machines[created["metadata"]["uid"]]
    variables = Path(machine.firmware.nvram)
    assert vm["metadata"]["uid"] in str(variables)
    variables.write_bytes(b"boot order")
    await world.client.delete(VMI, "ns", "web")
    await world.gone()
    assert variables.read_bytes() == b"boot order"

    await world.create("other")  # takes the next id, so that the machine below gets another one
    await world.running("other")
    again = await world.create(metadata=owned_by(vm), domain=domain, volumes=[], networks=[])
    vmi = await world.running()
    machine = world.hypervisor.machines[again["metadata"]["uid"]]
    assert (Path(machine.firmware.nvram), variables.read_bytes()) == (variables, b"boot order")
    assert variables.stat().st_uid == machine.isolation.uid
    assert stat.S_IMODE(variables.stat().st_mode) == 0o600
    movable = condition(vmi, "LiveMigratable")
    assert movable is not None
    assert "kept on this host" in movable["message"]

    await world.client.delete(VMI, "ns", "web")
    await world.gone()
    await world.agent.clean()
    assert variables.exists()
    await world.client.delete(register.VIRTUAL_MACHINE, "ns", "web")
    await world.agent.clean()
    assert not variables.parent.exists()


async def test_a_quick_start_is_one_write_that_says_all(world: World) -> None:
    """Nothing between Scheduled and Running: every write wakes every watcher."""
    written: list[Object] = []
    patch = world.client.patch

    async def noting(resource: Any, *arguments: Any, **named: Any) -> Object:
        made: Object = await patch(resource, *arguments, **named)
        if resource.kind == "VirtualMachineInstance":
            written.append(made)
        return made

    world.client.patch = noting  # type: ignore[method-assign]
    await world.create()
    await world.running()
    await asyncio.sleep(0.2)
    assert len(written) == 1
    status = written[0]["status"]
    assert status["phase"] == "Running"
    assert status["interfaces"][0]["ipAddress"]
    assert {c["type"] for c in status["conditions"]} >= {"Ready", "LiveMigratable", "Synchronized"}


async def test_a_slow_preparation_is_shown_as_it_goes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stead.agent.startup.BRIEF_SECONDS", 0.1)
    monkeypatch.setattr("stead.agent.machine.BRIEF_SECONDS", 0.1)
    world.materials.delay = 1.5
    await world.create()
    vmi = await world.until(lambda v: bool(v["status"].get("activePods")))
    assert vmi["status"]["phase"] == "Scheduled"
    await world.running()
