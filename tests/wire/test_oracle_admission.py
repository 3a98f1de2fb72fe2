"""Admission and subresource decisions against recordings of a real KubeVirt, without a server in between.

Objects live in a dictionary; the recordings' fixtures go in through our own admission. What is left out here, because
other parts answer it: the structural schema, strict decoding, RBAC, routing and content negotiation (the server), what
controllers write into status, and kinds that are not served yet. The floor is what was reached; it only goes up.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.oracle import Answer, load_cases, oracle_folder, replay, report

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube import patch, schema
from stead.kube.errors import ApiError
from stead.server import lifecycle
from stead.server.admission import AdmissionRequest, admit
from stead.server.admission.cluster import cluster_from_lookup
from stead.server.admission.gates import enabled_gates

Json = dict[str, Any]

AREAS = (
    "default-vmi", "default-vm", "default-other", "reject-vm", "reject-vmi-core", "reject-volumes", "reject-networks",
    "reject-launch-arch", "reject-objects", "transport", "gates", "gates-disabled", "configuration",
    "reject-updates", "subresources", "subresources-running",
)  # fmt: skip
#: share of equal cases that each area has reached
FLOORS = {area: 1.0 for area in AREAS} | {
    # Not equal: three object graphs (a launcher pod and objects that only the recording had) and two answers to
    # `evacuate/cancel` that are upstream's own faults (500 where nothing is pending).
    "gates": 0.95, "subresources": 0.98, "subresources-running": 0.97,
}  # fmt: skip
#: kinds whose recorded creations later cases refer to
STORED = ("VirtualMachineRestore", "VirtualMachineClone", "VirtualMachineExport")
ADMIN = "admin"
CONTROLLER = "system:serviceaccount:kubevirt:kubevirt-controller"
SERVED = {
    r.plural: r
    for r in (
        register.VIRTUAL_MACHINE, register.VIRTUAL_MACHINE_INSTANCE, register.INSTANCETYPE,
        register.CLUSTER_INSTANCETYPE, register.PREFERENCE, register.CLUSTER_PREFERENCE,
        register.MACHINE_SNAPSHOT, register.MACHINE_RESTORE, register.MACHINE_CLONE, register.MACHINE_EXPORT,
        register.MIGRATION, register.MIGRATION_POLICY,
    )
}  # fmt: skip
KINDS = {
    **{r.kind: r for r in SERVED.values()},
    **{r.kind: r for r in (register.PERSISTENT_VOLUME_CLAIM, register.SECRET, register.CONFIG_MAP)},
}
#: marks of an answer that the schema step, the decoder or the API server gave
SCHEMA_MARKS = re.compile(
    r" in body |strict decoding error|cannot unmarshal|^\w+\.[a-z.]+ \"[^\"]*\" is invalid: |Can not unmarshal"
    r"|CreateOptions|PatchOptions|field is immutable"
)
OBJECT_RE = re.compile(
    r"/apis/(?P<group>[^/]+)/[^/]+/(namespaces/(?P<ns>[^/]+)/)?(?P<plural>[a-z-]+)(/(?P<name>[^/]+))?(/(?P<sub>.+))?"
)


class World:
    """Objects by kind, namespace and name; also the `Lookup` of admission."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.settings: Json = {}

    def get(self, resource: Resource, namespace: str, name: str) -> Json | None:
        return self.objects.get((resource.kind, namespace if resource.namespaced else "", name))

    def list(self, resource: Resource, namespace: str) -> list[Json]:
        return [o for (kind, ns, _), o in self.objects.items() if kind == resource.kind and namespace in ("", ns)]

    def configuration(self) -> Json:
        return self.settings

    def gates(self) -> frozenset[str]:
        return enabled_gates(self.settings)

    def put(self, obj: Json) -> None:
        metadata = obj["metadata"]
        self.objects[(obj["kind"], metadata.get("namespace", ""), metadata["name"])] = obj

    def machine(self, name: str) -> Json | None:
        return self.get(register.VIRTUAL_MACHINE, "ora", name)

    def instance(self, name: str) -> Json | None:
        return self.get(register.VIRTUAL_MACHINE_INSTANCE, "ora", name)

    def admitted(self, operation: str, obj: Json, old: Json | None = None, user: str = ADMIN, sub: str = "") -> Json:
        resource = KINDS[obj["kind"]]
        request = AdmissionRequest(
            operation=operation, resource=resource, namespace=obj["metadata"].get("namespace", ""), obj=obj, old=old,
            user=user, subresource=sub,
        )  # fmt: skip
        return admit(request, self)[0]

    def start(self, name: str) -> None:
        """What the machine controller does: an instance, not yet placed."""
        machine = self.machine(name)
        assert machine is not None
        template = machine["spec"]["template"]
        owner = {"kind": "VirtualMachine", "name": name, "controller": True, "uid": machine["metadata"]["uid"]}
        metadata = {
            **template.get("metadata", {}), "name": name, "namespace": "ora", "uid": f"uid-of-{name}",
            "ownerReferences": [owner],
        }  # fmt: skip
        body = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": metadata}
        made = self.admitted("CREATE", {**body, "spec": template["spec"]}, user=CONTROLLER)
        made["status"]["phase"] = "Scheduling"
        self.put(made)
        machine["status"] = {"created": True}


