"""Field ownership: updates take fields, applies share, conflict and give up fields, as kube-apiserver has them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stead.kube import apply as ap
from stead.kube import encoding, patch
from stead.kube import schema as sc
from stead.kube.apply import Writer
from stead.kube.errors import ApiError

PORTS = {
    "type": "array", sc.LIST_TYPE: "map", sc.LIST_KEYS: ["port", "protocol"],
    "items": {"type": "object", "properties": {
        "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}, "name": {"type": "string"},
    }},
}  # fmt: skip
SCHEMA = sc.object_schema({"type": "object", "properties": {
    "spec": {"type": "object", "properties": {
        "color": {"type": "string"}, "size": {"type": "integer"}, "ports": PORTS,
        "atoms": {"type": "array", "items": {"type": "string"}},
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
    }},
    "status": {"type": "object", sc.PRESERVE: True},
}})  # fmt: skip


def writer(manager: str, **rest: Any) -> Writer:
    return Writer(manager=manager, api_version="x/v1", time=rest.pop("time", "2026-01-01T00:00:00Z"), **rest)


def config(spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "x/v1", "kind": "W", "metadata": {"name": "a", **metadata}, "spec": spec}


def owners(obj: dict[str, Any]) -> dict[str, Any]:
    return {e["manager"]: e["fieldsV1"] for e in obj["metadata"].get("managedFields", [])}


def test_two_appliers_share_and_conflict() -> None:
    obj = ap.apply(SCHEMA, None, config({"color": "red", "size": 5}), writer("x"))
    obj = ap.apply(SCHEMA, obj, config({"color": "red"}), writer("y"))
    assert owners(obj) == {"x": {"f:spec": {"f:color": {}, "f:size": {}}}, "y": {"f:spec": {"f:color": {}}}}
    with pytest.raises(ApiError) as caught:
        ap.apply(SCHEMA, obj, config({"color": "blue", "size": 6}), writer("y"))
    assert caught.value.code == 409
    assert caught.value.message == 'Apply failed with 2 conflicts: conflicts with "x":\n- .spec.color\n- .spec.size'
    assert caught.value.details["causes"][0] == {
        "reason": "FieldManagerConflict", "message": 'conflict with "x"', "field": ".spec.color",
    }  # fmt: skip
    obj = ap.apply(SCHEMA, obj, config({"color": "blue"}), writer("y", force=True))
    assert obj["spec"] == {"color": "blue", "size": 5}
    assert owners(obj) == {"x": {"f:spec": {"f:size": {}}}, "y": {"f:spec": {"f:color": {}}}}


def test_a_field_that_is_applied_no_more_goes_unless_shared() -> None:
    obj = ap.apply(SCHEMA, None, config({"map": {"a": "1", "b": "2"}}), writer("x"))
    obj = ap.apply(SCHEMA, obj, config({"map": {"b": "2", "c": "3"}}), writer("y"))
    obj = ap.apply(SCHEMA, obj, config({"map": {"a": "1"}}), writer("x"))
    assert obj["spec"]["map"] == {"a": "1", "b": "2", "c": "3"}
    obj = ap.apply(SCHEMA, obj, config({}), writer("y"))
    assert obj["spec"]["map"] == {"a": "1"}


def test_items_of_map_lists_are_owned_one_by_one() -> None:
    obj = ap.apply(SCHEMA, None, config({"ports": [{"port": 1, "name": "one"}]}), writer("x"))
    obj = ap.apply(SCHEMA, obj, config({"ports": [{"port": 2}, {"port": 1, "protocol": "UDP"}]}), writer("y"))
    assert [(p["port"], p.get("protocol")) for p in obj["spec"]["ports"]] == [(1, None), (2, None), (1, "UDP")]
    assert owners(obj)["x"] == {
        "f:spec": {"f:ports": {'k:{"port":1,"protocol":"TCP"}': {".": {}, "f:name": {}, "f:port": {}}}}
    }
    with pytest.raises(ApiError, match=r'\.spec\.ports\[port=1,protocol="TCP"\]\.name'):
        ap.apply(SCHEMA, obj, config({"ports": [{"port": 1, "name": "uno"}]}), writer("z"))
    obj = ap.apply(SCHEMA, obj, config({}), writer("y"))
    assert obj["spec"]["ports"] == [{"port": 1, "name": "one"}]


def test_atomic_lists_are_owned_whole() -> None:
    obj = ap.apply(SCHEMA, None, config({"atoms": ["a"]}), writer("x"))
    with pytest.raises(ApiError, match=r"\.spec\.atoms"):
        ap.apply(SCHEMA, obj, config({"atoms": ["a", "b"]}), writer("y"))


def test_updates_take_what_they_change() -> None:
    live = ap.track_update(SCHEMA, None, config({"color": "red", "size": 3}), writer("u1"))
    assert owners(live) == {"u1": {"f:spec": {".": {}, "f:color": {}, "f:size": {}}}}
    new = {**live, "spec": {"color": "blue", "size": 3}}
    after = ap.track_update(SCHEMA, live, new, writer("u2", time="2026-01-02T00:00:00Z"))
    assert owners(after) == {"u1": {"f:spec": {".": {}, "f:size": {}}}, "u2": {"f:spec": {"f:color": {}}}}
    same = ap.track_update(SCHEMA, after, after, writer("u3", time="2026-01-03T00:00:00Z"))
    assert same == after


def test_status_is_ignored_by_the_main_resource_and_owned_by_its_subresource() -> None:
    live = ap.track_update(SCHEMA, None, config({"color": "red"}), writer("u"))
    new = {**live, "status": {"phase": "P"}}
    assert owners(ap.track_update(SCHEMA, live, new, writer("u2", ignored=("status",)))) == owners(live)
    after = ap.track_update(SCHEMA, live, new, writer("s", subresource="status", ignored=("spec",)))
    entry = next(e for e in after["metadata"]["managedFields"] if e["manager"] == "s")
    assert (entry["subresource"], entry["fieldsV1"]) == ("status", {"f:status": {".": {}, "f:phase": {}}})
    with pytest.raises(ApiError, match=r'conflict with "s" with subresource "status" using x/v1: \.status\.phase'):
        ap.apply(SCHEMA, after, {**config({}), "status": {"phase": "Q"}}, writer("y", subresource="status"))


def test_old_update_managers_become_one() -> None:
    obj = ap.track_update(SCHEMA, None, config({"map": {}}), writer("m0"))
    for number in range(1, 15):
        time = f"2026-01-{number + 1:02}T00:00:00Z"
        new = {**obj, "spec": {"map": {**obj["spec"]["map"], f"k{number}": "v"}}}
        obj = ap.track_update(SCHEMA, obj, new, writer(f"m{number}", time=time))
    names = [e["manager"] for e in obj["metadata"]["managedFields"]]
    assert len(names) == ap.MAX_UPDATE_MANAGERS
    assert "ancient-changes" in names
    assert "m14" in names


def test_apply_over_kubectls_client_side_apply_needs_no_force() -> None:
    text = json.dumps(config({"color": "red"}))
    live = ap.track_update(
        SCHEMA, None, config({"color": "red"}, annotations={ap.LAST_APPLIED: text}), writer("kubectl-client-side-apply")
    )
    obj = ap.apply(SCHEMA, live, config({"color": "blue"}), writer("kubectl"))
    assert obj["spec"]["color"] == "blue"
    assert json.loads(obj["metadata"]["annotations"][ap.LAST_APPLIED])["spec"] == {"color": "blue"}
    with pytest.raises(ApiError, match="conflict"):
        ap.apply(SCHEMA, live, config({"color": "blue"}), writer("other"))


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"size": "str"}, ".spec.size: expected numeric (int or float), got string"),
        ({"odd": 1}, ".spec.odd: field not declared in schema"),
        ({"color": 5}, ".spec.color: expected string, got &value.valueUnstructured{Value:5}"),
        ({"ports": [{"port": 1}, {"port": 1}]}, '.spec.ports: duplicate entries for key [port=1,protocol="TCP"]'),
    ],
)
def test_a_config_that_does_not_fit_is_refused(spec: dict[str, Any], text: str) -> None:
    with pytest.raises(ApiError) as caught:
        ap.apply(SCHEMA, None, config(spec), writer("x"))
    assert caught.value.code == 400
    assert caught.value.message == f"failed to create typed patch object (/a; x/v1, Kind=W): {text}"


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        ({"kind": "W", "metadata": {"name": "a"}}, "invalid object type: /, Kind=W"),
        ({"apiVersion": "x/v2", "kind": "W"}, "invalid object type: x/v2, Kind=W"),
        ({"apiVersion": "x/v1", "kind": "W"}, "the name of the object (a based on URL) was undeterminable"),
        (config({}) | {"metadata": {"name": "b"}}, "the name of the object (b) does not match the name on the URL (a)"),
    ],
)
def test_a_config_must_be_what_the_url_says(obj: dict[str, Any], text: str) -> None:
    ap.check_identity(config({}), "x/v1", "W", "a")
    with pytest.raises(ApiError) as caught:
        ap.check_identity(obj, "x/v1", "W", "a")
    assert caught.value.code == 400
    assert caught.value.message.startswith(text)


def test_manager_names() -> None:
    assert ap.manager_from_user_agent("kubectl/v1.32 (linux)") == "kubectl"
    assert ap.manager_from_user_agent("") == "unknown"
    assert len(ap.manager_from_user_agent("x" * 500)) == 128


# --- recorded ---------------------------------------------------------------------------------------------------

CONFIG_MAP = sc.object_schema(
    {"type": "object", "properties": {"data": {"type": "object", "additionalProperties": {"type": "string"}}}}
)


class Replay:
    """Just enough of a server to carry the recorded scenarios: schema, defaults, status split, ownership."""

    def __init__(self, schemas: dict[str, Any]) -> None:
        self.schemas = schemas
        self.objects: dict[str, dict[str, Any]] = {}
        self.steps = 0

    def send(self, request: dict[str, Any]) -> dict[str, Any]:
        path, _, query = request["path"].partition("?")
        parameters = dict(p.split("=", 1) for p in query.split("&") if "=" in p)
        subresource = "status" if path.endswith("/status") else ""
        path = path.removesuffix("/status")
        plural = next(p for p in self.schemas if f"/{p}" in path)
        schema, version = self.schemas[plural]
        body = request.get("body")
        if body is None:
            body = encoding.decode_yaml(request["bodyText"].encode()).value
        if request["method"] == "POST":
            path += "/" + body["metadata"]["name"]
        live = self.objects.get(path)
        self.steps += 1
        agent = request.get("headers", {}).get("User-Agent", "")
        own = {"spec", "data"} if subresource else {"status"} if version != "v1" else set()
        kind = request.get("headers", {}).get("Content-Type", "")
        who = Writer(
            manager=parameters.get("fieldManager") or ap.manager_from_user_agent(agent), api_version=version,
            time=f"2026-01-01T00:00:{self.steps:02}Z", subresource=subresource, ignored=tuple(own),
            force=parameters.get("force", "false") not in {"false", "0"},
        )  # fmt: skip
        new = self._changed(kind, live, body, (schema, who))
        if parameters.get("dryRun") != "All":
            self.objects[path] = new
        return new

    def _changed(self, kind: str, live: Any, body: Any, context: tuple[Any, Writer]) -> dict[str, Any]:
        schema, who = context
        functions = {patch.JSON_PATCH: patch.json_patch, patch.MERGE_PATCH: patch.merge_patch}
        if kind == patch.APPLY_PATCH:
            new = ap.apply(schema, live, body, who)
            return self._kept(sc.default(schema, new), live, who)
        new = functions[kind](live, body) if kind in functions else body
        new = self._kept(sc.default(schema, sc.prune(schema, new)[0]), live, who)
        return ap.track_update(schema, live, new, who)

    @staticmethod
    def _kept(new: dict[str, Any], live: Any, who: Writer) -> dict[str, Any]:
        result = {k: v for k, v in new.items() if k not in who.ignored}
        return {**result, **{k: v for k, v in (live or {}).items() if k in who.ignored}}


def _entries(obj: dict[str, Any]) -> list[Any]:
    """Managed fields without the order, whether timed, and without the creation that our replay does not see."""
    fields = obj.get("metadata", {}).get("managedFields") or []
    return sorted(
        [e["manager"], e["operation"], e.get("subresource", ""), json.dumps(e["fieldsV1"], sort_keys=True), "time" in e]
        for e in fields
    )


def _content(obj: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in obj.items() if k in {"spec", "status", "data"} and v}


def test_recorded_applies() -> None:
    """Content, owners, refusals of every recorded apply scenario of ConfigMaps and custom resources."""
    folder = os.environ.get("STEAD_ORACLE")
    if not folder:
        print("not replayed")
        return
    fixtures = json.loads((Path(folder) / "api/fixtures.json").read_text())

    def crd(name: str) -> Any:
        return fixtures[name][0]["request"]["body"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    schemas = {
        "widgets": (sc.object_schema(crd("widgets")), "rec.example.com/v1"),
        "gadgets": (sc.object_schema(crd("gadgets")), "rec.example.com/v1"),
        "configmaps": (CONFIG_MAP, "v1"),
    }
    replayed, skipped = 0, {"entry-errors", "deployment-apply", "apply-with-resourceversion-uid"}
    for scenario in json.loads((Path(folder) / "api/apply.json").read_text()):
        if scenario["name"] in skipped:
            continue
        replay = Replay(schemas)
        for index, step in enumerate(scenario["steps"]):
            request, answer = step["request"], step["response"]
            if request["method"] == "GET" or answer["status"] in {404, 422}:
                continue
            where = f"{scenario['name']} step {index}"
            if answer["status"] >= 400:
                with pytest.raises(ApiError) as caught:
                    replay.send(request)
                assert caught.value.message == answer["body"]["message"], where
                assert caught.value.code == answer["status"], where
            else:
                new = replay.send(request)
                assert _content(new) == _content(answer["body"]), where
                assert _entries(new) == _entries(answer["body"]), where
            replayed += 1
    assert replayed > 40
