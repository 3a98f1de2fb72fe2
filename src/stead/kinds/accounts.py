"""Users and sessions as objects: Secrets of two types in `kube-system`, so that they are sealed like all Secrets.

Written by `stead user` and `server.login`, read by `server.users`. A user's certificate carries the uid of its object,
so that removing the object ends every certificate, and making a user of the same name again revives none. Pure.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any

import msgspec

Object = dict[str, Any]

NAMESPACE = "kube-system"
USER_TYPE = "stead.io/user"
SESSION_TYPE = "stead.io/session"
#: how session tokens begin; no token of another kind does
SESSION_PREFIX = "stead-session-"
#: how a certificate names the object that it dies with (a URI among its alternative names)
URI_PREFIX = "stead:user:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}\Z")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,99}\Z")


class Account(msgspec.Struct, frozen=True):
    """A user that `stead user` made. `uid` is the object's; `password` an Argon2id string in PHC form, or ""."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    password: str = ""


class Login(msgspec.Struct, frozen=True):
    """A session: who, by which state of the account, until when (Unix time), and the digest of its token."""

    user: str
    account: str
    expires: int
    digest: str


def name_refusal(name: str, groups: tuple[str, ...]) -> str:
    """Why a user may not be called so, or ""."""
    if not _NAME.match(name):
        return f"user name {name!r}: letters, digits and . _ @ + -, 100 at most"
    wrong = next((group for group in groups if not _GROUP.match(group)), "")
    return f"group {wrong!r}: letters, digits and . _ : @ / + -, 100 at most" if wrong else ""


def user_object_name(name: str) -> str:
    """The name of a user's Secret."""
    return f"stead-user-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def session_object_name(digest: str) -> str:
    """The name of a session's Secret; `digest` is that of its token."""
    return f"stead-session-{digest[:40]}"


def token_digest(token: str) -> str:
    """What is kept of a session's token."""
    return hashlib.sha256(token.encode()).hexdigest()


def state_of(account: Account) -> str:
    """Changes when the account is made anew or its password changes: sessions of before end."""
    return hashlib.sha256(f"{account.uid}\0{account.password}".encode()).hexdigest()[:32]


def user_object(account: Account) -> Object:
    """The Secret of a user."""
    data = {"name": account.name, "groups": ",".join(account.groups)}
    if account.password:
        data["password"] = account.password
    return _secret(user_object_name(account.name), USER_TYPE, data)


def session_object(login: Login) -> Object:
    """The Secret of a session."""
    data = {"user": login.user, "account": login.account, "expires": str(login.expires), "digest": login.digest}
    return _secret(session_object_name(login.digest), SESSION_TYPE, data)


def account_from(secret: Object | None) -> Account | None:
    """The user that a Secret describes, or None."""
    data = _data(secret, USER_TYPE)
    if secret is None or not data.get("name"):
        return None
    groups = tuple(group for group in data.get("groups", "").split(",") if group)
    return Account(data["name"], groups, secret["metadata"].get("uid", ""), data.get("password", ""))


def login_from(secret: Object | None) -> Login | None:
    """The session that a Secret describes, or None."""
    data = _data(secret, SESSION_TYPE)
    if not data.get("expires", "").isdigit() or not data.get("digest"):
        return None
    return Login(data.get("user", ""), data.get("account", ""), int(data["expires"]), data["digest"])


def _secret(name: str, kind: str, data: dict[str, str]) -> Object:
    return {
        "apiVersion": "v1", "kind": "Secret", "type": kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }  # fmt: skip


def _data(secret: Object | None, kind: str) -> dict[str, str]:
    """Decoded data of a Secret of a type that is not being deleted; {} for anything else."""
    if secret is None or secret.get("type") != kind or secret["metadata"].get("deletionTimestamp"):
        return {}
    return decoded(secret)


def decoded(secret: Object) -> dict[str, str]:
    """The text values of a Secret; those that are no text are left out."""
    found = {}
    for key, value in (secret.get("data") or {}).items():
        try:
            found[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, ValueError):
            continue
    return found
