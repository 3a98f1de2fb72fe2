"""`/auth/login` and `/auth/logout`: a session for a user's password.

Called by `app` before authentication. Login takes `{"username", "password"}` as JSON and answers with a cookie for a
browser; with `"token": true` it answers with the token instead, for programs. What is kept is the token's SHA-256, in a
Secret. Wrong name and wrong password are the same 401, take the same time, and are counted (`passwords.Attempts`); the
body is read up to `MAX_BODY` only. Pages of other origins are refused.
"""

from __future__ import annotations

import asyncio
import datetime
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from stead.kinds import accounts, register
from stead.kinds.accounts import Account, Login
from stead.kube import meta
from stead.kube.errors import ApiError
from stead.server.answer import Answer, json_answer
from stead.server.authn import Reader, unauthorized
from stead.server.bodies import Disconnected, media_type
from stead.server.local import LocalVerbs
from stead.server.passwords import Attempts, Checks
from stead.server.users import COOKIE, Users, is_own_origin, session_cookie

if TYPE_CHECKING:
    from stead.server.exchange import Exchange

SESSION_SECONDS = 12 * 3600
MAX_BODY = 4096
BODY_SECONDS = 10.0
#: sessions that a user may have; the oldest ends when one more begins
MAX_SESSIONS = 20
_GONE = f"{COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0"


class _Given(msgspec.Struct, forbid_unknown_fields=True):
    username: str
    password: str
    token: bool = False


class Logins:
    """See the module's prose."""

    def __init__(self, verbs: Callable[[], LocalVerbs], reader: Reader, clock: Callable[[], float] = time.time) -> None:
        self._verbs = verbs
        self._reader = reader
        self._users = Users(reader, clock)
        self._clock = clock
        self._checks = Checks()
        self._attempts = Attempts(time.monotonic)

    async def handle(self, exchange: Exchange) -> Answer:
        """Answer a request for one of `app.LOGIN_PATHS`. Raises 400, 401, 403, 405, 413, 415, 429."""
        if exchange.request.method != "POST" or exchange.scope["type"] != "http":
            raise ApiError("MethodNotAllowed", "the server does not allow this method on the requested resource", {})
        if not is_own_origin(exchange.headers, required=False):
            raise ApiError("Forbidden", "the page that asks is not of this server", {})
        if exchange.request.path.rstrip("/") == "/auth/logout":
            return await self._logout(exchange)
        return await self._login(exchange)

    async def _login(self, exchange: Exchange) -> Answer:
        if media_type(exchange.headers) != "application/json":
            raise ApiError("UnsupportedMediaType", "a login is application/json")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _body(exchange)
            given = msgspec.json.decode(body, type=_Given)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ApiError("BadRequest", 'a login is {"username": "…", "password": "…"}') from None
        address = str((exchange.scope.get("client") or ("",))[0])
        self._attempts.begin(given.username, address)
        account = self._users.account(given.username)
        right = await self._checks.is_right(given.password, account.password if account else "")
        if not right or account is None:
            raise unauthorized()
        self._attempts.passed(given.username, address)
        token, expires = await self._begin(account)
        exchange.user = self._users.from_session(token)
        moment = datetime.datetime.fromtimestamp(expires, datetime.UTC)
        told = {"user": exchange.user.info(), "expirationTimestamp": meta.format_time(moment)}
        if given.token:
            return _private(json_answer({**told, "token": token}))
        answer = _private(json_answer(told))
        cookie = f"{COOKIE}={token}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={SESSION_SECONDS}"
        answer.headers = [*answer.headers, ("Set-Cookie", cookie)]
        return answer

    async def _begin(self, account: Account) -> tuple[str, int]:
        """A new session: (token, Unix time of its end). Sessions that ended, and too many of one user's, go."""
        token, expires = accounts.SESSION_PREFIX + secrets.token_urlsafe(32), int(self._clock()) + SESSION_SECONDS
        mine: list[tuple[int, str]] = []
        for secret in self._reader.peek_all(register.SECRET, accounts.NAMESPACE):
            known = accounts.login_from(secret)
            if known is None:
                continue
            if known.expires <= self._clock():
                await self._end(secret["metadata"]["name"])
            elif known.user == account.name:
                mine.append((known.expires, secret["metadata"]["name"]))
        for _, name in sorted(mine)[: max(0, len(mine) - MAX_SESSIONS + 1)]:
            await self._end(name)
        login = Login(account.name, accounts.state_of(account), expires, accounts.token_digest(token))
        await self._verbs().create(register.SECRET, accounts.session_object(login))
        return token, expires

    async def _end(self, name: str) -> None:
        try:
            await self._verbs().delete(register.SECRET, accounts.NAMESPACE, name, {})
        except ApiError as error:
            if error.reason != "NotFound":
                raise

    async def _logout(self, exchange: Exchange) -> Answer:
        scheme, _, value = exchange.headers.get("authorization", "").partition(" ")
        token = value.strip() if scheme.lower() == "bearer" else session_cookie(exchange.headers)
        exchange.user = self._users.from_session(token)
        await self._end(accounts.session_object_name(accounts.token_digest(token)))
        answer = _private(json_answer({"user": exchange.user.info()}))
        answer.headers = [*answer.headers, ("Set-Cookie", _GONE)]
        return answer


def _private(answer: Answer) -> Answer:
    answer.headers = [*answer.headers, ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
    return answer


async def _body(exchange: Exchange) -> bytes:
    """The body of somebody who is not known yet: small, or refused."""
    body = b""
    while True:
        message = await exchange.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk: bytes = message.get("body", b"")
        body += chunk
        if len(body) > MAX_BODY:
            raise ApiError("RequestEntityTooLarge", f"Request entity too large: limit is {MAX_BODY}", {})
        if not message.get("more_body"):
            return body
