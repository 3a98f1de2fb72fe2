"""Kinds that users add, over the wire: served, documented, validated, scaled, watched, restarted, taken away."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tests.api_server import RunningServer, running_server

from stead.controllers.start import ControllerOptions, run_controllers
from stead.kinds import register
from stead.kinds.foreign import is_served, stored_resource
from stead.pki import ensure_key
from stead.server.api import ApiServer, Settings
from stead.store.sqlite import SqliteStore

Object = dict[str, Any]
DEFINITION = register.CUSTOM_RESOURCE_DEFINITION
SCHEMA: Object = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "size": {"type": "integer", "default": 3, "maximum": 9},
                "replicas": {"type": "integer"},
                "zone": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]},
                "port": {"x-kubernetes-int-or-string": True},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "inner": {"type": "object", "x-kubernetes-embedded-resource": True,
                          "x-kubernetes-preserve-unknown-fields": True},
            },
        },
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
    },
}  # fmt: skip


def definition(plural: str = "rockets", **version: Any) -> Object:
    kind = plural[:-1].capitalize()
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.space.example.org"},
        "spec": {
            "group": "space.example.org", "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind, "shortNames": [plural[:3]]},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": SCHEMA},
                          **version}],
        },
    }  # fmt: skip


def rocket(name: str = "a", **spec: Any) -> Object:
    return {"apiVersion": "space.example.org/v1", "kind": "Rocket", "metadata": {"name": name}, "spec": spec}


class Http:
    """Requests of an administrator, or of another identity."""

    def __init__(self, server: RunningServer, tls: Any = None) -> None:
        self.server, self.tls = server, tls or server.ssl

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with aiohttp.ClientSession() as session, session.request(
            method, self.server.url + path, json=body, headers=named, ssl=self.tls
        ) as answer:  # fmt: skip
            text = await answer.text()
            plain = "watch=" in path or not text.startswith("{")
            return answer.status, text if plain else json.loads(text), answer.headers


COLLECTION = "/apis/space.example.org/v1/namespaces/default/rockets"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
MERGE = {"Content_Type": "application/merge-patch+json"}


async def established(server: RunningServer, wanted: Object) -> Object:
    await server.client.create(DEFINITION, wanted)
    async with asyncio.timeout(10):
        while True:
            found = await server.client.get(DEFINITION, None, wanted["metadata"]["name"])
            if is_served(found):
                return found
            await asyncio.sleep(0.01)


async def test_an_added_kind_is_served_like_any_other() -> None:
    async with running_server() as server:
        http = Http(server)
        tag, paths = (await http("GET", "/openapi/v2"))[2]["Etag"], (await http("GET", "/openapi/v3"))[1]
        await established(server, definition(subresources={
            "status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"},
        }))  # fmt: skip
        assert (await http("GET", "/openapi/v2"))[2]["Etag"] != tag
        assert (await http("GET", "/openapi/v3"))[1] != paths
        document = (await http("GET", "/openapi/v3/apis/space.example.org/v1"))[1]
        assert "org.example.space.v1.Rocket" in document["components"]["schemas"]
        listed = (await http("GET", "/apis/space.example.org/v1"))[1]["resources"]
        assert [entry["name"] for entry in listed] == ["rockets", "rockets/status", "rockets/scale"]

        code, made, headers = await http("POST", COLLECTION, rocket(zone="x", port="http", free={"a": [1]}, odd=1))
        assert (code, made["spec"]) == (201, {"size": 3, "zone": "x", "port": "http", "free": {"a": [1]}})
        assert 'unknown field \\"spec.odd\\"' in headers["Warning"]
        code, answer, _ = await http("POST", COLLECTION + "?fieldValidation=Strict", rocket("b", odd=1))
        assert (code, "strict decoding error" in answer["message"]) == (400, True)
        code, answer, _ = await http("POST", COLLECTION, rocket("b", size=10))
        text = "spec.size: Invalid value: 10: spec.size in body should be less than or equal to 9"
        assert (code, answer["message"]) == (422, f'Rocket.space.example.org "b" is invalid: {text}')
        code, answer, _ = await http("PATCH", f"{COLLECTION}/a", {"spec": {"zone": "y"}}, **MERGE)
        assert (code, answer["details"]["causes"][0]["field"]) == (422, "spec.zone")

        code, scale, _ = await http("PATCH", f"{COLLECTION}/a/scale", {"spec": {"replicas": 4}}, **MERGE)
        assert (code, scale["kind"], scale["spec"]) == (200, "Scale", {"replicas": 4})
        code, answer, _ = await http("PATCH", f"{COLLECTION}/a/status", {"status": {"replicas": 2}}, **MERGE)
        found = (await http("GET", f"{COLLECTION}/a"))[1]
        assert (found["spec"]["replicas"], found["status"], found["metadata"]["generation"]) == (4, {"replicas": 2}, 2)
        scale["metadata"]["resourceVersion"] = "1"
        assert (await http("PUT", f"{COLLECTION}/a/scale", scale))[0] == 409
        stranger = Http(server, server.context("eve"))
        assert (await stranger("GET", COLLECTION))[0] == 403


async def test_an_applied_object_has_owners_of_its_fields() -> None:
    async with running_server() as server:
        http = Http(server)
        await established(server, definition())
        apply = {"Content_Type": "application/apply-patch+yaml"}
        assert (await http("PATCH", f"{COLLECTION}/a?fieldManager=one", rocket(size=1), **apply))[0] == 201
        code, answer, _ = await http("PATCH", f"{COLLECTION}/a?fieldManager=two", rocket(size=2), **apply)
        assert (code, answer["details"]["causes"][0]["field"]) == (409, ".spec.size")
        assert (await http("PATCH", f"{COLLECTION}/a?fieldManager=two&force=true", rocket(size=2), **apply))[0] == 200


async def test_versions_share_one_storage() -> None:
    async with running_server() as server:
        http, wanted = Http(server), definition()
        newer = {**wanted["spec"]["versions"][0], "name": "v2", "storage": False}
        wanted["spec"]["versions"].append(newer)
        made = await established(server, wanted)
        await http("POST", COLLECTION, rocket(size=5))
        for version in ("v1", "v2"):
            found = (await http("GET", f"/apis/space.example.org/{version}/namespaces/default/rockets/a"))[1]
            assert (found["apiVersion"], found["spec"]) == (f"space.example.org/{version}", {"size": 5})
        made["spec"]["versions"][0]["storage"], made["spec"]["versions"][1]["storage"] = False, True
        changed = await server.client.update(DEFINITION, made)
        assert changed["status"]["storedVersions"] == ["v1", "v2"]
        assert (await http("GET", f"{COLLECTION}/a"))[1]["apiVersion"] == "space.example.org/v1"


@pytest.mark.parametrize(("change", "field"), [
    ({"schema": {"openAPIV3Schema": {"type": "object", "properties": {"a": {}}}}}, "properties[a].type"),
    ({"schema": {"openAPIV3Schema": {"type": "object", "properties": {
        "a": {"type": "string", "x-kubernetes-validations": [{"rule": "self.frob()"}]}}}}}, "validations[0].rule"),
    ({"schema": {"openAPIV3Schema": {"type": "object", "properties": {"a": {"type": "string", "default": 1}}}}},
     "properties[a].default"),
    ({"storage": False}, "spec.versions"),
    ({"schema": {}}, "openAPIV3Schema"),
])  # fmt: skip
async def test_what_cannot_be_kept_is_refused(change: Object, field: str) -> None:
    async with running_server() as server:
        code, answer, _ = await Http(server)("POST", CRDS, definition(**change))
        assert (code, answer["reason"]) == (422, "Invalid")
        assert answer["details"]["causes"][0]["field"].endswith(field), answer["message"]


async def test_our_own_definitions_cannot_be_written() -> None:
    async with running_server() as server:
        http, path = Http(server), f"{CRDS}/virtualmachines.kubevirt.io"
        assert (await http("PATCH", path, {"spec": {"scope": "Cluster"}}, **MERGE))[0] == 403
        assert (await http("DELETE", path))[0] == 403
        extra = definition()
        extra["metadata"]["name"], extra["spec"]["group"] = "rockets.kubevirt.io", "kubevirt.io"
        assert (await http("POST", CRDS, extra))[0] == 403


async def test_a_deleted_definition_takes_its_instances_and_ends_watches() -> None:
    async with running_server() as server:
        http = Http(server)
        made = await established(server, definition())
        held = rocket("held")
        held["metadata"]["finalizers"] = ["example.org/hold"]
        await http("POST", COLLECTION, rocket())
        await http("POST", COLLECTION, held)
        watch = asyncio.create_task(http("GET", f"{COLLECTION}?watch=true"))
        _, answer, _ = await http("DELETE", f"{CRDS}/rockets.space.example.org")
        assert answer["metadata"]["finalizers"] == ["customresourcecleanup.apiextensions.k8s.io"]
        while (await http("GET", f"{COLLECTION}/a"))[0] != 404:
            await asyncio.sleep(0.02)
        apply = {"Content_Type": "application/apply-patch+yaml"}
        for method, path, headers in (("POST", COLLECTION, {}), ("PATCH", f"{COLLECTION}/l?fieldManager=m", apply)):
            code, status, _ = await http(method, path, rocket("l"), **headers)
            text = "create not allowed while custom resource definition is terminating"
            assert (code, status["reason"], status["message"]) == (405, "MethodNotAllowed", text)
        assert (await http("PATCH", f"{COLLECTION}/held?fieldManager=m&force=true", rocket("held", size=5), **apply))[
            0
        ] == 200
        assert (await http("GET", f"{COLLECTION}/held"))[0] == 200
        assert (await http("PATCH", f"{COLLECTION}/held", {"metadata": {"finalizers": None}}, **MERGE))[0] == 200
        _, text, _ = await asyncio.wait_for(watch, 10)
        assert text.count('{"type":"DELETED"') == 2
        async with asyncio.timeout(10):
            while (await http("GET", f"{CRDS}/rockets.space.example.org"))[0] != 404:
                await asyncio.sleep(0.02)
        while (await http("GET", COLLECTION))[0] != 404:
            await asyncio.sleep(0.02)
        assert not server.api.registry.peek_all(stored_resource(made))


async def test_names_belong_to_who_had_them_first() -> None:
    async with running_server() as server:
        await established(server, definition())
        rival = definition("comets")
        rival["spec"]["names"]["kind"] = "Rocket"
        await server.client.create(DEFINITION, rival)

        async def accepted(status: str) -> Object:
            async with asyncio.timeout(10):
                while True:
                    found = await server.client.get(DEFINITION, None, "comets.space.example.org")
                    conditions = {c["type"]: c for c in found["status"]["conditions"] or ()}
                    if conditions.get("NamesAccepted", {}).get("status") == status:
                        return conditions["NamesAccepted"]
                    await asyncio.sleep(0.01)

        assert (await accepted("False"))["reason"] == "ListKindConflict"
        await server.client.delete(DEFINITION, None, "rockets.space.example.org")
        await accepted("True")


async def test_kinds_are_there_after_a_restart(tmp_path: Path) -> None:
    ensure_key(tmp_path / "tokens.key")
    token_key: Any = load_pem_private_key((tmp_path / "tokens.key").read_bytes(), None)
    store = await SqliteStore.open(tmp_path / "store.db")
    first = ApiServer(store, Settings(token_key=token_key))
    await first.start()
    client = first.local_client()
    await client.create(DEFINITION, definition())
    while not is_served(await client.get(DEFINITION, None, "rockets.space.example.org")):
        await asyncio.sleep(0.01)
    await first.stop()
    again = ApiServer(store, Settings(token_key=token_key))
    await again.start()
    assert again.catalogue.find("space.example.org", "v1", "rockets") is not None
    await again.stop()
    await store.close()


async def test_objects_of_added_kinds_go_with_their_owners_and_namespaces() -> None:
    async with running_server() as server:
        http = Http(server)
        controllers = asyncio.create_task(run_controllers(server.client, ControllerOptions(root_ca="PEM")))
        try:
            await established(server, definition())
            _, owner, _ = await http("POST", COLLECTION, rocket("owner"))
            reference = {"apiVersion": "space.example.org/v1", "kind": "Rocket", "name": "owner",
                         "uid": owner["metadata"]["uid"]}  # fmt: skip
            owned = rocket("owned")
            owned["metadata"]["ownerReferences"] = [reference]
            await http("POST", COLLECTION, owned)
            settings = {"metadata": {"name": "owned", "namespace": "default", "ownerReferences": [reference]}}
            await server.client.create(register.CONFIG_MAP, settings)
            await server.client.create(register.NAMESPACE, {"metadata": {"name": "leaving"}})
            elsewhere = "/apis/space.example.org/v1/namespaces/leaving/rockets"
            assert (await http("POST", elsewhere, rocket()))[0] == 201
            await asyncio.sleep(0.5)
            assert (await http("GET", f"{COLLECTION}/owned"))[0] == 200

            await http("DELETE", f"{COLLECTION}/owner")
            await server.client.delete(register.NAMESPACE, None, "leaving")
            gone = (f"{COLLECTION}/owned", "/api/v1/namespaces/default/configmaps/owned", "/api/v1/namespaces/leaving")
            async with asyncio.timeout(20):
                for path in gone:
                    while (await http("GET", path))[0] != 404:
                        await asyncio.sleep(0.05)
        finally:
            controllers.cancel()
            await asyncio.gather(controllers, return_exceptions=True)
