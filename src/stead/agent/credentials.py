"""SSH keys and passwords that a running guest gets through its agent, and gets anew when their Secret changes.

One `Credentials` a machine; its background task exists only while an instance declares such credentials and its guest's
agent is connected. The node authorizer lets a host read single Secrets and not watch them, so they are read again every
minute, as kubelet does. Deciding is pure (`wanted`, `commands_for`); guest agent commands are those of QEMU's
`qga/qapi-schema.json`. The outcome becomes the condition AccessCredentialsSynchronized.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from stead.agent import guestdata
from stead.agent import vmi as reading
from stead.agent.lookups import Lookups
from stead.agent.prepared import NotReady
from stead.agent.trouble import API_TROUBLE
from stead.hypervisor.contract import DriverError

Object = dict[str, Any]
Ask = Callable[[str, Object | None], Awaitable[Any]]

#: how often Secrets are read again, and how soon a failure is tried again
CHECK_SECONDS = 60.0
RETRY_SECONDS = 10.0
#: bounds of what one Secret may put into a guest
MAX_KEYS = 256

SSH_COMMANDS = ("guest-ssh-get-authorized-keys", "guest-ssh-add-authorized-keys", "guest-ssh-remove-authorized-keys")
PASSWORD_COMMANDS = ("guest-set-user-password",)
#: what KubeVirt needs of any agent
BASIC_COMMANDS = (
    "guest-ping", "guest-get-time", "guest-info", "guest-shutdown", "guest-network-get-interfaces",
    "guest-get-fsinfo", "guest-get-host-name", "guest-get-users", "guest-get-timezone", "guest-get-osinfo",
)  # fmt: skip


class Declared(msgspec.Struct, frozen=True):
    """An entry of `accessCredentials` that goes by the agent. `users` is empty for passwords: the Secret names them."""

    secret: str
    users: tuple[str, ...] = ()


class Synced(msgspec.Struct, frozen=True):
    """Whether the guest has what is declared; `message` says what failed."""

    done: bool
    message: str = ""


def wanted(vmi: Object) -> tuple[Declared, ...]:
    """What the instance declares for the agent, in its order."""
    found = []
    for entry in reading.spec(vmi).get("accessCredentials") or []:
        ssh, password = entry.get("sshPublicKey") or {}, entry.get("userPassword") or {}
        by_agent = (ssh.get("propagationMethod") or {}).get("qemuGuestAgent")
        if by_agent is not None:
            users = tuple(str(user) for user in by_agent.get("users") or [])
            found.append(Declared(_secret_of(ssh), users))
        elif password:
            found.append(Declared(_secret_of(password)))
    return tuple(found)


def _secret_of(credential: Object) -> str:
    return str(((credential.get("source") or {}).get("secret") or {}).get("secretName") or "")


def missing_commands(vmi: Object, commands: tuple[str, ...]) -> str:
    """Why the guest's agent does not suffice, in KubeVirt's words; "" when it does, or has not said what it can."""
    if not commands:
        return ""
    declared = wanted(vmi)
    known = set(commands)
    if not known.issuperset(BASIC_COMMANDS):
        return "This guest agent doesn't support required basic commands"
    if any(entry.users for entry in declared) and not known.issuperset(SSH_COMMANDS):
        return "This guest agent doesn't support required public key commands"
    if any(not entry.users for entry in declared) and not known.issuperset(PASSWORD_COMMANDS):
        return "This guest agent doesn't support required password commands"
    return ""


def commands_for(declared: tuple[Declared, ...], secrets: Mapping[str, Object]) -> list[tuple[str, Object]]:
    """Guest agent commands that make the guest's credentials equal to the declared ones.

    A user's keys are those of all Secrets that name the user; keys that no Secret has any more are dropped, since the
    whole file is replaced.
    """
    keys: dict[str, list[str]] = {}
    commands: list[tuple[str, Object]] = []
    for entry in declared:
        for user in entry.users:
            keys.setdefault(user, []).extend(guestdata.ssh_keys_of(secrets[entry.secret]))
        if entry.users:
            continue
        for user, password in sorted(guestdata.data_of(secrets[entry.secret]).items()):
            text = base64.b64encode(password).decode()
            commands.append(("guest-set-user-password", {"username": user, "password": text, "crypted": False}))
    for user, lines in keys.items():
        arguments = {"username": user, "keys": list(dict.fromkeys(lines))[:MAX_KEYS], "reset": True}
        commands.append(("guest-ssh-add-authorized-keys", arguments))
    return commands


class Credentials:
    """See the module's prose. `state` is None while there is nothing to say; `changed` is called when it changes."""

    def __init__(self, ask: Ask, lookups: Lookups, changed: Callable[[], None]) -> None:
        self._ask = ask
        self._lookups = lookups
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._applied: list[tuple[str, Object]] = []
        self.state: Synced | None = None

    def connected(self, vmi: Object) -> None:
        """The guest's agent answers (again)."""
        if wanted(vmi) and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run(vmi), name="access credentials")

    def disconnected(self) -> None:
        """The agent is gone; a guest that boots again gets everything again."""
        if self._task is not None:
            self._task.cancel()
        self._task, self._applied = None, []

    async def close(self) -> None:
        """End background work."""
        task = self._task
        self.disconnected()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, vmi: Object) -> None:
        namespace, declared = reading.namespace(vmi), wanted(vmi)
        while True:
            state = await self._synchronise(namespace, declared)
            if state != self.state:
                self.state = state
                self._changed()
            await asyncio.sleep(CHECK_SECONDS if state.done else RETRY_SECONDS)

    async def _synchronise(self, namespace: str, declared: tuple[Declared, ...]) -> Synced:
        try:
            secrets = {entry.secret: await self._lookups.secret(namespace, entry.secret) for entry in declared}
            commands = commands_for(declared, secrets)
            for command, arguments in commands:
                if (command, arguments) not in self._applied:
                    await self._ask(command, arguments)
            self._applied = commands
        except (NotReady, ValueError, DriverError, *API_TROUBLE) as error:
            return Synced(False, str(error) or type(error).__name__)
        return Synced(True)
