"""stub"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stead.server.answer import Answer, text_answer
from stead.server.authn import TokenIssuer
from stead.server.registry import Registry
from stead.server.subresources import Agents

if TYPE_CHECKING:
    from stead.server.app import Exchange


class Uploads:
    """stub"""

    def __init__(self, registry: Registry, issuer: TokenIssuer, agents: Agents) -> None:
        self._registry = registry

    async def handle(self, exchange: Exchange) -> Answer | None:
        return text_answer("not yet", 501)
