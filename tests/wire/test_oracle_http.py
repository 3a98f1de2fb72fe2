"""Recorded answers of a real KubeVirt against ours, asked over HTTP: schema, decoding, RBAC and routing included.

The state of the recordings is made by their fixtures; what controllers and a host would write (instances of started
machines, phases) is written by this test in the controller's name. Runs where `STEAD_ORACLE` names the recordings; else
says "not replayed". Each area has a floor.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yarl
from tests.api_server import RunningServer, running_server
from tests.oracle import Answer, Score, load_cases, oracle_folder, report
from tests.wire.test_oracle_admission import AREAS, settings_of

from stead.kinds import register

Json = dict[str, Any]

CONTROLLER = "system:serviceaccount:kubevirt:kubevirt-controller"
#: share of equal cases in each area
FLOOR = 0.95
PATH = re.compile(r"/(?:api|apis/(?P<group>[^/]+))/[^/]+/(?:namespaces/[^/]+/)?(?P<plural>[a-z-]+)")
NAMED = re.compile(r"/namespaces/ora/(?P<plural>[a-z]+)/(?P<name>[^/?]+)(?:/(?P<sub>[^?]+))?")
RUNNING = ("vm-live", "vm-probe", "vm-headless", "vmi-solo")
#: what stands for an answer that depends on an object which only the recording had
ONLY_THERE = re.compile(r"/(vm-rev|vm-stuck|vm-ext|vm-lmip)(/|\?|$)")


class World:
    """A running server in the state of the recordings."""

    def __init__(self, server: RunningServer, session: aiohttp.ClientSession) -> None:
        self._server = server
        self._session = session
        self._settings: Json = {}
        self.left_out: Counter[str] = Counter()
        self._served = {(r.group, r.plural) for r in register.ALL}

    async def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, list[str]]:
        """One request: (status, body as JSON or text or None, warnings)."""
        sent = {"Accept": "application/json, */*", "Content-Type": "application/json", **(headers or {})}
        # A body that was no JSON stands in the recording as text.
        data = body if isinstance(body, str | None) else json.dumps(body)
        url = yarl.URL(self._server.url + path, encoded=True)
        async with self._session.request(
            method, url, data=data, headers=sent, ssl=self._server.ssl, skip_auto_headers=("User-Agent",)
        ) as response:
            text = await response.text()
            warnings = [_plain(warning) for warning in response.headers.getall("Warning", [])]
            return response.status, _parsed(text), warnings

    async def make(self, obj: Json, user: str = "") -> None:
        """Create a fixture."""
        group = obj["apiVersion"].rpartition("/")[0]
        resource = register.resource_for(obj["kind"], group)
        prefix = f"/apis/{resource.group}/{resource.version}" if resource.group else "/api/v1"
        namespace = f"/namespaces/{obj['metadata'].get('namespace', 'ora')}" if resource.namespaced else ""
        headers = {"Impersonate-User": user, "Impersonate-Group": "system:masters"} if user else {}
        status, answer, _ = await self.send("POST", f"{prefix}{namespace}/{resource.plural}", obj, headers)
        assert status == 201, f"fixture {obj['kind']} {obj['metadata']['name']}: {answer}"

    async def status(self, name: str, status: Json, plural: str = "virtualmachineinstances") -> None:
        """Write into an object's status as the controller does."""
        path = f"/apis/kubevirt.io/v1/namespaces/ora/{plural}/{name}"
        path += "/status" if plural == "virtualmachines" else ""
        headers = {"Content-Type": "application/merge-patch+json", "Impersonate-User": CONTROLLER}
        headers["Impersonate-Group"] = "system:masters"
        code, answer, _ = await self.send("PATCH", path, {"status": status}, headers)
        assert code == 200, answer

    async def start(self, name: str) -> None:
        """What the machine controller does for a started machine: an instance, not yet placed."""
        _, machine, _ = await self.send("GET", f"/apis/kubevirt.io/v1/namespaces/ora/virtualmachines/{name}")
        template, uid = machine["spec"]["template"], machine["metadata"]["uid"]
        owner = {
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": name, "controller": True, "uid": uid,
            "blockOwnerDeletion": True,
        }  # fmt: skip
        metadata = {**template.get("metadata", {}), "name": name, "namespace": "ora", "ownerReferences": [owner]}
        body = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": metadata}
        await self.make({**body, "spec": template["spec"]}, CONTROLLER)
        await self.status(name, {"phase": "Scheduling"})
        await self.status(name, {"created": True}, "virtualmachines")

    async def fixtures(self, objects: list[Json]) -> None:
        """The state in which the recordings start."""
        for name in ("ora", "kubevirt"):
            await self.send("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        settings = {"apiVersion": "kubevirt.io/v1", "kind": "KubeVirt", "spec": {}}
        await self.make({**settings, "metadata": {"name": "kubevirt", "namespace": "kubevirt"}})
        for obj in objects:
            await self.make(obj)
            if obj["kind"] == "VirtualMachineInstance":
                await self.status(obj["metadata"]["name"], {"phase": "Scheduling"})
            started = obj.get("spec", {}).get("runStrategy") in ("Always", "RerunOnFailure", "Once")
            if obj["kind"] == "VirtualMachine" and started:
                await self.start(obj["metadata"]["name"])
        await self.backups()
        odd = {"cpu": {"guest": 3}, "memory": {"guest": "1Gi"}}
        kind = {"apiVersion": "instancetype.kubevirt.io/v1beta1", "kind": "VirtualMachineInstancetype"}
        await self.make({**kind, "metadata": {"name": "odd-3"}, "spec": odd})

    async def backups(self) -> None:
        """What the area `gates` finds there: a tracker, and a backup that waits for its machine."""
        path = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt"
        headers = {"Content-Type": "application/merge-patch+json", "Impersonate-User": CONTROLLER}
        headers["Impersonate-Group"] = "system:masters"
        gate = {"configuration": {"developerConfiguration": {"featureGates": ["IncrementalBackup"]}}}
        await self.send("PATCH", path, {"spec": gate}, headers)
        kind = {"apiVersion": "backup.kubevirt.io/v1alpha1", "metadata": {"namespace": "ora"}}
        source = {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "vm-halted"}
        for name, item in (("t1", "VirtualMachineBackupTracker"), ("real-bk", "VirtualMachineBackup")):
            spec = {"source": source} | ({"pvcName": "data-claim"} if name == "real-bk" else {})
            await self.make({**kind, "kind": item, "metadata": {"name": name, "namespace": "ora"}, "spec": spec})
        text = "vm vm-halted is not running, cannot do backup"
        waits = {"type": "Progressing", "status": "True", "reason": "Initializing", "message": text}
        status = {"conditions": [{**waits, "lastTransitionTime": "2026-04-01T00:00:00Z"}]}
        backup = "/apis/backup.kubevirt.io/v1alpha1/namespaces/ora/virtualmachinebackups/real-bk/status"
        code, answer, _ = await self.send("PATCH", backup, {"status": status}, headers)
        assert code == 200, answer
        await self.send("PATCH", path, {"spec": {"configuration": None}}, headers)

    async def run_instances(self) -> None:
        """The state of `subresources-running`: instances faked running on node n1."""
        conditions = [{"type": "LiveMigratable", "status": "True"}, {"type": "Ready", "status": "True"}]
        for name in RUNNING:
            status = {"phase": "Running", "nodeName": "n1", "migrationMethod": "LiveMigration"}
            await self.status(name, {**status, "conditions": conditions})
            if name.startswith("vm-"):
                await self.status(name, {"created": True, "ready": True}, "virtualmachines")
        await self.status("vmi-done", {"phase": "Succeeded"})

    async def configure(self, case: Json) -> None:
        """Make `spec.configuration` of the KubeVirt object that of a case."""
        settings = settings_of(case)
        if settings == self._settings:
            return
        path = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt"
        patch = [{"op": "add", "path": "/spec/configuration", "value": settings}]
        code, answer, _ = await self.send("PATCH", path, patch, {"Content-Type": "application/json-patch+json"})
        assert code == 200, answer
        self._settings = settings

    def skips(self, case: Json) -> str:
        """Why a case is not replayed, or ""."""
        path = case["request"]["path"]
        found = PATH.match(path)
        if case.get("environment"):
            return "environment of the recording"
        if ONLY_THERE.search(path) or case["name"].startswith("preset-"):
            return "objects that only the recording had"
        group, plural = (found["group"] or "", found["plural"]) if found else ("", "")
        if group != "subresources.kubevirt.io" and (group, plural) not in self._served:
            return "kind not served yet"
        return ""

    async def replay(self, case: Json) -> Answer:
        """Send one case."""
        await self.configure(case)
        await self._prepare(case["name"])
        request = case["request"]
        headers = dict(request.get("headers") or {})
        if headers.get("Impersonate-User") == CONTROLLER:
            headers["Impersonate-Group"] = "system:masters"
        if request.get("contentType"):
            headers["Content-Type"] = request["contentType"]
        elif request["method"] == "PATCH":
            kind = "json-patch" if isinstance(request["body"], list) else "merge-patch"
            headers["Content-Type"] = f"application/{kind}+json"
        body = request.get("body")
        status, answer, warnings = await self.send(request["method"], request["path"], body, headers)
        if case.get("effect") and status < 300:
            await self._follow(request["path"])
        return Answer(status, _comparable(case, answer), warnings)

    async def _prepare(self, name: str) -> None:
        """State that the recordings' README describes for single cases."""
        marks = {"vm-snapshot-in-progress": ("snapshotInProgress", "snap-x"),
                 "vm-restore-in-progress": ("restoreInProgress", "rest-x")}  # fmt: skip
        wanted = {key: value for start, (key, value) in marks.items() if name.startswith(start)}
        if wanted or name.startswith("vm-"):
            every = {"snapshotInProgress": None, "restoreInProgress": None}
            await self.status("vm-claim", {**every, **wanted}, "virtualmachines")
        if "already-paused" in name:
            kinds = ("LiveMigratable", "Ready", "Paused", "AgentConnected")
            await self.status("vmi-solo", {"conditions": [{"type": kind, "status": "True"} for kind in kinds]})
        if name == "evacuate-cancel-after-evict":
            await self.status("vm-live", {"evacuationNodeName": "n1"})

    async def _follow(self, path: str) -> None:
        """What controllers do after a start or a stop."""
        found = NAMED.search(path)
        if found is None or found["plural"] != "virtualmachines":
            return
        instance = f"/apis/kubevirt.io/v1/namespaces/ora/virtualmachineinstances/{found['name']}"
        exists = (await self.send("GET", instance))[0] == 200
        if found["sub"] == "start" and not exists:
            await self.start(found["name"])
        if found["sub"] == "stop" and exists:
            await self.send("DELETE", instance)
            patch = {"metadata": {"finalizers": None}}
            await self.send("PATCH", instance, patch, {"Content-Type": "application/merge-patch+json"})


def _plain(warning: str) -> str:
    return re.sub(r'^299 - "(.*)"$', r"\1", warning).replace('\\"', '"')


def _parsed(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def _comparable(case: Json, answer: Any) -> Any:
    """An answer without what only the recording's controllers had written."""
    recorded = case["response"]["body"]
    if not (isinstance(answer, dict) and isinstance(recorded, dict) and "spec" in answer and "spec" in recorded):
        return answer
    stored = case["request"]["method"] != "POST"
    shown = {**answer, "metadata": recorded.get("metadata"), "status": recorded.get("status")} if stored else answer
    copied: Json = json.loads(json.dumps(shown))
    if stored:
        # Firmware identities of stored objects were generated on both sides.
        ours, theirs = ((s.get("template") or {}).get("spec") or s for s in (copied["spec"], recorded["spec"]))
        if (theirs.get("domain") or {}).get("firmware") and ours.get("domain"):
            ours["domain"]["firmware"] = theirs["domain"]["firmware"]
    return copied


async def _replayed(folder: Path) -> tuple[dict[str, Score], Counter[str]]:
    cases = load_cases(folder, AREAS)
    stateful = sorted((c for c in cases if "seq" in c), key=lambda c: c["seq"])
    first_running = min(c["seq"] for c in stateful if c["area"] == "subresources-running")
    scores: dict[str, Score] = {}
    async with running_server() as server, aiohttp.ClientSession() as session:
        world = World(server, session)
        await world.fixtures(json.loads((folder / "fixtures.json").read_text()))
        running = False
        for case in [c for c in cases if "seq" not in c] + stateful:
            if not running and case.get("seq", -1) >= first_running:
                await world.run_instances()
                running = True
            reason = world.skips(case)
            if reason:
                world.left_out[reason] += 1
                continue
            score = scores.setdefault(case["area"], Score())
            score.count(case, await world.replay(case))
    return scores, world.left_out


async def test_the_recorded_answers_are_ours_over_http(capsys: pytest.CaptureFixture[str]) -> None:
    folder = oracle_folder("admission")
    if folder is None:
        with capsys.disabled():
            print("\nadmission recordings over HTTP: not replayed (STEAD_ORACLE is unset)")
        return
    scores, left_out = await _replayed(folder)
    with capsys.disabled():
        shown = bool(os.environ.get("STEAD_ORACLE_SHOW"))
        print(f"\nadmission recordings, replayed over HTTP:\n{report(scores, show_misses=shown)}")
        print(f"left out: {dict(left_out)}")
    short = {area: f"{score.share:.1%}" for area, score in scores.items() if score.share < FLOOR}
    assert not short, f"below the floor: {short}"
