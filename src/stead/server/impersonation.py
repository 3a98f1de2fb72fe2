"""Impersonation: each part of another identity (name, groups, uid, extra) is a permission of its own.

Called by `app` after authentication; `authn.impersonated` reads the headers. Pure but for the question to RBAC.
Follows H4.
"""

from __future__ import annotations

from stead.server.authn import impersonated
from stead.server.authz import Attributes, Authorizer
from stead.server.exchange import Exchange


def impersonate(exchange: Exchange, authorizer: Authorizer) -> None:
    """Act as the user that the Impersonate-* headers name, once the caller may do that. Raises 400 and 403."""
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in exchange.scope["headers"]]
    target = impersonated(pairs)
    if target is None:
        return
    check, user = authorizer.check, exchange.user
    asked: list[Attributes] = []
    if target.name.startswith("system:serviceaccount:") and target.name.count(":") == 3:
        _, _, namespace, name = target.name.split(":")
        asked.append(Attributes(verb="impersonate", resource="serviceaccounts", namespace=namespace, name=name))
    else:
        asked.append(Attributes(verb="impersonate", resource="users", name=target.name))
    for name, value in pairs:
        if name == "impersonate-group":
            asked.append(Attributes(verb="impersonate", resource="groups", name=value))
        elif name == "impersonate-uid":
            asked.append(Attributes(verb="impersonate", group="authentication.k8s.io", resource="uids", name=value))
        elif name.startswith("impersonate-extra-"):
            key = name.removeprefix("impersonate-extra-")
            asked.append(Attributes(
                verb="impersonate", group="authentication.k8s.io", resource=f"userextras/{key}", name=value
            ))  # fmt: skip
    for question in asked:
        check(user, question)
    exchange.original, exchange.user = exchange.user, target