def world_from_fixtures(fixtures: list[Json]) -> World:
    """The state in which the recordings start."""
    world = World()
    for fixture in fixtures:
        obj = json.loads(json.dumps(fixture))
        obj["metadata"].setdefault("uid", f"uid-{obj['metadata']['name']}")
        kind = obj["kind"]
        world.put(world.admitted("CREATE", obj) if kind in KINDS and not KINDS[kind].builtin else obj)
        if kind == "VirtualMachineInstance":
            instance = world.instance(obj["metadata"]["name"])
            assert instance is not None
            instance["status"]["phase"] = "Scheduling"
        if kind == "VirtualMachine" and obj["spec"].get("runStrategy") in ("Always", "RerunOnFailure", "Once"):
            world.start(obj["metadata"]["name"])
    odd = {"cpu": {"guest": 3}, "memory": {"guest": "1Gi"}}
    world.put({"kind": "VirtualMachineInstancetype", "metadata": {"name": "odd-3", "namespace": "ora"}, "spec": odd})
    return world


def run_instances(world: World) -> None:
    """The state of `subresources-running`: instances faked running on node n1."""
    for name in ("vm-live", "vm-probe", "vm-headless", "vmi-solo"):
        instance = world.instance(name)
        assert instance is not None
        instance["status"] |= {
            "phase": "Running", "nodeName": "n1", "migrationMethod": "LiveMigration",
            "conditions": [{"type": "LiveMigratable", "status": "True"}, {"type": "Ready", "status": "True"}],
        }  # fmt: skip
        machine = world.machine(name)
        if machine is not None:
            machine["status"] = {"created": True, "ready": True}
    done = world.instance("vmi-done")
    assert done is not None
    done["status"]["phase"] = "Succeeded"


