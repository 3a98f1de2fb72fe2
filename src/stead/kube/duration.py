"""Durations as Go writes them (`1h30m`, `5m0s`), to seconds. Pure. Source: Go's time.ParseDuration."""

from __future__ import annotations

import re

_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def seconds_from_duration(text: str) -> float:
    """Seconds, negative where it says so. ValueError, in Go's words, for anything else."""
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0.0
    found = _PART.findall(rest)
    if not found or "".join(number + unit for number, unit in found) != rest:
        raise ValueError(f'time: invalid duration "{text}"')
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in found)
    return -seconds if text[:1] == "-" else seconds
