"""Who is asking: client certificates, ServiceAccount tokens, impersonation; other kinds of token by `Sources`.

Called by `app` once for each request, by `reviews` (TokenReview, TokenRequest) and `uploads` (upload tokens). Reads
objects from memory through a `Reader`; no I/O but what `oidc` does, no clock but the one given. Nobody is trusted for a
header alone: only the listener puts a verified certificate into the scope. Follows H1, H2 and H4 of Kubernetes'
authentication rules.
"""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import jwt
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from stead.kinds import register
from stead.kinds.accounts import SESSION_PREFIX, URI_PREFIX
from stead.kinds.joins import HOST_URI_PREFIX
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError
from stead.kube.meta import go_quote

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

AUTHENTICATED = "system:authenticated"
MASTERS = "system:masters"
ISSUER = "https://kubernetes.default.svc.cluster.local"
UPLOAD_ISSUER = "cdi-apiserver"
UPLOAD_TOKEN_SECONDS = 300
#: CDI accepts an upload token this long after it ran out
UPLOAD_LEEWAY_SECONDS = 10
MIN_TOKEN_SECONDS = 600
MAX_TOKEN_SECONDS = 86400 * 365
_REMEMBERED = 1024


class User(msgspec.Struct, frozen=True):
    """An identity as Kubernetes' `UserInfo`: name, uid, groups and extra attributes."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: dict[str, list[str]] = {}

    def info(self) -> dict[str, Any]:
        """The `userInfo` object of reviews."""
        found: dict[str, Any] = {"username": self.name}
        if self.uid:
            found["uid"] = self.uid
        found["groups"] = list(self.groups)
        if self.extra:
            found["extra"] = self.extra
        return found


ANONYMOUS = User("system:anonymous", groups=("system:unauthenticated",))


class Reader(Protocol):
    """Objects as they stand in memory; implemented by `registry.Registry`."""

    def peek(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None: ...

    def peek_all(self, resource: Resource, namespace: str = "") -> list[dict[str, Any]]: ...


def unauthorized() -> ApiError:
    """401 as every API server words it."""
    return ApiError("Unauthorized", "Unauthorized")


def service_account_user(namespace: str, name: str, uid: str = "", extra: dict[str, list[str]] | None = None) -> User:
    """The identity of a ServiceAccount."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", AUTHENTICATED)
    return User(f"system:serviceaccount:{namespace}:{name}", uid, groups, extra or {})


class TokenClaims(msgspec.Struct, frozen=True):
    """What a ServiceAccount token is made for. `bound` is `{kind, name, uid}` of the object it dies with, or None."""

    namespace: str
    name: str
    uid: str
    audiences: tuple[str, ...]
    seconds: int
    bound: dict[str, str] | None = None


class TokenIssuer:
    """Signs and verifies JSON web tokens with one key: ServiceAccount tokens and upload tokens."""

    def __init__(self, key: PrivateKey, *, issuer: str = ISSUER, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._public = key.public_key()
        self._clock = clock
        self.issuer = issuer
        self.algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256"
        der = self._public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.key_id = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()

    def issue(self, wanted: TokenClaims) -> tuple[str, float]:
        """A ServiceAccount token and the Unix time at which it expires."""
        now = self._clock()
        expires = now + wanted.seconds
        inner: dict[str, Any] = {
            "namespace": wanted.namespace,
            "serviceaccount": {"name": wanted.name, "uid": wanted.uid},
        }
        if wanted.bound:
            inner[wanted.bound["kind"].lower()] = {"name": wanted.bound["name"], "uid": wanted.bound["uid"]}
        claims = {
            "iss": self.issuer, "sub": f"system:serviceaccount:{wanted.namespace}:{wanted.name}",
            "aud": list(wanted.audiences), "iat": int(now), "nbf": int(now), "exp": int(expires),
            "jti": str(uuid.uuid4()), "kubernetes.io": inner,
        }  # fmt: skip
        return self._sign(claims), expires

    def issue_upload(self, namespace: str, claim: str) -> str:
        """A token that allows one upload into a PVC, with CDI's claims."""
        now = int(self._clock())
        return self._sign({
            "iss": UPLOAD_ISSUER, "iat": now, "nbf": now, "exp": now + UPLOAD_TOKEN_SECONDS, "operation": "Upload",
            "name": claim, "namespace": namespace, "resource": {"resource": "persistentvolumeclaims"},
        })  # fmt: skip

    def verify_upload(self, token: str) -> tuple[str, str]:
        """(namespace, PVC) of an upload token. Raises jwt.PyJWTError, or KeyError for wrong claims."""
        claims = jwt.decode(
            token, self._public, algorithms=[self.algorithm], issuer=UPLOAD_ISSUER, leeway=UPLOAD_LEEWAY_SECONDS
        )
        if claims.get("operation") != "Upload":
            raise KeyError("operation")
        return claims["namespace"], claims["name"]

    def verify(self, token: str, audiences: list[str]) -> dict[str, Any]:
        """Claims of a ServiceAccount token that is valid now. Raises jwt.PyJWTError."""
        claims: dict[str, Any] = jwt.decode(
            token, self._public, algorithms=[self.algorithm], audience=audiences, issuer=self.issuer,
            options={"require": ["exp", "sub", "aud"]},
        )  # fmt: skip
        return claims

    def jwks(self) -> dict[str, Any]:
        """The public key as a JSON web key set."""
        if isinstance(self._public, ec.EllipticCurvePublicKey):
            key = jwt.algorithms.ECAlgorithm.to_jwk(self._public, as_dict=True)
        else:
            key = jwt.algorithms.RSAAlgorithm.to_jwk(self._public, as_dict=True)
        return {"keys": [{**key, "use": "sig", "kid": self.key_id, "alg": self.algorithm}]}

    def _sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self._key, self.algorithm, headers={"kid": self.key_id})