class Transport:
    """Carries a recorded case to our pure functions."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.left_out: dict[str, int] = {}

    def __call__(self, case: Json) -> Answer | None:
        reason = self._left_out(case)
        if reason:
            self.left_out[reason] = self.left_out.get(reason, 0) + 1
            return None
        self.world.settings = settings_of(case)
        self._prepare(case)
        try:
            return self._answer(case)
        except ApiError as error:
            plain = isinstance(error, lifecycle.PlainError)
            return Answer(error.code, error.message if plain else error.status())

    def _left_out(self, case: Json) -> str:
        request, response = case["request"], case["response"]
        path = OBJECT_RE.match(request["path"].split("?")[0])
        body = response["body"]
        text = (body.get("message") or "") if isinstance(body, dict) else ""
        if case.get("environment"):
            return "environment of the recording"
        if path is None or path["plural"] not in (*SERVED, "expand-vm-spec"):
            return "kind or path not covered here"
        if case["name"].startswith("preset-") or re.search(r"/v1alpha3/|export.kubevirt.io/v1beta1", request["path"]):
            return "presets and old versions"
        if SCHEMA_MARKS.search(re.sub(r"^admission webhook \"[^\"]*\" denied the request: ", "", text)):
            return "schema, decoding"
        if any("unknown field" in w or "finalizers" in w for w in response["warnings"]):
            return "schema, decoding"
        if response["status"] in (401, 403, 405, 406, 415) and "Pausing" not in text:
            return "routing, negotiation, RBAC"
        if response["status"] == 404 and isinstance(body, str):
            return "routing, negotiation, RBAC"
        if "Accept" in (request.get("headers") or {}):
            return "routing, negotiation, RBAC"
        if path["group"] != "subresources.kubevirt.io":
            return self._left_out_of_objects(case, path)
        return ""

    def _left_out_of_objects(self, case: Json, path: Any) -> str:
        method, status = case["request"]["method"], case["response"]["status"]
        if method in ("GET", "DELETE", "PUT") or case["request"].get("contentType", "").startswith("application/apply"):
            return "reads, deletes, apply"
        if status in (404, 409) or "rejected our request" in str(case["response"]["body"]):
            return "reads, deletes, apply"
        if method == "PATCH" and path["name"] == "vm-rev":
            return "objects that only the recording had"
        return ""

    def _prepare(self, case: Json) -> None:
        """State that the recording's README describes for single cases."""
        name = case["name"]
        claim, solo = self.world.machine("vm-claim"), self.world.instance("vmi-solo")
        assert claim is not None
        assert solo is not None
        status = {k: v for k, v in (claim.get("status") or {}).items() if not k.endswith("InProgress")}
        if name.startswith("vm-snapshot-in-progress"):
            status["snapshotInProgress"] = "snap-x"
        if name.startswith("vm-restore-in-progress"):
            status["restoreInProgress"] = "rest-x"
        claim["status"] = status
        if "already-paused" in name:
            solo["status"]["conditions"] += [{"type": t, "status": "True"} for t in ("Paused", "AgentConnected")]
        if name == "migration-not-migratable":
            headless = self.world.instance("vm-headless")
            assert headless is not None
            headless["status"]["conditions"][0] |= {
                "status": "False", "reason": "DisksNotLiveMigratable", "message": "disk reason text",
            }  # fmt: skip
        if name == "evacuate-cancel-after-evict":
            live = self.world.instance("vm-live")
            assert live is not None
            live["status"]["evacuationNodeName"] = "n1"

    def _answer(self, case: Json) -> Answer:
        path = OBJECT_RE.match(case["request"]["path"].split("?")[0])
        assert path is not None
        if path["group"] == "subresources.kubevirt.io":
            return self._subresource(case, path)
        if case["request"]["method"] == "PATCH":
            return self._patch(case, path)
        resource = SERVED[path["plural"]]
        body = schema.default(schema.schema_from_struct(resource.struct), case["request"]["body"])
        request = AdmissionRequest(
            operation="CREATE", resource=resource, namespace=path["ns"] or "", obj=body, user=ADMIN
        )
        made, warnings = admit(request, self.world)
        if case.get("effect") and path["plural"] == register.MIGRATION.plural:
            self.world.put({**made, "metadata": {**made["metadata"], "uid": "<uuid-1>"}})
        if path["plural"] == "virtualmachines":
            made = {k: v for k, v in made.items() if k != "status"}
        if case.get("effect") and resource.kind in STORED:
            self.world.put(made)
        return Answer(201, made, warnings)

    def _patch(self, case: Json, path: Any) -> Answer:
        resource = SERVED[path["plural"]]
        old = self.world.get(resource, path["ns"] or "", path["name"])
        assert old is not None, path["name"]
        body = case["request"]["body"]
        new = patch.json_patch(old, body) if isinstance(body, list) else patch.merge_patch(old, body)
        headers = case["request"].get("headers") or {}
        request = AdmissionRequest(
            operation="UPDATE", resource=resource, namespace=path["ns"] or "", obj=new, old=old,
            user=headers.get("Impersonate-User", ADMIN), subresource=path["sub"] or "",
        )  # fmt: skip
        made, warnings = admit(request, self.world)
        # Controllers of the recording wrote status, annotations and labels that nobody writes here.
        recorded = case["response"]["body"]
        shown = {**made, "metadata": recorded.get("metadata"), "status": recorded.get("status")}
        return Answer(200, self._same_firmware(shown, recorded), warnings)

    @staticmethod
    def _same_firmware(shown: Json, recorded: Json) -> Json:
        """Firmware identities were generated on both sides: equal where the recording has one."""
        copied: Json = json.loads(json.dumps(shown))
        ours, theirs = copied.get("spec") or {}, recorded.get("spec") or {}
        ours, theirs = ((s.get("template") or {}).get("spec") or s for s in (ours, theirs))
        if (theirs.get("domain") or {}).get("firmware"):
            ours["domain"]["firmware"] = theirs["domain"]["firmware"]
        return copied

    def _subresource(self, case: Json, path: Any) -> Answer:
        decision = self._decide(path, case["request"].get("body"))
        if case.get("effect", not decision.dry_run):
            self._carry_out(path["name"], decision, path["sub"] or "")
        recorded = case["response"]["body"]
        if path["sub"] == "expand-spec" and decision.body and isinstance(recorded, dict):
            # As for patches: what controllers had written stands in the recording only.
            return Answer(200, decision.body | {key: recorded.get(key) for key in ("metadata", "status")})
        return Answer(decision.code, decision.body)

    def _carry_out(self, name: str, decision: lifecycle.Decision, sub: str) -> None:
        machine = self.world.machine(name)
        for changes in (decision.machine_patch, decision.status_patch):
            if machine is not None and changes and not decision.dry_run:
                machine = patch.json_patch(machine, list(changes))
                self.world.put(machine)
        if sub == "start" and not decision.dry_run and machine is not None and self.world.instance(name) is None:
            self.world.start(name)
        if sub == "stop" and not decision.dry_run:
            self.world.objects.pop(("VirtualMachineInstance", "ora", name), None)

    def _decide(self, path: Any, body: Any) -> lifecycle.Decision:
        name = path["name"] or ""
        call = lifecycle.Call(
            plural=path["plural"], namespace=path["ns"], name=name, path=path["sub"] or "", body=body,
            cluster=cluster_from_lookup(self.world), machine=self.world.machine(name),
            instance=self.world.instance(name),
        )  # fmt: skip
        return lifecycle.decide(call)


