"""The audit log at every level: what a policy asks for is there, and planted secrets are nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from tests.api_server import RunningServer, running_server

from stead.server.audit import AuditLog, Entry
from stead.server.audit_policy import Policy, PolicyError, Rule, load
from stead.server.authn import User
from stead.server.request import request_from

Object = dict[str, Any]

POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- {level: None, verbs: [watch]}
- {level: None, resources: [{group: coordination.k8s.io, resources: [leases]}]}
- {level: Metadata, namespaces: [kube-system]}
- {level: Request, verbs: [create], resources: [{group: "", resources: [configmaps]}]}
- {level: RequestResponse}
"""
PLANTED = "hunter2-planted-secret"


def policy(tmp_path: Path, text: str = POLICY) -> Policy:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return load(path)


def lines(server: RunningServer) -> list[Object]:
    return [json.loads(line) for line in (server.directory / "audit.log").read_text().splitlines()]


async def send(server: RunningServer, method: str, path: str, body: Any = None, **headers: str) -> Object:
    async with aiohttp.ClientSession() as session:
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        async with session.request(method, server.url + path, data=data, headers=headers, ssl=server.ssl) as answer:
            text = await answer.read()
            return json.loads(text) if text.startswith(b"{") else {}


def machine(name: str) -> Object:
    return {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": name, "annotations": {"kubectl.kubernetes.io/last-applied-configuration": PLANTED}},
        "spec": {"runStrategy": "Halted", "template": {"spec": {
            "domain": {"devices": {"disks": [{"name": "c", "disk": {}}]}, "memory": {"guest": "64Mi"}},
            "volumes": [{"name": "c", "cloudInitNoCloud": {"userData": f"password: {PLANTED}"}}],
        }}},
    }  # fmt: skip


async def test_levels_follow_the_rules_and_planted_secrets_are_nowhere(tmp_path: Path) -> None:
    core, virt = "/api/v1/namespaces/default", "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
    async with running_server(audit=True, audit_policy=policy(tmp_path)) as server:
        token = jwt.encode({"sub": PLANTED}, PLANTED * 3, algorithm="HS256")
        secret = {"metadata": {"name": "s"}, "stringData": {"password": PLANTED}}
        await send(server, "POST", f"{core}/secrets", secret)
        await send(server, "GET", f"{core}/secrets/s")
        await send(server, "PATCH", f"{core}/secrets/s", {"stringData": {"a": PLANTED}},
                   Content_Type="application/merge-patch+json")  # fmt: skip
        await send(server, "POST", virt, machine("vm"))
        step = {"op": "replace", "path": "/spec/template/spec/volumes/0/cloudInitNoCloud/userData", "value": PLANTED}
        await send(server, "PATCH", f"{virt}/vm", [step], Content_Type="application/json-patch+json")
        await send(server, "POST", f"{core}/serviceaccounts", {"metadata": {"name": "robot"}})
        made = await send(server, "POST", f"{core}/serviceaccounts/robot/token", {"spec": {}})
        granted = made["status"]["token"]
        review = {"spec": {"token": granted}}
        await send(server, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)
        await send(server, "GET", f"{core}/configmaps?token={PLANTED}&note={token}", Authorization=f"Bearer {token}")
        await send(server, "POST", f"{core}/configmaps", {"metadata": {"name": "seen"}, "data": {"a": "kept"}})
        await send(server, "POST", "/v1beta1/upload", b"x", Authorization=f"Bearer {granted}")
        await send(server, "GET", "/api/v1/namespaces/kube-system/configmaps")
        server.api.audit.close()
        text = (server.directory / "audit.log").read_text()
        assert PLANTED not in text
        for piece in (granted, token, granted.split(".")[2]):
            assert piece not in text
        by_uri = {(event["verb"], event["requestURI"].partition("?")[0]): event for event in lines(server)}
    levels = {key: event["level"] for key, event in by_uri.items()}
    assert levels["create", f"{core}/secrets"] == levels["get", f"{core}/secrets/s"] == "Metadata"
    assert levels["create", f"{core}/serviceaccounts/robot/token"] == "Metadata"
    assert levels["list", "/api/v1/namespaces/kube-system/configmaps"] == "Metadata"
    kept = by_uri["create", f"{core}/configmaps"]
    assert kept["requestObject"]["data"] == {"a": "kept"}
    assert "responseObject" not in kept
    whole = by_uri["create", virt]
    assert whole["responseObject"]["metadata"]["uid"]
    assert whole["requestObject"]["spec"]["runStrategy"] == "Halted"


def entry(path: str = "/api/v1/namespaces/a/configmaps", user: str = "eve") -> Entry:
    return Entry(audit_id="1", request=request_from("GET", path, ""), user=User(user))


def test_rules_match_users_verbs_kinds_and_paths_and_the_first_decides() -> None:
    rules = Policy(rules=(
        Rule(level="None", users=("quiet",)),
        Rule(level="Request", verbs=("get",), non_resource_urls=("/api*",)),
        Rule(level="Metadata", namespaces=("a",)),
    ))  # fmt: skip

    def level(path: str, user: str) -> str:
        return rules.level(request_from("GET", path, ""), User(user))

    assert level("/api/v1/namespaces/a/configmaps", "quiet") == "None"
    assert level("/api/v1/namespaces/a/configmaps", "eve") == "Metadata"
    assert level("/api/v1/namespaces/b/configmaps", "eve") == "None"
    assert level("/apis", "eve") == "Metadata"


@pytest.mark.parametrize("text", ["rules: [{level: All}]", "rules: [{level: None, stages: []}]", "{", "rules: 1"])
def test_a_policy_that_cannot_be_followed_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(PolicyError, match=r"audit_policy .*policy.yaml"):
        policy(tmp_path, text)


def test_files_rotate_by_size_and_every_line_stays_whole(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log", max_bytes=4096)
    for _ in range(60):
        log.write(entry())
    log.close()
    files = sorted(tmp_path.glob("audit.log*"))
    assert len(files) == 5
    assert all(file.stat().st_size <= 5120 for file in files)
    assert all(json.loads(line)["verb"] == "list" for file in files for line in file.read_text().splitlines())
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
