"""A host's way in: group `stead.io`, created and answered, never stored.

`server.joins` answers, `client.joining` asks. `REQUESTED` is what the token of `stead token create` may do. Pure data.
"""

from __future__ import annotations

from typing import Annotated

from stead.kinds.meta import KubernetesObject, Model, described

#: the group of a token that lets a host join
GROUP = "system:bootstrappers:stead:hosts"
#: where the authorities and the time of an installation are told to everybody
ABOUT_PATH = "/.well-known/stead"
#: how a host's certificate names the Node that it dies with (a URI among its alternative names)
HOST_URI_PREFIX = "stead:host:"
#: clocks may differ by so much when a host joins, seconds
MAX_CLOCK_DIFFERENCE = 5.0


class Join(KubernetesObject, kw_only=True):
    """Asks for a certificate for the host named by `metadata.name`, and makes its Node when there is none."""

    spec: JoinSpec
    status: JoinStatus | None = None


class JoinSpec(Model, kw_only=True):
    """What the host shows."""

    request: Annotated[str, described("certificate request in PEM, for `system:node:NAME`, with a P-256 key")]
    time: Annotated[str, described("the host's clock, RFC 3339; 5 seconds off at most")]
    addresses: Annotated[list[str] | None, described("IP addresses that the host's agent listens on")] = None


class JoinStatus(Model, kw_only=True):
    """What the host gets."""

    certificate: Annotated[str | None, described("the host's certificate in PEM")] = None
    authorities: Annotated[str | None, described("authorities to trust, PEM")] = None
