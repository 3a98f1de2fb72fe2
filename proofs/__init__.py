"""The proofs of `stead prove`: one module a promise that `docs/proofs/README.md` lists.

They ship in the wheel as `stead.proofs`; in a checkout `stead.cli.prove` finds this folder beside `src`, as with the
benchmarks, whose processes and connections they use. Every proof is an `async def run(request) -> Outcome`: it does
the harm, looks for what was promised, and does the same to something that is known to be wrong (its control), which
must be found. `check` calls the same functions with small numbers.
"""

from __future__ import annotations

import msgspec


class Proof(msgspec.Struct, frozen=True):
    """One entry of `stead prove list`. `n` is the number of repetitions that counts as a full run."""

    module: str
    summary: str
    n: int


#: in the order of `stead prove list`
PROOFS: dict[str, Proof] = {
    "linearizability": Proof(
        "linearizability", "10 clients' histories are those of one copy, through kill -9 and power loss", 300
    ),
    "etcd": Proof(
        "etcd", "three planes on three members of etcd: kill any of them under load, nothing is lost, nothing lies", 300
    ),
    "fuzz": Proof("fuzz", "no bytes of a client break what reads manifests, patches, selectors, rules, RBAC", 200_000),
    "watch": Proof("watching", "every event once and in order, across reconnects and kills", 1_000_000),
}
