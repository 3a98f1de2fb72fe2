"""The client over HTTPS: any Kubernetes API that a kubeconfig names.

Implements `client.contract.Client` for the agent and for controllers on rung 3. One connection pool; every request
has a deadline but watches, which end when the server ends them or nothing has come for longer than a bookmark's
interval. A watch that ends is over: informers resume from where they were. Failures of the network are `OSError` or
`TimeoutError`, refusals are `ApiError`. Used from one event loop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import msgspec

from stead.client.contract import Object, ObjectList, Selection, WatchEvent
from stead.client.handshake import refusals
from stead.client.kubeconfig import Credentials, Endpoint, load_pair, tls_context
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError, api_error_from_status

#: seconds for a connection, for a whole request, and the length that a watch asks for
CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 60.0
WATCH_SECONDS = 300
#: longest object that a watch line may carry, bytes
MAX_LINE = 16 * 1024 * 1024
#: times that a 429 is waited for
RETRIES = 5
PAGE = 500

_JSON = "application/json"
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"


class RemoteClient:
    """See the module's prose. Make it on the event loop that uses it; `close` when done."""

    def __init__(self, endpoint: Endpoint, *, user_agent: str = "stead") -> None:
        self._endpoint = endpoint
        self._credentials = Credentials(endpoint)
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self._tls: ssl.SSLContext | None = None
        self._opening = asyncio.Lock()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """One object. Raises ApiError("NotFound")."""
        return await self._call("GET", resource.path(namespace, name))

    async def list(self, resource: Resource, selection: Selection = Selection()) -> ObjectList:
        """All that is selected, fetched in pages of one snapshot."""
        items: list[Object] = []
        query = {**_selectors(selection), "limit": str(PAGE)}
        while True:
            page = await self._call("GET", resource.path(selection.namespace), query)
            for item in page.get("items") or []:
                items.append({"apiVersion": resource.api_version, "kind": resource.kind, **item})
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return ObjectList(items, metadata.get("resourceVersion", ""))
            query = {**query, "continue": metadata["continue"]}

    async def watch(
        self,
        resource: Resource,
        selection: Selection = Selection(),
        resource_version: str = "",
    ) -> AsyncIterator[WatchEvent]:
        """Changes until the server ends the watch. Raises ApiError("Expired") when the version is too old."""
        query = {
            **_selectors(selection), "watch": "true", "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }  # fmt: skip
        if resource_version:
            query["resourceVersion"] = resource_version
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=WATCH_SECONDS + 30)
        session, headers = await self._prepared()
        url = self._endpoint.server + resource.path(selection.namespace)
        try:
            async with session.get(url, params=query, headers=headers, timeout=timeout) as response:
                if response.status != 200:
                    raise await self._error(response)
                async for line in _lines(response.content):
                    yield _event(line)
        except aiohttp.ClientError as error:
            raise network_error(error) from error

    async def create(self, resource: Resource, obj: Object) -> Object:
        """Create; the namespace is that of the object's metadata. A TokenRequest goes to its ServiceAccount."""
        metadata = obj.get("metadata") or {}
        path = resource.path(metadata.get("namespace"))
        if resource.kind == "TokenRequest":
            path = f"/api/v1/namespaces/{metadata.get('namespace')}/serviceaccounts/{metadata.get('name')}/token"
        return await self._call("POST", path, body=obj)

    async def update(self, resource: Resource, obj: Object, subresource: str = "") -> Object:
        """Replace, or replace a subresource. Raises ApiError("Conflict") on a lost race."""
        metadata = obj["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"], subresource or None)
        return await self._call("PUT", path, body=obj)

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Sequence[Object] | Object,
        subresource: str = "",
    ) -> Object:
        """A list is a JSON patch, a dictionary a merge patch."""
        kind = _MERGE if isinstance(patch, dict) else _JSON_PATCH
        body = patch if isinstance(patch, dict) else list(patch)
        return await self._call("PATCH", resource.path(namespace, name, subresource or None), body=body, kind=kind)

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str = "",
        propagation: str = "Background",
        grace_seconds: int | None = None,
    ) -> None:
        """Delete. Raises ApiError("NotFound")."""
        options: Object = {"propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        await self._call("DELETE", resource.path(namespace, name), body=options)

    def renew(self, certificate: bytes, key: bytes) -> None:
        """Show a renewed certificate (PEM) on new connections; those that are open go on."""
        self._endpoint = msgspec.structs.replace(self._endpoint, certificate=certificate, key=key)
        if self._tls is not None:
            load_pair(self._tls, certificate, key)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _prepared(self) -> tuple[aiohttp.ClientSession, dict[str, str]]:
        token = await self._credentials.token()
        async with self._opening:  # the first two calls must not each make one
            if self._session is None:
                pair = self._credentials.pair or (None, None)
                context = self._tls = await asyncio.to_thread(tls_context, self._endpoint, *pair)
                connector = aiohttp.TCPConnector(
                    ssl=context if context is not None else False, limit=0, keepalive_timeout=60
                )
                self._session = aiohttp.ClientSession(
                    connector=connector, trust_env=False, auto_decompress=True, trace_configs=[refusals(self._error)]
                )
        headers = {"Accept": _JSON, "User-Agent": self._user_agent}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if self._endpoint.impersonate:
            headers["Impersonate-User"] = self._endpoint.impersonate
        return self._session, headers

    async def _call(
        self, method: str, path: str, query: dict[str, str] | None = None, *, body: Any = None, kind: str = _JSON
    ) -> Object:
        data = msgspec.json.encode(body) if body is not None else None
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS)
        for attempt in range(RETRIES):
            session, headers = await self._prepared()
            if data is not None:
                headers["Content-Type"] = kind
            try:
                async with session.request(
                    method, self._endpoint.server + path, params=query, data=data, headers=headers, timeout=timeout
                ) as response:
                    if response.status < 300:
                        raw = await response.read()
                        found: Object = msgspec.json.decode(raw) if raw else {}
                        return found
                    error = await self._error(response)
                    wait = float(response.headers.get("Retry-After") or 1)
            except aiohttp.ClientError as failure:
                raise network_error(failure) from failure
            if error.code == 401:
                self._credentials.expire()
            if error.code != 429 or attempt == RETRIES - 1:
                raise error
            await asyncio.sleep(min(wait, 10.0))
        raise TimeoutError(f"{method} {path}: the server stayed busy")

    async def _error(self, response: aiohttp.ClientResponse) -> ApiError:
        """The refusal in a response; plain text from proxies becomes a message."""
        raw = await response.read()
        try:
            status: Any = msgspec.json.decode(raw)
            if isinstance(status, dict) and status.get("kind") == "Status":
                return api_error_from_status(status)
        except msgspec.DecodeError:
            pass
        reason = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict"}.get(response.status, "")
        text = raw[:512].decode("utf-8", "replace").strip() or response.reason or "error"
        return ApiError(reason, text, code=response.status)


def _selectors(selection: Selection) -> dict[str, str]:
    query = {"labelSelector": selection.labels, "fieldSelector": selection.fields}
    return {key: value for key, value in query.items() if value}


def _event(line: bytes) -> WatchEvent:
    event: Any = msgspec.json.decode(line)
    if event["type"] == "ERROR":
        raise api_error_from_status(event["object"])
    return WatchEvent(event["type"], event["object"])


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length up to `MAX_LINE`. Raises OSError for longer ones."""
    pending = bytearray()
    async for chunk in stream.iter_any():
        pending += chunk
        while (at := pending.find(b"\n")) >= 0:
            line = bytes(pending[:at])
            del pending[: at + 1]
            if line:
                yield line
        if len(pending) > MAX_LINE:
            raise OSError(f"a watch event is longer than {MAX_LINE} bytes")


def network_error(error: aiohttp.ClientError) -> OSError:
    """A failure of the connection as OSError."""
    return error if isinstance(error, OSError) else OSError(str(error) or type(error).__name__)
