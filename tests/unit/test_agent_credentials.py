"""Keys and passwords by the guest's agent: what is asked of it, what status tells, and a changed Secret arriving."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_agent_machine import World, condition

from stead.agent import credentials
from stead.agent.credentials import BASIC_COMMANDS, PASSWORD_COMMANDS, SSH_COMMANDS, commands_for, wanted
from stead.client.contract import Object
from stead.hypervisor.contract import DriverEvent
from stead.kinds import register

BY_AGENT = {"propagationMethod": {"qemuGuestAgent": {"users": ["ann", "bob"]}}}
KEYS: Object = {"sshPublicKey": {"source": {"secret": {"secretName": "keys"}}, **BY_AGENT}}
PASSWORDS: Object = {
    "userPassword": {"source": {"secret": {"secretName": "words"}}, "propagationMethod": {"qemuGuestAgent": {}}}
}


def encoded(**data: str) -> Object:
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}}


def instance(*declared: Object) -> Object:
    return {"metadata": {"name": "web", "namespace": "ns"}, "spec": {"accessCredentials": list(declared)}}


def test_each_user_gets_the_keys_of_all_its_secrets_once_and_passwords_by_their_names() -> None:
    more = {"sshPublicKey": {**KEYS["sshPublicKey"], "source": {"secret": {"secretName": "more"}}}}
    secrets = {"keys": encoded(a="ssh-a\n# a comment\nssh-b"), "more": encoded(a="ssh-b"), "words": encoded(ann="x")}
    commands = commands_for(wanted(instance(KEYS, more, PASSWORDS)), secrets)
    assert commands == [
        ("guest-set-user-password", {"username": "ann", "password": "eA==", "crypted": False}),
        ("guest-ssh-add-authorized-keys", {"username": "ann", "keys": ["ssh-a", "ssh-b"], "reset": True}),
        ("guest-ssh-add-authorized-keys", {"username": "bob", "keys": ["ssh-a", "ssh-b"], "reset": True}),
    ]


def test_keys_that_go_by_cloud_init_are_none_of_the_agents() -> None:
    by_seed = {"source": {"secret": {"secretName": "keys"}}, "propagationMethod": {"noCloud": {}}}
    assert wanted(instance({"sshPublicKey": by_seed})) == ()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.agent.open()
    yield world
    await world.agent.close()


def can(*commands: str) -> Object:
    return {"version": "8.0", "supported_commands": [{"name": name, "enabled": True} for name in commands]}


def given_keys(world: World, user: str) -> list[Any]:
    named = [a for c, a in world.hypervisor.agent_requests if c == "guest-ssh-add-authorized-keys"]
    return [arguments["keys"] for arguments in named if arguments["username"] == user]


@pytest.mark.skipif(os.geteuid() != 0, reason="the agent gives files to machines' uids, which takes root")
async def test_a_changed_secret_reaches_the_running_guest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(credentials, "RETRY_SECONDS", 0.05)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "namespace": "ns"}}
    answers = world.hypervisor.agent_answers
    answers["guest-info"] = can(*BASIC_COMMANDS, *PASSWORD_COMMANDS)
    uid = (await world.create(accessCredentials=[KEYS]))["metadata"]["uid"]
    await world.running()
    world.hypervisor.change(uid, agent_connected=True)
    vmi = await world.until(lambda v: condition(v, "AccessCredentialsSynchronized") is not None)
    assert "Secret keys does not exist" in condition(vmi, "AccessCredentialsSynchronized")["message"]  # type: ignore[index]
    vmi = await world.until(lambda v: condition(v, "AgentVersionNotSupported") is not None)
    unsupported = condition(vmi, "AgentVersionNotSupported")
    assert unsupported is not None
    assert "public key commands" in unsupported["reason"]

    answers["guest-info"] = can(*BASIC_COMMANDS, *SSH_COMMANDS)
    answers["guest-ssh-add-authorized-keys"] = {}
    world.hypervisor.change(uid, agent_connected=False)
    await world.until(lambda v: condition(v, "AgentConnected") is None)
    world.hypervisor.change(uid, agent_connected=True)
    await world.client.create(register.SECRET, secret | encoded(a="ssh-one"))

    def synchronized(vmi: Object) -> bool:
        found = condition(vmi, "AccessCredentialsSynchronized")
        return found is not None and found["status"] == "True"

    vmi = await world.until(synchronized)
    await world.until(lambda v: condition(v, "AgentVersionNotSupported") is None)
    assert given_keys(world, "ann") == given_keys(world, "bob") == [["ssh-one"]]
    await world.client.patch(register.SECRET, "ns", "keys", encoded(a="ssh-two"))
    await world.until(lambda _: given_keys(world, "bob")[-1] == ["ssh-two"])
    assert len(given_keys(world, "ann")) == 2  # nothing is written again while nothing changes
    world.hypervisor.say(DriverEvent(uid=uid, kind="lifecycle"))
