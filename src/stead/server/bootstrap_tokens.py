"""Bootstrap tokens: `ID.SECRET` of a Secret `bootstrap-token-ID` in `kube-system`, good for one request.

Called by `authn` (who is it) and `app` (spend it). The Secret keeps only the SHA-256 of the secret half. The first
request that is allowed removes the Secret before it is carried out; whoever comes second, or at the same moment, gets
401. A request that is refused by authorisation leaves the token as it was. Names and groups follow Kubernetes'
bootstrap tokens: groups begin with `system:bootstrappers:`, anything else makes the token worthless. `stead-host`
ties a token to one host (`server.joins`).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

from stead.kinds import register
from stead.kinds.accounts import decoded
from stead.kube.errors import ApiError
from stead.server.authn import AUTHENTICATED, Reader, User, unauthorized
from stead.server.local import LocalVerbs

NAMESPACE = "kube-system"
TYPE = "bootstrap.kubernetes.io/token"
USER_PREFIX = "system:bootstrap:"
#: names the one host that a token lets in; and how the identity says so
HOST_KEY, HOST_EXTRA = "stead-host", "stead.io/host"
_ID = re.compile(r"[a-z0-9]{1,32}\Z")
_GROUP = re.compile(r"system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\Z")


class BootstrapTokens:
    """See the module's prose."""

    def __init__(
        self, reader: Reader, verbs: Callable[[], LocalVerbs], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._reader = reader
        self._verbs = verbs
        self._clock = clock

    def user(self, token: str) -> User:
        """The identity of a token that was not used yet. Raises 401."""
        token_id, _, secret = token.partition(".")
        stored = (
            self._reader.peek(register.SECRET, NAMESPACE, f"bootstrap-token-{token_id}") if _is_id(token_id) else None
        )
        if stored is None or stored.get("type") != TYPE or stored["metadata"].get("deletionTimestamp"):
            raise unauthorized()
        data = decoded(stored)
        digest = hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
        if not hmac.compare_digest(digest.encode(), data.get("token-secret-sha256", "").encode()):
            raise unauthorized()
        if data.get("usage-bootstrap-authentication") != "true" or self._is_over(data.get("expiration", "")):
            raise unauthorized()
        groups = [name for name in data.get("auth-extra-groups", "").split(",") if name]
        if not all(_GROUP.match(name) for name in groups):
            raise unauthorized()
        extra = {HOST_EXTRA: [data[HOST_KEY]]} if data.get(HOST_KEY) else {}
        return User(USER_PREFIX + token_id, groups=("system:bootstrappers", *groups, AUTHENTICATED), extra=extra)

    async def spend(self, user: User) -> None:
        """Remove the token of a request that goes ahead; nothing for other users. Raises 401 when it was used."""
        if not user.name.startswith(USER_PREFIX) or "system:bootstrappers" not in user.groups:
            return
        name = f"bootstrap-token-{user.name.removeprefix(USER_PREFIX)}"
        stored = self._reader.peek(register.SECRET, NAMESPACE, name)
        if stored is None:
            raise unauthorized()
        metadata = stored["metadata"]
        exact = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        try:
            await self._verbs().delete(register.SECRET, NAMESPACE, name, {"preconditions": exact})
        except ApiError as error:
            if error.reason in ("NotFound", "Conflict"):
                raise unauthorized() from None
            raise

    def _is_over(self, expiration: str) -> bool:
        """Whether the time is past, or no time at all; a token without one does not end."""
        if not expiration:
            return False
        try:
            moment = datetime.fromisoformat(expiration.replace("Z", "+00:00"))
        except ValueError:
            return True
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() < self._clock()


def _is_id(text: str) -> bool:
    return _ID.match(text) is not None
