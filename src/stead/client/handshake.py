"""Why a WebSocket was refused: aiohttp's own error of a handshake lacks the body that says so.

Used by the client of the command line and by the server's relays to agents. The answer is read where aiohttp still has
it, at the end of the request; asking once more without an upgrade would make the far side try (and wait) twice.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable

import aiohttp


def refusals(error_of: Callable[[aiohttp.ClientResponse], Awaitable[Exception]]) -> aiohttp.TraceConfig:
    """A trace for a session: `ws_connect` raises what `error_of` makes of a refusal, instead of aiohttp's error."""

    async def ended(
        _session: aiohttp.ClientSession, _context: types.SimpleNamespace, end: aiohttp.TraceRequestEndParams
    ) -> None:
        if "Sec-WebSocket-Key" in end.headers and end.response.status >= 300:
            raise await error_of(end.response)

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(ended)
    return trace
