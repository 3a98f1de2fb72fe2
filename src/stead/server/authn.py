"""Who is asking: client certificates, ServiceAccount tokens, bootstrap tokens, impersonation.

Called by `app` once for each request, by `reviews` (TokenReview, TokenRequest) and `uploads` (upload tokens). Reads
objects from memory through a `Reader`; no I/O, no clock but the one given. Nobody is trusted for a header alone: only
the listener puts a verified certificate into the scope. Follows H1, H2 and H4 of Kubernetes' authentication rules.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

import jwt
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError

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


class Authenticator:
    """Turns a certificate or a bearer token into a `User`."""

    def __init__(self, reader: Reader, issuer: TokenIssuer, *, clock: Callable[[], float] = time.time) -> None:
        self._reader = reader
        self._issuer = issuer
        self._clock = clock
        self._certificates: OrderedDict[bytes, User] = OrderedDict()

    @property
    def issuer(self) -> TokenIssuer:
        """The issuer whose tokens are accepted."""
        return self._issuer

    def authenticate(self, certificate: bytes | None, headers: dict[str, str], bearer: str = "") -> User:
        """The user of a request; `certificate` is the verified client certificate in DER. Raises 401."""
        scheme, _, value = headers.get("authorization", "").partition(" ")
        token = value.strip() if scheme.lower() == "bearer" else ""
        if not token:
            token = bearer
        if certificate is not None:
            return self._from_certificate(certificate)
        if token:
            return self.from_token(token, [self._issuer.issuer])
        return ANONYMOUS

    def from_token(self, token: str, audiences: list[str]) -> User:
        """The user of a bearer token. Raises 401."""
        if token.count(".") == 1:
            return self._from_bootstrap(token)
        try:
            claims = self._issuer.verify(token, audiences)
            inner = claims["kubernetes.io"]
            account = inner["serviceaccount"]
            namespace, name, uid = inner["namespace"], account["name"], account["uid"]
        except (jwt.PyJWTError, KeyError, TypeError):
            raise unauthorized() from None
        live = self._reader.peek(register.SERVICE_ACCOUNT, namespace, name)
        if live is None or live["metadata"].get("uid") != uid:
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
            if key in inner:
                found = self._reader.peek(resource, where, inner[key]["name"])
                if found is None or found["metadata"].get("uid") != inner[key]["uid"]:
                    raise unauthorized()

    def _from_certificate(self, der: bytes) -> User:
        known = self._certificates.get(der)
        if known is not None:
            return known
        subject = x509.load_der_x509_certificate(der).subject
        names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if not names:
            raise unauthorized()
        groups = [str(item.value) for item in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
        fingerprint = hashlib.sha256(der).hexdigest()
        user = User(
            str(names[0].value), groups=(*groups, AUTHENTICATED),
            extra={"authentication.kubernetes.io/credential-id": [f"X509SHA256={fingerprint}"]},
        )  # fmt: skip
        self._certificates[der] = user
        while len(self._certificates) > _REMEMBERED:
            self._certificates.popitem(last=False)
        return user

    def _from_bootstrap(self, token: str) -> User:
        """`ID.SECRET` of a Secret `bootstrap-token-ID`, which keeps only the SHA-256 of the secret half."""
        token_id, _, secret = token.partition(".")
        stored = self._reader.peek(register.SECRET, "kube-system", f"bootstrap-token-{token_id}")
        if stored is None or stored.get("type") != "bootstrap.kubernetes.io/token":
            raise unauthorized()
        data = {key: base64.b64decode(value).decode() for key, value in (stored.get("data") or {}).items()}
        digest = hashlib.sha256(secret.encode()).hexdigest()
        if not hmac.compare_digest(digest, data.get("token-secret-sha256", "")):
            raise unauthorized()
        expiration = data.get("expiration")
        if expiration and datetime.fromisoformat(expiration.replace("Z", "+00:00")).timestamp() < self._clock():
            raise unauthorized()
        if data.get("usage-bootstrap-authentication") != "true":
            raise unauthorized()
        groups = [name for name in data.get("auth-extra-groups", "").split(",") if name]
        return User(f"system:bootstrap:{token_id}", groups=("system:bootstrappers", *groups, AUTHENTICATED))


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
            raise ApiError("BadRequest", "requested groups, uid or extra without impersonating a user name")
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
