"""The benchmarks of `stead bench`: one module a figure that `docs/SPECIFICATION.md` promises.

Package data: they ship in the wheel as `stead.benchmarks`; in a checkout `stead.cli.bench` finds this folder beside
`src`. Either way they are the package `stead.benchmarks` and import each other relatively. Every benchmark is an
`async def run(request) -> Result`; it compares Stead with what it competes with **in the same run**, in turns, and
keeps each raw sample. None asserts anything: a figure that misses its target is printed as missed.
"""

from __future__ import annotations

import msgspec


class Benchmark(msgspec.Struct, frozen=True):
    """One entry of `stead bench list`. `isolated` = needs root, runs in namespaces of its own; `boots` = guests."""

    module: str
    summary: str
    isolated: bool
    boots: bool


#: in the order of `stead bench list`
BENCHMARKS: dict[str, Benchmark] = {
    "start": Benchmark("start", "an instance from create to Running, over raw libvirt define and start", True, True),
    "footprint": Benchmark("footprint", "memory and CPU at idle, memory of each machine, time to come up", True, True),
    "import": Benchmark(
        "importing", "an HTTP qcow2 to a usable disk, over qemu-img convert from a local file", True, False
    ),
    "clone": Benchmark(
        "cloning", "a 30Gi golden image to a volume of one's own, beside cp --reflink on the same XFS", True, False
    ),
    "api": Benchmark("api", "durable creates over fsync; gets, lists of thousands, and what they cost", False, False),
    "placement": Benchmark("placement", "machines placed a second on 10, 100 and 1,000 hosts", False, False),
    "watch": Benchmark("watch", "from a commit to 100 and 1,000 watchers, over a bare fan-out", False, False),
}
