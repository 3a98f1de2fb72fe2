"""The API server over real TLS: verbs, watches, access and streams, as a client on the network sees them."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import websockets
from aiohttp import web

from api_server import RunningServer, running_server
from stead.client.contract import Selection
from stead.client.kubeconfig import load
from stead.client.remote import RemoteClient
from stead.kinds import register
from stead.kube.errors import ApiError

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
MERGE = {"Content-Type": "application/merge-patch+json"}


#: one server and one event loop for the whole module
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[RunningServer]:
    async with running_server(audit=True) as running:
        yield running


class Caller:
    """Requests of one identity."""

    def __init__(self, server: RunningServer, context: ssl.SSLContext | None = None, **headers: str) -> None:
        self.url = server.url
        self.context = context or server.ssl
        self.headers = headers

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        data = json.dumps(body).encode() if isinstance(body, dict | list) else body
        named = {key.replace("_", "-"): value for key, value in {**self.headers, **headers}.items()}
        if body is not None:
            named.setdefault("Content-Type", "application/json")
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.url + path, data=data, headers=named, ssl=self.context) as response,
        ):
            raw = await response.read()
            kind = response.headers.get("Content-Type", "")
            return response.status, json.loads(raw) if "json" in kind and raw else raw.decode(), response.headers


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def machine(name: str, **spec: Any) -> dict[str, Any]:
    template = {"spec": {"domain": {"devices": {}, "memory": {"guest": "128Mi"}}}}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name},
        "spec": {"runStrategy": "Halted", "template": template, **spec},
    }


async def test_a_write_is_read_back_and_a_write_of_nothing_changes_nothing(server: RunningServer) -> None:
    call = Caller(server)
    code, made, headers = await call("POST", CONFIG_MAPS, config_map("verbs", a="1"))
    assert code == 201
    assert headers["Audit-Id"]
    code, patched, _ = await call("PATCH", f"{CONFIG_MAPS}/verbs", {"data": {"a": "2"}}, **MERGE)
    assert (code, patched["data"]) == (200, {"a": "2"})
    assert int(patched["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    code, again, _ = await call("PATCH", f"{CONFIG_MAPS}/verbs", {"data": {"a": "2"}}, **MERGE)
    assert again["metadata"]["resourceVersion"] == patched["metadata"]["resourceVersion"]
    code, status, _ = await call("PUT", f"{CONFIG_MAPS}/verbs", made)
    assert (code, status["reason"]) == (409, "Conflict")
    code, status, _ = await call("DELETE", f"{CONFIG_MAPS}/verbs")
    assert (code, status["status"]) == (200, "Success")
    assert (await call("GET", f"{CONFIG_MAPS}/verbs"))[0] == 404


async def test_generated_names_dry_runs_and_unknown_fields(server: RunningServer) -> None:
    call = Caller(server)
    code, made, _ = await call("POST", CONFIG_MAPS, {"metadata": {"generateName": "gen-"}})
    assert code == 201
    assert made["metadata"]["name"].startswith("gen-")
    assert len(made["metadata"]["name"]) == 9
    code, made, _ = await call("POST", f"{CONFIG_MAPS}?dryRun=All", config_map("dry"))
    assert code == 201
    assert "resourceVersion" not in made["metadata"]
    assert (await call("GET", f"{CONFIG_MAPS}/dry"))[0] == 404
    wrong = machine("typo", runStrateggy="Always")
    path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
    code, status, _ = await call("POST", f"{path}?fieldValidation=Strict", wrong)
    assert code == 400
    assert 'unknown field "spec.runStrateggy"' in status["message"]
    code, _, headers = await call("POST", path, wrong)
    assert code == 201
    assert 'unknown field \\"spec.runStrateggy\\"' in headers["Warning"]


async def test_finalizers_hold_an_object_until_the_last_is_gone(server: RunningServer) -> None:
    call = Caller(server)
    held = config_map("held")
    held["metadata"]["finalizers"] = ["example.com/f"]
    await call("POST", CONFIG_MAPS, held)
    code, marked, _ = await call("DELETE", f"{CONFIG_MAPS}/held")
    assert code == 200
    assert marked["metadata"]["deletionTimestamp"]
    more = {"metadata": {"finalizers": ["example.com/f", "example.com/g"]}}
    assert (await call("PATCH", f"{CONFIG_MAPS}/held", more, **MERGE))[0] == 422
    assert (await call("PATCH", f"{CONFIG_MAPS}/held", {"metadata": {"finalizers": None}}, **MERGE))[0] == 200
    assert (await call("GET", f"{CONFIG_MAPS}/held"))[0] == 404


async def test_pages_of_a_list_come_from_one_snapshot(server: RunningServer) -> None:
    call = Caller(server)
    await call("POST", "/api/v1/namespaces", {"metadata": {"name": "pages"}})
    path = "/api/v1/namespaces/pages/configmaps"
    for name in "abc":
        await call("POST", path, config_map(name))
    _, first, _ = await call("GET", f"{path}?limit=2")
    await call("POST", path, config_map("d"))
    await call("DELETE", f"{path}/c")
    _, second, _ = await call("GET", f"{path}?limit=2&continue={first['metadata']['continue']}")
    assert [item["metadata"]["name"] for item in first["items"] + second["items"]] == ["a", "b", "c"]
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        yield json.loads(line)


async def test_a_watch_tells_every_change_once_and_in_order(server: RunningServer) -> None:
    call = Caller(server)
    await call("POST", "/api/v1/namespaces", {"metadata": {"name": "watched"}})
    path = "/api/v1/namespaces/watched/configmaps"
    _, made, _ = await call("POST", path, {**config_map("w"), "metadata": {"name": "w", "labels": {"x": "1"}}})
    version = made["metadata"]["resourceVersion"]
    query = f"?watch=true&resourceVersion={version}&timeoutSeconds=2&labelSelector=x%3D1"
    async with aiohttp.ClientSession() as session:
        async with session.get(server.url + path + query, ssl=server.ssl) as response:
            for value in ("1", "2"):
                await call("PATCH", f"{path}/w", {"metadata": {"labels": {"x": value}}, "data": {"v": value}}, **MERGE)
            await call("PATCH", f"{path}/w", {"metadata": {"labels": {"x": "1"}}}, **MERGE)
            await call("DELETE", f"{path}/w")
            events = [event async for event in _lines(response)]
    assert [event["type"] for event in events] == ["MODIFIED", "DELETED", "ADDED", "DELETED"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(set(versions))


async def test_a_watch_list_ends_its_first_part_with_a_bookmark(server: RunningServer) -> None:
    call = Caller(server)
    await call("POST", CONFIG_MAPS, config_map("listed"))
    query = (
        "?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    )
    async with aiohttp.ClientSession() as session:
        async with session.get(server.url + CONFIG_MAPS + query, ssl=server.ssl) as response:
            events = [event async for event in _lines(response)]
    assert events[0]["type"] == "ADDED"
    assert events[-1]["type"] == "BOOKMARK"
    assert events[-1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_a_browser_watches_over_a_websocket(server: RunningServer) -> None:
    url = server.url.replace("https", "wss") + CONFIG_MAPS + "?watch=1&resourceVersion=0&timeoutSeconds=1"
    await Caller(server)("POST", CONFIG_MAPS, config_map("browser"))
    protocol: Any = "base64.binary.k8s.io"
    async with websockets.connect(url, ssl=server.ssl, subprotocols=[protocol]) as socket:
        assert socket.subprotocol == protocol
        assert json.loads(await socket.recv())["type"] == "ADDED"


async def test_nobody_is_let_in_unknown_and_a_bad_token_is_never_anonymous(server: RunningServer) -> None:
    anonymous = Caller(server, server.anonymous())
    assert (await anonymous("GET", "/livez"))[:2] == (200, "ok")
    assert (await anonymous("GET", "/version"))[0] == 200
    code, status, _ = await anonymous("GET", CONFIG_MAPS)
    assert (code, status["reason"]) == (403, "Forbidden")
    assert (await anonymous("GET", "/livez", Authorization="Bearer x"))[0] == 401
    stranger = ssl.create_default_context()
    with pytest.raises(aiohttp.ClientError):
        await Caller(server, stranger)("GET", "/version")


async def test_service_account_tokens_carry_rights_and_die_with_the_account(server: RunningServer) -> None:
    admin = Caller(server)
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    await admin("POST", accounts, {"metadata": {"name": "robot"}})
    rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
    subject = {"kind": "ServiceAccount", "name": "robot", "namespace": "default"}
    binding = {
        "metadata": {"name": "robot-views"},
        "subjects": [subject],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
    }
    assert (await admin("POST", f"{rbac}/rolebindings", binding))[0] == 201
    _, made, _ = await admin("POST", f"{accounts}/robot/token", {"spec": {"expirationSeconds": 600}})
    robot = Caller(server, server.anonymous(), Authorization=f"Bearer {made['status']['token']}")
    review = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    _, who, _ = await robot("POST", review, {})
    assert who["status"]["userInfo"]["username"] == "system:serviceaccount:default:robot"
    assert (await robot("GET", CONFIG_MAPS))[0] == 200
    assert (await robot("GET", "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"))[0] == 200
    assert (await robot("GET", "/api/v1/namespaces/default/secrets"))[0] == 403
    assert (await robot("POST", CONFIG_MAPS, config_map("no")))[0] == 403
    await admin("DELETE", f"{accounts}/robot")
    assert (await robot("GET", CONFIG_MAPS))[0] == 401


async def test_a_right_in_one_namespace_reaches_no_other(server: RunningServer) -> None:
    admin = Caller(server)
    rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
    rule = {"verbs": ["*"], "apiGroups": [""], "resources": ["*"]}
    await admin("POST", f"{rbac}/roles", {"metadata": {"name": "here"}, "rules": [rule]})
    await admin("POST", f"{rbac}/rolebindings", {
        "metadata": {"name": "here"}, "subjects": [{"kind": "User", "name": "eve"}],
        "roleRef": {"kind": "Role", "name": "here"},
    })  # fmt: skip
    eve = Caller(server, server.context("eve"))
    assert (await eve("GET", CONFIG_MAPS))[0] == 200
    assert (await eve("GET", "/api/v1/namespaces/kube-system/configmaps"))[0] == 403
    assert (await eve("GET", "/api/v1/configmaps"))[0] == 403
    for path in ("namespaces", "namespaces/kube-system", "nodes", "persistentvolumes"):
        assert (await eve("GET", f"/api/v1/namespaces/default/{path}"))[0] == 404
        assert (await eve("DELETE", f"/api/v1/namespaces/default/{path}"))[0] in (404, 405)
    assert (await eve("GET", "/api/v1/namespaces/default"))[0] == 200


async def test_nobody_grants_more_than_they_hold(server: RunningServer) -> None:
    admin = Caller(server)
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    for role in ({"verbs": ["*"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"]},):
        await admin(
            "POST", f"{rbac}/clusterroles", {"metadata": {"name": "half"}, "rules": [{**role, "verbs": ["create"]}]}
        )
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "half"}
    subjects = [{"kind": "User", "name": "mallory"}]
    await admin("POST", f"{rbac}/clusterrolebindings", {
        "metadata": {"name": "half"}, "subjects": subjects, "roleRef": reference,
    })  # fmt: skip
    mallory = Caller(server, server.context("mallory"))
    everything = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
    path = f"{rbac}/namespaces/default/roles"
    code, status, _ = await mallory("POST", path, {"metadata": {"name": "god"}, "rules": everything})
    assert code == 403
    assert "attempting to grant RBAC permissions not currently held" in status["message"]


async def test_a_host_reaches_its_own_machines_only(server: RunningServer) -> None:
    admin = Caller(server)
    instances = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances"
    for name, host in (("mine", "h1"), ("theirs", "h2")):
        await admin("POST", "/api/v1/namespaces/default/secrets", {"metadata": {"name": f"{name}-secret"}})
        volume = {"name": "c", "cloudInitNoCloud": {"secretRef": {"name": f"{name}-secret"}}}
        spec = {
            "domain": {"devices": {"disks": [{"name": "c", "disk": {"bus": "virtio"}}]}, "memory": {"guest": "64Mi"}},
            "volumes": [volume],
        }
        made = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {
            "name": name, "labels": {"kubevirt.io/nodeName": host}}, "spec": spec}  # fmt: skip
        made = await server.client.create(
            register.VIRTUAL_MACHINE_INSTANCE, {**made, "metadata": {**made["metadata"], "namespace": "default"}}
        )
        bound = {**made, "status": {**(made.get("status") or {}), "nodeName": host, "phase": "Scheduled"}}
        await server.client.update(register.VIRTUAL_MACHINE_INSTANCE, bound)
    agent = Caller(server, server.context("system:node:h1", ("system:nodes",)))
    secrets = "/api/v1/namespaces/default/secrets"
    assert (await agent("GET", f"{secrets}/mine-secret"))[0] == 200
    assert (await agent("GET", f"{secrets}/theirs-secret"))[0] == 403
    assert (await agent("GET", secrets))[0] == 403
    assert (await agent("GET", instances))[0] == 403
    code, listed, _ = await agent("GET", f"{instances}?labelSelector=kubevirt.io/nodeName%3Dh1")
    assert code == 200
    assert [item["metadata"]["name"] for item in listed["items"]] == ["mine"]
    running = {"status": {"phase": "Running"}}
    assert (await agent("PATCH", f"{instances}/mine", running, **MERGE))[0] == 200
    assert (await agent("PATCH", f"{instances}/theirs", running, **MERGE))[0] == 403
    grown = {"spec": {"domain": {"memory": {"guest": "1Gi"}}}}
    assert (await agent("PATCH", f"{instances}/mine", grown, **MERGE))[0] in (403, 422)
    assert (await agent("POST", "/api/v1/nodes", {"metadata": {"name": "h1"}}))[0] == 201
    assert (await agent("POST", "/api/v1/nodes", {"metadata": {"name": "h3"}}))[0] == 403
    assert (await agent("DELETE", f"{instances}/mine"))[0] == 403
    group = "/apis/snapshot.storage.k8s.io/v1/namespaces/default/volumesnapshots"
    for name, host in (("mine", "h1"), ("theirs", "h2")):
        code, _, _ = await admin("POST", group, {
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": name, "annotations": {"stead.io/host": host}},
            "spec": {"source": {"persistentVolumeClaimName": name}},
        })  # fmt: skip
        assert code == 201
    ready = {"status": {"readyToUse": True}}
    assert (await agent("PATCH", f"{group}/mine/status", ready, **MERGE))[0] == 200
    assert (await agent("PATCH", f"{group}/theirs/status", ready, **MERGE))[0] == 403
    told = {"metadata": {"annotations": {"stead.io/indications": "Online"}}}
    assert (await agent("PATCH", f"{group}/mine", told, **MERGE))[0] == 200
    moved = {"metadata": {"annotations": {"stead.io/host": "h2"}}}
    assert (await agent("PATCH", f"{group}/mine", moved, **MERGE))[0] == 403
    assert (await agent("POST", group, {"metadata": {"name": "new"}}))[0] == 403


async def test_the_remote_client_does_all_verbs_and_watches(server: RunningServer) -> None:
    client = RemoteClient(load(server.kubeconfig))
    try:
        obj = {
            **config_map("remote", a="1"),
            "metadata": {"name": "remote", "namespace": "default", "labels": {"r": "1"}},
        }
        made = await client.create(register.CONFIG_MAP, obj)
        selection = Selection(namespace="default", labels="r=1")
        listed = await client.list(register.CONFIG_MAP, selection)
        assert [item["metadata"]["name"] for item in listed.items] == ["remote"]
        watch = client.watch(register.CONFIG_MAP, selection, listed.resource_version)
        waiting = asyncio.ensure_future(anext(aiter(watch)))
        await asyncio.sleep(0.2)
        patch = [{"op": "test", "path": "/metadata/resourceVersion", "value": made["metadata"]["resourceVersion"]},
                 {"op": "replace", "path": "/data/a", "value": "2"}]  # fmt: skip
        await client.patch(register.CONFIG_MAP, "default", "remote", patch)
        event = await asyncio.wait_for(waiting, 5)
        assert (event.type, event.object["data"]) == ("MODIFIED", {"a": "2"})
        with pytest.raises(ApiError) as refused:
            await client.patch(register.CONFIG_MAP, "default", "remote", patch)
        assert refused.value.code == 422
        await client.delete(register.CONFIG_MAP, "default", "remote")
        with pytest.raises(ApiError) as gone:
            await client.get(register.CONFIG_MAP, "default", "remote")
        assert gone.value.reason == "NotFound"
    finally:
        await client.close()


async def test_kubectl_applies_explains_and_waits(server: RunningServer) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed here")

    async def kubectl(*args: str, stdin: str = "") -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            "kubectl", "--kubeconfig", str(server.kubeconfig), "--cache-dir", str(server.directory / "cache"), *args,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        return process.returncode or 0, output.decode()

    manifest = json.dumps(machine("kube"))
    assert await kubectl("apply", "-f", "-", stdin=manifest) == (0, "virtualmachine.kubevirt.io/kube created\n")
    assert await kubectl("apply", "-f", "-", stdin=manifest) == (0, "virtualmachine.kubevirt.io/kube unchanged\n")
    changed = json.dumps(machine("kube", runStrategy="Manual"))
    assert await kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=changed) == (
        0,
        "virtualmachine.kubevirt.io/kube serverside-applied\n",
    )
    code, text = await kubectl("get", "vm", "kube")
    assert code == 0
    assert text.split()[:4] == ["NAME", "AGE", "STATUS", "READY"]
    code, text = await kubectl("explain", "vm.spec.runStrategy")
    assert code == 0
    assert "FIELD: runStrategy <string>" in text
    assert (await kubectl("create", "secret", "generic", "from-kubectl", "--from-literal=a=b"))[0] == 0
    assert (await kubectl("wait", "vm/kube", "--for=jsonpath={.spec.runStrategy}=Manual", "--timeout=10s"))[0] == 0
    assert await kubectl("delete", "vm", "kube") == (0, 'virtualmachine.kubevirt.io "kube" deleted\n')


async def _echo(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse(protocols=("plain.kubevirt.io",), max_msg_size=4 * 1024 * 1024)
    await socket.prepare(request)
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            if message.data == b"bye":
                break
            await socket.send_bytes(message.data)
    await socket.close(code=1000)
    return socket


async def test_streams_calls_and_uploads_reach_the_agent_of_the_machine() -> None:
    received: dict[str, Any] = {}

    async def change(request: web.Request) -> web.Response:
        received[request.match_info["what"]] = await request.read()
        return web.json_response({})

    async def upload(request: web.Request) -> web.Response:
        received["upload"] = await request.read()
        return web.json_response({})

    app = web.Application(client_max_size=64 * 1024 * 1024)
    base = "/v1/namespaces/{ns}/machines/{name}"
    app.router.add_get(f"{base}/console", _echo)
    app.router.add_put(base + "/{what}", change)
    app.router.add_put("/v1/volumes/{ns}/{pvc}/upload", upload)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        async with running_server() as server:
            await _exercise_agent(server, port, received)
    finally:
        await runner.cleanup()


async def _exercise_agent(server: RunningServer, port: int, received: dict[str, Any]) -> None:
    client = server.client
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "h1"}}
    await client.create(register.NODE, node)
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }
    await client.patch(register.NODE, None, "h1", {"status": status}, subresource="status")
    vmi = {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "guest", "namespace": "default"},
        "spec": {"domain": {"devices": {}, "memory": {"guest": "64Mi"}}},
    }  # fmt: skip
    made = await client.create(register.VIRTUAL_MACHINE_INSTANCE, vmi)
    running = {**made, "status": {**(made.get("status") or {}), "nodeName": "h1", "phase": "Running"}}
    await client.update(register.VIRTUAL_MACHINE_INSTANCE, running)
    base = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachineinstances"
    call = Caller(server)
    code, body, _ = await call("PUT", f"{base}/guest/pause", {})
    assert (code, body) == (202, "")
    assert "pause" in received
    url = server.url.replace("https", "wss") + base
    protocol: Any = "plain.kubevirt.io"
    async with websockets.connect(f"{url}/guest/console", ssl=server.ssl, subprotocols=[protocol]) as socket:
        assert socket.subprotocol == protocol
        block = bytes(range(256)) * 1024
        for _ in range(4):
            await socket.send(block)
            assert await asyncio.wait_for(socket.recv(), 10) == block
        await socket.send(b"bye")
        with pytest.raises(websockets.ConnectionClosed):
            await asyncio.wait_for(socket.recv(), 10)
        assert socket.close_code == 1000
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"{url}/nobody/console", ssl=server.ssl, subprotocols=[protocol])
    assert refused.value.response.status_code == 404
    assert json.loads(refused.value.response.body or b"")["reason"] == "NotFound"
    await _exercise_upload(server, received)


async def _exercise_upload(server: RunningServer, received: dict[str, Any]) -> None:
    call = Caller(server)
    annotations = {"volume.kubernetes.io/selected-node": "h1", "stead.io/volume-handle": "p/v"}
    claim = {
        "metadata": {"name": "disk", "namespace": "default", "annotations": annotations},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    await server.client.create(register.PERSISTENT_VOLUME_CLAIM, claim)
    request = {"metadata": {"name": "disk"}, "spec": {"pvcName": "disk"}}
    path = "/apis/upload.cdi.kubevirt.io/v1beta1/namespaces/default/uploadtokenrequests"
    code, made, _ = await call("POST", path, request)
    assert code == 201
    token = {"Authorization": f"Bearer {made['status']['token']}", "Content-Type": "application/octet-stream"}
    client = Caller(server, server.anonymous())
    image = base64.b64encode(bytes(5_000_000))
    code, _, _ = await client("POST", "/v1beta1/upload", image, **token)
    assert code == 200
    assert received["upload"] == image
    assert (await client("HEAD", "/v1beta1/upload-async"))[0] == 200
    assert (await client("POST", "/v1beta1/upload", image, Authorization="Bearer a.b.c"))[0] == 401
    assert (await client("POST", "/v1beta1/upload", image))[0] == 400
    form = b'--xx\r\nContent-Disposition: form-data; name="file"; filename="d"\r\n\r\nDISK\r\n--xx--\r\n'
    token["Content-Type"] = "multipart/form-data; boundary=xx"
    assert (await client("POST", "/v1beta1/upload-form", form, **token))[0] == 200
    assert received["upload"] == b"DISK"


async def test_the_audit_log_has_one_line_for_a_request_and_no_secrets(server: RunningServer) -> None:
    call = Caller(server)
    secret = {"metadata": {"name": "audited"}, "stringData": {"password": "hunter2-hunter2"}}
    _, _, headers = await call("POST", "/api/v1/namespaces/default/secrets", secret)
    text = ""
    for _ in range(50):
        text = (server.directory / "audit.log").read_text()
        if headers["Audit-Id"] in text:
            break
        await asyncio.sleep(0.1)
    lines = [json.loads(line) for line in text.splitlines() if headers["Audit-Id"] in line]
    assert len(lines) == 1
    assert lines[0]["objectRef"]["resource"] == "secrets"
    assert lines[0]["responseStatus"]["code"] == 201
    assert "hunter2" not in text
