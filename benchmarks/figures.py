"""What a benchmark answers: figures (ours, the rival's, their ratio, the target), and the raw samples beside them.

Pure but for `Result.write` and `machine()`. `as_json` is the object that `stead bench NAME --json` prints; its
shape is fixed by `docs/SPECIFICATION.md`. Percentiles are by linear interpolation; `interval` is a bootstrap with a
fixed seed, so that the same samples always give the same interval.
"""

from __future__ import annotations

import csv
import datetime
import os
import platform
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

BOOTSTRAPS = 1000


class Request(msgspec.Struct, kw_only=True):
    """What the user asked for. `n` 0 = the benchmark's own number; `kubeconfig` = measure a Stead that runs already."""

    n: int = 0
    quick: bool = False
    output: Path = Path("bench-results")
    image: Path | None = None
    kubeconfig: Path | None = None
    libvirt_uri: str = "qemu:///system"
    pool: Path | None = None

    def count(self, usual: int, quick: int) -> int:
        """How many rounds."""
        return self.n or (quick if self.quick else usual)


class Figure(msgspec.Struct, kw_only=True):
    """One figure. `bound` says on which side of the target `judged` must lie; a target of None promises nothing.

    `judged` is "ratio" or "ours": what the target speaks of.
    """

    ours: float | None
    rival: float | None = None
    unit: str
    target: float | None = None
    bound: str = "<="
    judged: str = "ratio"
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the rival's."""
        if self.ours is None or not self.rival:
            return None
        return self.ours / self.rival

    @property
    def met(self) -> bool | None:
        """Whether the target is kept; None when nothing is promised or nothing was measured."""
        value = self.ratio if self.judged == "ratio" else self.ours
        if self.target is None or value is None:
            return None
        return value <= self.target if self.bound == "<=" else value >= self.target


class Result(msgspec.Struct, kw_only=True):
    """The outcome of one run. `rows` are the raw samples, all with the same columns."""

    name: str
    n: int
    figures: dict[str, Figure]
    rows: list[dict[str, Any]]
    machine: str = ""
    raw: str = ""

    def write(self, folder: Path) -> None:
        """Keep samples (CSV) and figures (JSON) in `folder`; sets `machine` and `raw`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.machine = self.machine or machine()
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        path = folder / f"{self.name}-{stamp}.csv"
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        self.raw = str(path)
        path.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(self.as_json())))

    def as_json(self) -> dict[str, Any]:
        """The object that programs read."""
        return {
            "name": self.name,
            "machine": self.machine,
            "n": self.n,
            "figures": {
                key: {
                    "ours": _rounded(figure.ours),
                    "rival": _rounded(figure.rival),
                    "ratio": _rounded(figure.ratio),
                    "unit": figure.unit,
                    "target": figure.target,
                }
                for key, figure in self.figures.items()
            },
            "raw": self.raw,
        }

    def as_rows(self) -> list[list[str]]:
        """The table that people read."""
        rows = []
        for key, figure in self.figures.items():
            target = "-" if figure.target is None else f"{figure.bound} {figure.target:g}"
            met = {True: "met", False: "MISSED", None: "-"}[figure.met]
            rows.append([key, _shown(figure.ours), _shown(figure.rival), _shown(figure.ratio), figure.unit, target, met,
                         figure.note or "-"])  # fmt: skip
        return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if value < 10_000 else f"{value:.0f}"


def percentile(samples: Sequence[float], percent: float) -> float:
    """Linear interpolation between the nearest ranks. Raises ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def interval(ours: Sequence[float], rival: Sequence[float], percent: float) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of two percentiles."""
    draw = random.Random(1)
    ratios = [
        percentile(draw.choices(ours, k=len(ours)), percent) / percentile(draw.choices(rival, k=len(rival)), percent)
        for _ in range(BOOTSTRAPS)
    ]
    return percentile(ratios, 2.5), percentile(ratios, 97.5)


def compared(ours: Sequence[float], rival: Sequence[float], percent: float, **rest: Any) -> Figure:
    """A figure of one percentile of both sides, with its interval as the note."""
    low, high = interval(ours, rival, percent)
    note = f"95 % of ratios in {low:.2f}–{high:.2f}"
    return Figure(ours=percentile(ours, percent), rival=percentile(rival, percent), note=note, **rest)


def median(samples: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(samples)


def machine() -> str:
    """This machine in a line: processor, cores, memory, kernel."""
    model = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    software = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} CPUs, {memory:.0f} GB, {software}"