def settings_of(case: Json) -> Json:
    """`spec.configuration` of the KubeVirt object for a case."""
    settings: Json = json.loads(json.dumps(case.get("configuration") or {}))
    gates = case.get("gates") or []
    if gates and "developerConfiguration" not in settings:
        settings["developerConfiguration"] = {
            "featureGates": [g for g in gates if not g.startswith("-")],
            "disabledFeatureGates": [g[1:] for g in gates if g.startswith("-")],
        }
    return settings


def test_the_recorded_answers_are_ours(capsys: pytest.CaptureFixture[str]) -> None:
    folder = oracle_folder("admission")
    if folder is None:
        with capsys.disabled():
            print("\nadmission recordings: not replayed (STEAD_ORACLE is unset)")
        return
    world = world_from_fixtures(json.loads((folder / "fixtures.json").read_text()))
    transport = Transport(world)
    cases = load_cases(folder, AREAS)
    stateless = [c for c in cases if "seq" not in c]
    stateful = sorted((c for c in cases if "seq" in c), key=lambda c: c["seq"])
    first_running = min(c["seq"] for c in stateful if c["area"] == "subresources-running")
    scores = replay((*stateless, *(c for c in stateful if c["seq"] < first_running)), transport)
    run_instances(world)
    for area, score in replay([c for c in stateful if c["seq"] >= first_running], transport).items():
        known = scores.setdefault(area, score)
        if known is not score:
            known.replayed += score.replayed
            known.equal += score.equal
            known.misses += score.misses
    with capsys.disabled():
        print(f"\nadmission recordings, replayed without a server:\n{report(scores, show_misses=True)}")
        print(f"left out: {transport.left_out}")
    short = {area: f"{s.share:.1%}" for area, s in scores.items() if s.share < FLOORS[area]}
    assert not short, f"below the floor: {short}"