class Accounts(Protocol):
    """`server.users`: users and sessions of `stead user`. All raise 401."""

    def from_certificate(self, name: str, uid: str) -> User: ...

    def from_session(self, token: str) -> User: ...

    def from_cookie(self, headers: dict[str, str], *, is_change: bool) -> User | None: ...


class OneTimeTokens(Protocol):
    """`server.bootstrap_tokens`."""

    def user(self, token: str) -> User: ...

    async def spend(self, user: User) -> None: ...


class ForeignTokens(Protocol):
    """`server.oidc`: tokens that another issuer signs."""

    def is_meant(self, token: str) -> bool: ...

    async def user(self, token: str, audiences: tuple[str, ...] = ()) -> User: ...


class Sources(msgspec.Struct, frozen=True):
    """Where else identities come from; None = such tokens are refused."""

    accounts: Accounts | None = None
    bootstrap: OneTimeTokens | None = None
    oidc: ForeignTokens | None = None


class Authenticator:
    """Turns a certificate or a bearer token into a `User`."""

    def __init__(self, reader: Reader, issuer: TokenIssuer, sources: Sources | None = None) -> None:
        self._reader = reader
        self._issuer = issuer
        self._sources = sources or Sources()
        #: identity and what it dies with (see `_identity_of`), by certificate
        self._certificates: OrderedDict[bytes, tuple[User, str]] = OrderedDict()

    @property
    def issuer(self) -> TokenIssuer:
        """The issuer whose tokens are accepted."""
        return self._issuer

    async def authenticate(
        self, certificate: bytes | None, headers: dict[str, str], bearer: str = "", *, is_change: bool = True
    ) -> User:
        """The user of a request; `certificate` is the verified client certificate in DER. Raises 401.

        `is_change`: the request may change something or opens a WebSocket, so that a cookie alone is not enough.
        """
        scheme, _, value = headers.get("authorization", "").partition(" ")
        token = value.strip() if scheme.lower() == "bearer" else ""
        if certificate is not None:
            return self._from_certificate(certificate)
        if token or bearer:
            return await self.from_token(token or bearer, [self._issuer.issuer])
        if self._sources.accounts is not None:
            return self._sources.accounts.from_cookie(headers, is_change=is_change) or ANONYMOUS
        return ANONYMOUS

    async def from_token(self, token: str, audiences: list[str]) -> User:
        """The user of a bearer token. Raises 401."""
        sources, ours = self._sources, self._issuer.issuer in audiences
        if token.startswith(SESSION_PREFIX):
            if sources.accounts is None or not ours:
                raise unauthorized()
            return sources.accounts.from_session(token)
        if token.count(".") == 1:
            if sources.bootstrap is None or not ours:
                raise unauthorized()
            return sources.bootstrap.user(token)
        if sources.oidc is not None and sources.oidc.is_meant(token):
            return await sources.oidc.user(token, () if ours else tuple(audiences))
        return self._from_account_token(token, audiences)

    async def spend(self, user: User) -> None:
        """A request of this user goes ahead: tokens for one request end here. Raises 401 when that was used already."""
        if self._sources.bootstrap is not None:
            await self._sources.bootstrap.spend(user)

    def granted(self, token: str, audiences: list[str]) -> list[str]:
        """Those of `audiences` that an accepted token is for: all, but for ServiceAccounts what the token names."""
        try:
            held = self._issuer.verify(token, audiences)["aud"]
        except jwt.PyJWTError:
            return audiences
        held = [held] if isinstance(held, str) else held
        return [audience for audience in audiences if audience in held]

    def _from_account_token(self, token: str, audiences: list[str]) -> User:
        try:
            claims = self._issuer.verify(token, audiences)
            inner = claims["kubernetes.io"]
            account = inner["serviceaccount"]
            namespace, name, uid = inner["namespace"], account["name"], account["uid"]
        except (jwt.PyJWTError, KeyError, TypeError, ValueError):
            raise unauthorized() from None
        if claims["sub"] != f"system:serviceaccount:{namespace}:{name}":
            raise unauthorized()
        if not _is_live(self._reader.peek(register.SERVICE_ACCOUNT, namespace, name), uid):
            raise unauthorized()
        extra = {"authentication.kubernetes.io/credential-id": [f"JTI={claims['jti']}"]} if "jti" in claims else {}
        self._check_bound(inner, namespace)
        return service_account_user(namespace, name, uid, extra)

    def _check_bound(self, inner: dict[str, Any], namespace: str) -> None:
        """A token bound to a Secret or a Node dies with it."""
        bound: tuple[tuple[str, Resource, str], ...] = (
            ("secret", register.SECRET, namespace),
            ("node", register.NODE, ""),
        )
        for key, resource, where in bound:
            named = inner.get(key)
            if named and not _is_live(self._reader.peek(resource, where, named["name"]), named["uid"]):
                raise unauthorized()

    def _from_certificate(self, der: bytes) -> User:
        known = self._certificates.get(der)
        if known is None:
            known = self._certificates[der] = _identity_of(der)
            while len(self._certificates) > _REMEMBERED:
                self._certificates.popitem(last=False)
        user, uid = known
        if not uid:
            return user
        if uid.startswith(HOST_URI_PREFIX):
            node = self._reader.peek(register.NODE, "", user.name.removeprefix("system:node:"))
            if not _is_live(node, uid.removeprefix(HOST_URI_PREFIX)):
                raise unauthorized()  # the host was removed: it must join again
            return user
        if self._sources.accounts is None:
            raise unauthorized()
        current = self._sources.accounts.from_certificate(user.name, uid)
        return msgspec.structs.replace(current, extra=user.extra)


