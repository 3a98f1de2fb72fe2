"""What is wrong with this host, and how to mend it: the checks behind `stead doctor`.

A check is a function that looks at one thing and returns a `Finding`; it changes nothing. `findings` runs them all.
They include every check of `virt-host-validate qemu` (libvirt), and ours: a KVM that is really quick, programs, network
ranges, foreign firewalls, pools, certificates, clocks. Called by the command line only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stead.config import Settings
from stead.doctor import hypervisor, network, service
from stead.doctor.finding import Finding

Check = Callable[[Settings], Finding]

CHECKS: tuple[Check, ...] = (*hypervisor.CHECKS, *network.CHECKS, *service.CHECKS)


def findings(settings: Settings) -> Iterator[Finding]:
    """Each check's finding in turn; a check that itself breaks is a warning that says so."""
    for check in CHECKS:
        try:
            yield check(settings)
        except OSError as error:
            identifier = check.__name__.replace("_", "-")
            yield Finding(identifier, identifier, "warn", f"could not look: {error}", "run as root")
