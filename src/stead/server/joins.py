"""Hosts join: a certificate for a key that a host made, and a Node that the certificate dies with.

Called by `app` on a create of `joins.stead.io`, after authorisation, and for `joins.ABOUT_PATH`, which everybody may
read. Who may ask: the holder of a bootstrap token of the group `joins.GROUP` (spent by then), for a name that no host
has or for the one that the token is tied to; a host, for itself; an administrator. Names in the certificate are ours to
choose: the host's own and the addresses it asks for, none of which may be the API's. Concurrency: one call a request;
two hosts that ask for one name race for the Node, and one of them gets 409.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from stead import pki
from stead.kinds import register
from stead.kinds.joins import HOST_URI_PREFIX, MAX_CLOCK_DIFFERENCE
from stead.kube import meta
from stead.kube.errors import ApiError, cause, invalid
from stead.server.answer import Answer, json_answer
from stead.server.authn import User
from stead.server.bootstrap_tokens import HOST_EXTRA, USER_PREFIX
from stead.server.local import LocalVerbs
from stead.server.node_authz import PREFIX

if TYPE_CHECKING:
    from stead.server.exchange import Exchange

Object = dict[str, Any]

#: a label's value (`kubernetes.io/hostname`), and short enough for a certificate's common name of 64 characters
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,50}[a-z0-9])?\Z")
MAX_ADDRESSES = 8
MAX_REQUEST = 8192


class Signing(msgspec.Struct, frozen=True):
    """Who signs, how long a certificate lives, and names of the API, which no host may bear."""

    authority: pki.Pair
    life: datetime.timedelta
    reserved: frozenset[str]


class Joins:
    """See the module's prose."""

    def __init__(
        self, verbs: Callable[[], LocalVerbs], signing: Signing, clock: Callable[[], float] = time.time
    ) -> None:
        self._verbs = verbs
        self._signing = signing
        self._clock = clock

    async def about(self) -> Answer:
        """The authorities, the one that issues first, and the time."""
        authorities = (await asyncio.to_thread(self._authorities)).decode()
        moment = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC)
        return json_answer({"authorities": authorities, "time": moment.isoformat()})

    async def create(self, exchange: Exchange, obj: Object) -> Answer:
        """Let a host in. Raises 403, 409 (the name is taken), 422."""
        metadata, spec = obj.get("metadata"), obj.get("spec")
        if not isinstance(metadata, dict) or not isinstance(spec, dict):
            raise ApiError("BadRequest", "a Join has metadata and spec")
        host = str(metadata.get("name") or "")
        self._check(host, spec)
        try:
            key = await asyncio.to_thread(pki.requested_key, str(spec.get("request")).encode(), PREFIX + host)
        except ValueError as error:
            raise _refused(host, "spec.request", f"Invalid value: {error}") from None
        node = await self._node(exchange.user, host)
        addresses = tuple(str(ipaddress.ip_address(str(address))) for address in spec.get("addresses") or ())
        identity = pki.Identity(
            PREFIX + host, ("system:nodes",), (host, *addresses), HOST_URI_PREFIX + node["metadata"]["uid"]
        )
        signing = self._signing
        certificate = await asyncio.to_thread(pki.issue, signing.authority, identity, key, signing.life)
        authorities = await asyncio.to_thread(self._authorities)
        status = {"certificate": certificate.decode(), "authorities": authorities.decode()}
        body = {"kind": "Join", "apiVersion": register.JOIN.api_version}
        named = {"name": host, "creationTimestamp": meta.now()}
        return json_answer({**body, "metadata": named, "spec": spec, "status": status}, 201)

    def _authorities(self) -> bytes:
        return pki.issuing_first(self._signing.authority)

    def _check(self, host: str, spec: Object) -> None:
        if not _NAME.match(host) or ".." in host:
            text = f"Invalid value: {meta.go_quote(host)}: lower case letters, digits, - and ., 52 at most"
            raise _refused(host, "metadata.name", text)
        if host in self._signing.reserved:
            raise _refused(host, "metadata.name", f"Invalid value: {meta.go_quote(host)}: a name of the API itself")
        if len(str(spec.get("request"))) > MAX_REQUEST:
            raise _refused(host, "spec.request", f"Too long: may not be more than {MAX_REQUEST} bytes")
        self._check_clock(host, str(spec.get("time") or ""))
        addresses = spec.get("addresses") or []
        if not isinstance(addresses, list):
            raise _refused(host, "spec.addresses", "Invalid value: must be a list")
        if len(addresses) > MAX_ADDRESSES:
            raise _refused(host, "spec.addresses", f"Too many: {len(addresses)}: must have at most {MAX_ADDRESSES}")
        for at, address in enumerate(addresses):
            try:
                found = ipaddress.ip_address(str(address))
            except ValueError:
                text = f"Invalid value: {meta.go_quote(str(address))}: must be an IP address"
                raise _refused(host, f"spec.addresses[{at}]", text) from None
            if str(found) in self._signing.reserved and not found.is_loopback:
                text = f"Invalid value: {meta.go_quote(str(found))}: an address of the API itself"
                raise _refused(host, f"spec.addresses[{at}]", text)

    def _check_clock(self, host: str, told: str) -> None:
        try:
            moment = datetime.datetime.fromisoformat(told)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            text = f"Invalid value: {meta.go_quote(told)}: must be a time as of RFC 3339"
            raise _refused(host, "spec.time", text)
        off = moment.timestamp() - self._clock()
        if abs(off) > MAX_CLOCK_DIFFERENCE:
            text = f"Invalid value: {meta.go_quote(told)}: the host's clock is {off:+.1f} s off, 5 s are allowed"
            raise _refused(host, "spec.time", text)

    async def _node(self, user: User, host: str) -> Object:
        """The host's Node, made when there is none. Raises 403, 409."""
        if user.name.startswith(PREFIX) and user.name != PREFIX + host:
            raise _forbidden(host, f"host {user.name.removeprefix(PREFIX)} may ask for itself only")
        tied = user.extra.get(HOST_EXTRA, [""])[0]
        if tied and tied != host:
            raise _forbidden(host, f"the token is for host {tied} only")
        verbs = self._verbs()
        try:
            node = await verbs.get(register.NODE, "", host)
        except ApiError as error:
            if error.reason != "NotFound":
                raise
            made = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": host}, "spec": {}}
            return await verbs.create(register.NODE, made)
        if user.name.startswith(USER_PREFIX) and not tied:
            text = f'nodes "{host}" already exists: a token for it is made by `stead token create --host {host}`'
            raise ApiError("AlreadyExists", text, {"name": host, "kind": "nodes"})
        return node


def _refused(host: str, field: str, text: str) -> ApiError:
    return invalid("Join", "stead.io", host, [cause(field, text)])


def _forbidden(host: str, why: str) -> ApiError:
    text = f'joins.stead.io "{host}" is forbidden: {why}'
    return ApiError("Forbidden", text, {"name": host, "group": "stead.io", "kind": "joins"})
