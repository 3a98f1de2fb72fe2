"""The API server as one thing: what `run` and the tests put together over a store.

`ApiServer` owns the watch cache and every part of this room but the listener. Order: `await start()` (loads the cache,
makes the default namespaces and roles), serve `app`, then `await stop()`. Concurrency: all on one event loop.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path

import msgspec

from stead.client.local import LocalClient
from stead.kinds import register
from stead.kinds.resource import Resource
from stead.server.agents import Agents
from stead.server.app import App, Server, build_app
from stead.server.audit import AuditLog
from stead.server.audit_policy import USUAL, Policy
from stead.server.authn import MASTERS, Authenticator, PrivateKey, Sources, TokenIssuer, User
from stead.server.authz import Authorizer
from stead.server.bootstrap_tokens import BootstrapTokens
from stead.server.catalogue import Catalogue
from stead.server.definition_rules import CONTROLLER_NAME
from stead.server.definitions import Definitions
from stead.server.exports import Exports
from stead.server.health import Health, Metrics
from stead.server.joins import Joins, Signing
from stead.server.leave import Leave
from stead.server.local import LocalVerbs
from stead.server.login import Logins
from stead.server.node_authz import NodeGuard
from stead.server.oidc import Oidc, OidcSettings
from stead.server.registry import Registry
from stead.server.reviews import Reviews
from stead.server.roles import ensure_defaults
from stead.server.subresources import Subresources
from stead.server.uploads import Uploads
from stead.server.users import Users
from stead.server.verbs import Verbs
from stead.store.contract import Store
from stead.store.watch import Cache

#: who the plane's own controllers are (rung 1)
CONTROLLER = User(
    CONTROLLER_NAME,
    groups=("system:serviceaccounts", "system:serviceaccounts:kubevirt", "system:authenticated", MASTERS),
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What an API server needs to know. `address` is host:port as clients see it; `agent_tls` reaches the agents."""

    token_key: PrivateKey
    address: str = ""
    audit_path: Path | None = None
    audit_policy: Policy = USUAL
    agent_tls: ssl.SSLContext | None = None
    resources: Iterable[Resource] = register.ALL
    oidc: OidcSettings | None = None
    #: None = no host may join
    signing: Signing | None = None


class ApiServer:
    """See the module's prose."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.cache = Cache(store)
        self.registry = Registry(store, self.cache)
        self.catalogue = Catalogue(settings.resources)
        self._guard = NodeGuard(self.registry)
        self.authorizer = Authorizer(self.registry, self._guard)
        self.verbs = Verbs(self.registry, self.catalogue, self.authorizer, self._guard)
        self.definitions = Definitions(self.registry, self.catalogue, self.local_verbs(CONTROLLER, "kube-apiserver"))
        self.metrics = Metrics()
        self.health = Health({"etcd": self._store_trouble, "watch-cache": self._cache_trouble})
        self.audit = AuditLog(settings.audit_path, settings.audit_policy)
        self.issuer = TokenIssuer(settings.token_key)
        sources = Sources(
            accounts=Users(self.registry),
            bootstrap=BootstrapTokens(self.registry, self._own_verbs),
            oidc=Oidc(settings.oidc) if settings.oidc is not None else None,
        )
        self.authenticator = Authenticator(self.registry, self.issuer, sources)
        self._leave = Leave(self.registry, self.authenticator, self.authorizer)
        self.agents = Agents(self.registry, settings.agent_tls)
        self.app: App = build_app(Server(
            verbs=self.verbs, catalogue=self.catalogue, authenticator=self.authenticator, authorizer=self.authorizer,
            health=self.health, metrics=self.metrics, audit=self.audit, address=settings.address,
            reviews=Reviews(self.verbs, self.authenticator, self.authorizer),
            subresources=Subresources(self.verbs, self.agents),
            uploads=Uploads(self.registry, self.issuer, self.agents),
            exports=Exports(self.registry, self.agents),
            logins=Logins(self._own_verbs, self.registry),
            joins=Joins(self._own_verbs, settings.signing) if settings.signing is not None else None,
            leave=self._leave,
        ))  # fmt: skip

    async def start(self) -> None:
        """Load the cache, serve what users defined, make what must be there."""
        await self.cache.start()
        self.definitions.load()
        await ensure_defaults(self.local_verbs(CONTROLLER))
        self.definitions.start()
        self._leave.start()

    async def run_until_broken(self) -> None:
        """Raise when the store can no longer be followed; a fresh start helps."""
        await self.cache.run_until_broken()

    async def stop(self) -> None:
        """End watches and streams, close connections to agents, stop the cache. The store is the caller's."""
        self.app.stop()
        await self._leave.stop()
        await self.definitions.stop()
        await self.agents.close()
        await self.cache.close()
        self.audit.close()

    def local_verbs(self, user: User, manager: str = "stead") -> LocalVerbs:
        """The verbs for one identity in this process."""
        return LocalVerbs(self.verbs, user, self.authorizer, manager)

    def local_client(self, user: User = CONTROLLER, manager: str = "stead") -> LocalClient:
        """A `client.contract.Client` for our own code in this process."""
        return LocalClient(self.local_verbs(user, manager))

    def _own_verbs(self) -> LocalVerbs:
        return self.local_verbs(CONTROLLER)

    def _store_trouble(self) -> str | None:
        return self.cache.store.trouble

    def _cache_trouble(self) -> str | None:
        return str(self.cache.failure) if self.cache.failure is not None else None
