"""`stead user` and `stead login` against a real server: who gets in, and who no longer does once removed."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml
from click.testing import CliRunner, Result

from api_server import RunningServer, running_server
from oidc_issuer import CLIENT_ID, Issuer, running_issuer
from stead.cli.main import main
from stead.client.kubeconfig import Credentials, load, tls_context
from stead.kinds import accounts, register
from stead.server import passwords
from stead.server.oidc import OidcSettings
from stead.server.users import COOKIE

pytestmark = pytest.mark.asyncio(loop_scope="module")
REVIEW = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
MAPS = "/api/v1/namespaces/default/configmaps"
PASSWORD = "correct horse battery"


class World:
    """A server, its issuer, and the `stead` command on its host."""

    def __init__(self, server: RunningServer, issuer: Issuer, folder: Path) -> None:
        self.server, self.issuer, self.folder = server, issuer, folder
        (folder / "state").mkdir()
        (folder / "state" / "plane").symlink_to(server.directory)
        shutil.copy(server.authority.certificate, folder / "state" / "ca.crt")
        self.ca = str(folder / "state" / "ca.crt")
        self.environ = {"STEAD_STATE_DIR": str(folder / "state"), "STEAD_RUN_DIR": str(folder / "run"),
                        "STEAD_LISTEN_PORT": str(server.port), "KUBECONFIG": str(server.kubeconfig)}  # fmt: skip

    async def stead(self, *words: str, given: str = "") -> Result:
        run = CliRunner().invoke
        return await asyncio.to_thread(run, main, words, input=given, env=self.environ)

    async def user_kubeconfig(self, name: str, *words: str) -> Path:
        path = self.folder / f"{name}.kubeconfig"
        result = await self.stead("user", "add", name, *words, "-o", str(path))
        assert result.exit_code == 0, result.output
        return path

    async def whoami(self, kubeconfig: Path) -> tuple[int, dict[str, Any]]:
        endpoint = load(kubeconfig)
        token = await Credentials(endpoint).token()
        context = tls_context(endpoint)
        assert context is not None
        code, body, _ = await self.call(
            "POST", REVIEW, "{}", context, **({"Authorization": f"Bearer {token}"} if token else {})
        )
        return code, body.get("status", {}).get("userInfo", body) if code == 201 else body

    async def call(
        self, method: str, path: str, body: str | None = None, context: ssl.SSLContext | None = None, **headers: str
    ) -> tuple[int, Any, Any]:
        named = {"Content-Type": "application/json", **headers}
        async with (
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.request(
                method, self.server.url + path, data=body, headers=named, ssl=context or self.server.anonymous()
            ) as response,
        ):
            return response.status, await response.json(content_type=None), response.headers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with running_issuer() as issuer:
        oidc = OidcSettings(issuer=issuer.url, client_id=CLIENT_ID, username_prefix="corp:", ca=str(issuer.ca))
        async with running_server(oidc=oidc) as server:
            yield World(server, issuer, tmp_path_factory.mktemp("users"))


async def test_a_user_gets_in_until_removed_and_a_namesake_revives_nothing(world: World) -> None:
    first = await world.user_kubeconfig("alice", "--group", "developers", "--group", "ops")
    assert first.stat().st_mode & 0o777 == 0o600
    code, user = await world.whoami(first)
    assert (code, user["username"]) == (201, "alice")
    assert user["groups"] == ["developers", "ops", "system:authenticated"]
    assert "alice developers,ops certificate" in " ".join((await world.stead("user", "list")).output.split())
    again = await world.stead("user", "add", "alice")
    assert again.exit_code == 1
    assert "user alice exists" in again.output
    assert (await world.stead("user", "remove", "alice")).exit_code == 0
    assert (await world.whoami(first))[0] == 401
    first = first.rename(world.folder / "first.kubeconfig")
    second = await world.user_kubeconfig("alice")
    assert (await world.whoami(second))[1]["groups"] == ["system:authenticated"]
    assert (await world.whoami(first))[0] == 401
    assert (await world.stead("user", "remove", "nobody")).exit_code == 1
    await world.stead("user", "remove", "alice")


@pytest.mark.parametrize(("name", "group"), [("system:admin", "a"), ("", "a"), ("bob", "a,b"), ("b b", "a")])
async def test_names_that_could_be_taken_for_something_else_are_refused(world: World, name: str, group: str) -> None:
    result = await world.stead("user", "add", name, "--group", group)
    assert result.exit_code == 1
    assert "letters, digits" in result.output


async def test_a_password_becomes_a_session_in_the_kubeconfig(world: World) -> None:
    result = await world.stead("user", "add", "bob", "--password-stdin", "--group", "ops", given=f"{PASSWORD}\n")
    assert result.exit_code == 0, result.output
    target = world.folder / "bob.kubeconfig"
    target.write_text(yaml.safe_dump({"clusters": [{"name": "mine", "cluster": {"server": "https://elsewhere"}}]}))
    login = ("--kubeconfig", str(target), "login", "--server", world.server.url, "--ca", world.ca, "--user", "bob",
             "--password-stdin")  # fmt: skip
    wrong = await world.stead(*login, given="guess\n")
    assert (wrong.exit_code, "wrong user or password" in wrong.output) == (1, True)
    assert "current-context" not in target.read_text(), "nothing was written"
    done = await world.stead(*login, given=f"{PASSWORD}\n")
    assert done.exit_code == 0, done.output
    assert "elsewhere" in target.read_text(), "what others wrote there stays"
    code, user = await world.whoami(target)
    assert (code, user["username"], user["groups"]) == (201, "bob", ["ops", "system:authenticated"])
    assert PASSWORD not in str(await world.server.client.list(register.SECRET)), "no password is kept"
    changed = await world.stead("user", "password", "bob", "--password-stdin", given="another one 1\n")
    assert changed.exit_code == 0, changed.output
    assert (await world.whoami(target))[0] == 401, "sessions end with the password they began with"
    assert (await world.stead("user", "remove", "bob")).exit_code == 0


async def test_the_device_flow_and_a_given_token_log_in_too(world: World) -> None:
    target = world.folder / "carol.kubeconfig"
    world.issuer.person = {"sub": "carol"}
    common = ("--kubeconfig", str(target), "login", "--server", world.server.url, "--ca", world.ca)
    result = await world.stead(
        *common, "--oidc-issuer", world.issuer.url, "--oidc-client-id", CLIENT_ID, "--oidc-ca", str(world.issuer.ca)
    )
    assert result.exit_code == 0, result.output
    assert "WDJB-MJHT" in result.output
    assert (await world.whoami(target))[1]["username"] == "corp:carol"
    result = await world.stead(*common, "--token", world.issuer.token(sub="dave"))
    assert result.exit_code == 0, result.output
    assert (await world.whoami(target))[1]["username"] == "corp:dave"
    assert (await world.stead(*common, "--token", "wrong")).exit_code == 1
    assert (await world.stead(*common)).exit_code == 2


async def test_a_login_that_can_be_renewed_goes_on_when_its_token_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer, target = world.issuer, world.folder / "erin.kubeconfig"
    monkeypatch.setattr(issuer, "refreshable", True)
    monkeypatch.setattr(issuer, "person", {"sub": "erin", "exp": int(time.time()) + 20})
    world.environ["XDG_STATE_HOME"] = str(world.folder / "xdg")
    result = await world.stead(
        "--kubeconfig", str(target), "login", "--server", world.server.url, "--ca", world.ca,
        "--oidc-issuer", issuer.url, "--oidc-client-id", CLIENT_ID, "--oidc-ca", str(issuer.ca),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert issuer.refresh_token not in target.read_text(), "a kubeconfig is handed on, a session is not"
    session = next((world.folder / "xdg" / "stead").glob("oidc-*.json"))
    assert session.stat().st_mode & 0o777 == 0o600
    # Many programs at once, and a refresh token that is good once: one of them renews, all get in.
    answers = await asyncio.gather(*(world.whoami(target) for _ in range(4)))
    assert [(code, user.get("username")) for code, user in answers] == [(201, "corp:erin")] * 4
    assert issuer.refreshes == 1
    if program := shutil.which("kubectl"):
        asked = await asyncio.create_subprocess_exec(
            program, "--kubeconfig", str(target), "auth", "whoami", stdout=asyncio.subprocess.PIPE
        )
        assert b"corp:erin" in (await asyncio.wait_for(asked.communicate(), 60))[0]
    issuer.refresh_token = "revoked"
    held = json.loads(session.read_text())
    session.write_text(json.dumps({**held, "id_token": issuer.token(sub="erin", exp=int(time.time()) - 5)}))
    refused = await world.stead("oidc-token", str(session))
    assert refused.exit_code == 1
    assert "token was used; run `stead login` again" in refused.output


async def browser_session(world: World, name: str) -> str:
    """The cookie of a browser that logged in."""
    result = await world.stead(
        "user", "add", name, "--password-stdin", "--group", "system:masters", given=f"{PASSWORD}\n"
    )
    assert result.exit_code == 0, result.output
    body = json.dumps({"username": name, "password": PASSWORD})
    code, told, headers = await world.call("POST", "/auth/login", body, Origin=world.server.url)
    assert code == 200
    cookie = headers["Set-Cookie"]
    for word in ("HttpOnly", "Secure", "SameSite=Strict", "Path=/"):
        assert word in cookie
    assert "token" not in told, "a page cannot read it"
    assert headers["Cache-Control"] == "no-store"
    return str(cookie.partition(";")[0])


async def test_a_browsers_cookie_counts_for_our_own_pages_only(world: World) -> None:
    cookie = await browser_session(world, "erin")
    assert cookie.startswith(COOKIE)
    body = json.dumps({"metadata": {"generateName": "a-"}})
    assert (await world.call("GET", MAPS, Cookie=cookie))[0] == 200
    assert (await world.call("POST", MAPS, body, Cookie=cookie, Origin=world.server.url))[0] == 201
    for origin in ({}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": world.server.url + "0"}):
        assert (await world.call("POST", MAPS, body, Cookie=cookie, **origin))[0] == 401, origin
    assert (await world.call("GET", MAPS, Cookie=cookie, Origin="https://evil.example"))[0] == 401
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    for origin in ({}, {"Origin": "https://evil.example"}):
        assert (await world.call("GET", f"{MAPS}?watch=1", Cookie=cookie, **upgrade, **origin))[0] == 401
    assert (await world.call("POST", "/auth/logout", Cookie=cookie, Origin="https://evil.example"))[0] == 403
    assert (await world.call("POST", "/auth/logout", Cookie=cookie, Origin=world.server.url))[0] == 200
    assert (await world.call("GET", MAPS, Cookie=cookie))[0] == 401
    await world.stead("user", "remove", "erin")


async def test_a_removed_users_session_ends(world: World) -> None:
    cookie = await browser_session(world, "frank")
    assert (await world.call("GET", MAPS, Cookie=cookie))[0] == 200
    await world.stead("user", "remove", "frank")
    assert (await world.call("GET", MAPS, Cookie=cookie))[0] == 401
    left = await world.server.client.list(register.SECRET)
    assert not [item for item in left.items if item.get("type") == accounts.SESSION_TYPE and "frank" in str(item)]


async def test_guessing_is_slowed_down_and_tells_nothing(world: World) -> None:
    await world.stead("user", "add", "grace", "--password-stdin", given=f"{PASSWORD}\n")
    answers = []
    for name in ("grace", "nobody-at-all"):
        body = json.dumps({"username": name, "password": "guess"})
        every = await asyncio.gather(*(world.call("POST", "/auth/login", body) for _ in range(8)))
        answers.append(sorted(code for code, _, _ in every))
        assert {found["message"] for code, found, _ in every if code == 401} == {"Unauthorized"}
    assert answers[0] == answers[1] == [401] * passwords.USER_FAILURES + [429] * (8 - passwords.USER_FAILURES)
    code, _, headers = await world.call("POST", "/auth/login", json.dumps({"username": "grace", "password": PASSWORD}))
    assert code == 429, "not even the right one, from there"
    assert 0 < int(headers["Retry-After"]) <= passwords.WINDOW_SECONDS + 1


@pytest.mark.parametrize(
    ("method", "body", "kind", "code"),
    [
        ("POST", "{", "application/json", 400),
        ("POST", '{"username": "a"}', "application/json", 400),
        ("POST", '{"username": "a", "password": 1}', "application/json", 400),
        ("POST", "x" * 5000, "application/json", 413),
        ("POST", "username=a&password=b", "application/x-www-form-urlencoded", 415),
        ("GET", None, "application/json", 405),
    ],
)
async def test_a_login_that_is_none_is_refused(
    world: World, method: str, body: str | None, kind: str, code: int
) -> None:
    assert (await world.call(method, "/auth/login", body, **{"Content-Type": kind}))[0] == code
