"""stub"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from stead.server.answer import Answer, text_answer
from stead.server.registry import Registry
from stead.server.verbs import Verbs

if TYPE_CHECKING:
    from stead.server.app import Exchange


class Agents:
    """stub"""

    def __init__(self, registry: Registry, tls: ssl.SSLContext | None) -> None:
        self._registry = registry

    async def close(self) -> None:
        return None


class Subresources:
    """stub"""

    def __init__(self, verbs: Verbs, agents: Agents) -> None:
        self._verbs = verbs

    async def http(self, exchange: Exchange) -> Answer | None:
        return text_answer("not yet", 501)

    async def websocket(self, exchange: Exchange) -> None:
        return None