def _identity_of(der: bytes) -> tuple[User, str]:
    """What a certificate says, and what it dies with: a user's object by uid, a host's URI, or "". Raises 401."""
    certificate = x509.load_der_x509_certificate(der)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if not names:
        raise unauthorized()
    groups = [str(item.value) for item in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    fingerprint = hashlib.sha256(der).hexdigest()
    user = User(
        str(names[0].value), groups=(*groups, AUTHENTICATED),
        extra={"authentication.kubernetes.io/credential-id": [f"X509SHA256={fingerprint}"]},
    )  # fmt: skip
    try:
        others = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return user, ""
    uris = others.get_values_for_type(x509.UniformResourceIdentifier)
    host = next((uri for uri in uris if uri.startswith(HOST_URI_PREFIX)), "")
    return user, host or next((uri.removeprefix(URI_PREFIX) for uri in uris if uri.startswith(URI_PREFIX)), "")


def _is_live(found: dict[str, Any] | None, uid: str) -> bool:
    """Whether an object is still the one that a token was made for, and is not being deleted."""
    return found is not None and found["metadata"].get("uid") == uid and not found["metadata"].get("deletionTimestamp")


def impersonated(headers: list[tuple[str, str]]) -> User | None:
    """The user that Impersonate-* headers name, or None. Raises 400 when a group is named without a user."""
    name, uid = "", ""
    groups: list[str] = []
    extra: dict[str, list[str]] = {}
    for key, value in headers:
        if key == "impersonate-user":
            name = value
        elif key == "impersonate-uid":
            uid = value
        elif key == "impersonate-group":
            groups.append(value)
        elif key.startswith("impersonate-extra-"):
            extra.setdefault(key.removeprefix("impersonate-extra-"), []).append(value)
    if not name:
        if groups or extra or uid:
            raise ApiError("BadRequest", f"requested {_go_user(uid, groups, extra)} without impersonating a user name")
        return None
    if name == ANONYMOUS.name:
        return User(name, uid, (*groups, "system:unauthenticated"), extra)
    if name.startswith("system:serviceaccount:") and not groups and name.count(":") == 3:
        _, _, namespace, account = name.split(":")
        user = service_account_user(namespace, account, uid, extra)
        return user
    if AUTHENTICATED not in groups:
        groups.append(AUTHENTICATED)
    return User(name, uid, tuple(groups), extra)


def _go_user(uid: str, groups: list[str], extra: dict[str, list[str]]) -> str:
    """A user without a name as Go prints it."""
    named = f"[]string{{{', '.join(map(go_quote, groups))}}}" if groups else "[]string(nil)"
    told = ", ".join(f'"{key}":[]string{{{", ".join(map(go_quote, values))}}}' for key, values in extra.items())
    more = f"map[string][]string{{{told}}}" if extra else "map[string][]string(nil)"
    return f'&user.DefaultInfo{{Name:"", UID:"{uid}", Groups:{named}, Extra:{more}}}'
