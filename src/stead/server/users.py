"""Users of `stead user`, as the authenticator sees them: whether a certificate or a session still counts.

Called by `authn` for each request; reads objects from memory, so a removed user is refused from the next request on.
Sessions reach us as bearer tokens or in a cookie. A cookie counts only for requests of our own pages: one that changes
something or opens a WebSocket must name our origin, which browsers always send there; the cookie itself is
`SameSite=Strict`, `HttpOnly` and `Secure`.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

from stead.kinds import accounts, register
from stead.kinds.accounts import Account
from stead.server.authn import AUTHENTICATED, Reader, User, unauthorized

#: the prefix makes browsers insist on Secure, Path=/ and no Domain
COOKIE = "__Host-stead-session"


class Users:
    """See the module's prose."""

    def __init__(self, reader: Reader, clock: Callable[[], float] = time.time) -> None:
        self._reader = reader
        self._clock = clock

    def account(self, name: str) -> Account | None:
        """The user of that name."""
        found = self._reader.peek(register.SECRET, accounts.NAMESPACE, accounts.user_object_name(name))
        account = accounts.account_from(found)
        return account if account is not None and account.name == name else None

    def from_certificate(self, name: str, uid: str) -> User:
        """The user of a certificate that `stead user` gave out for the object `uid`. Raises 401 once it is gone."""
        account = self.account(name)
        if account is None or account.uid != uid:
            raise unauthorized()
        return _user(account)

    def from_session(self, token: str) -> User:
        """The user of a session. Raises 401."""
        digest = accounts.token_digest(token)
        found = self._reader.peek(register.SECRET, accounts.NAMESPACE, accounts.session_object_name(digest))
        login = accounts.login_from(found)
        if login is None or not hmac.compare_digest(login.digest, digest) or login.expires <= self._clock():
            raise unauthorized()
        account = self.account(login.user)
        if account is None or accounts.state_of(account) != login.account:
            raise unauthorized()
        return _user(account)

    def from_cookie(self, headers: dict[str, str], *, is_change: bool) -> User | None:
        """The user of a browser's session; None without a cookie. Raises 401, also for a page of another origin."""
        token = session_cookie(headers)
        if not token:
            return None
        if not is_own_origin(headers, required=is_change):
            raise unauthorized()
        return self.from_session(token)


def _user(account: Account) -> User:
    return User(account.name, account.uid, (*account.groups, AUTHENTICATED))


def session_cookie(headers: dict[str, str]) -> str:
    """The session token in the cookies of a request, or ""."""
    text = headers.get("cookie", "")
    if COOKIE not in text:
        return ""
    try:
        found = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def is_own_origin(headers: dict[str, str], *, required: bool) -> bool:
    """Whether a browser says that our own page asks; without `required` also when it does not say."""
    origin = headers.get("origin", "")
    if not origin:
        return not required
    return origin == f"https://{headers.get('host', '')}"
