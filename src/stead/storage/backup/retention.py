"""Which points are kept: the rules of a policy over the times of a machine's points. Pure.

As users of backup programs know them: the last N; the newest of each of the last N days, weeks (ISO), months, years
that have one (all in UTC). A point that any rule keeps is kept. A policy without a rule keeps everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How many of each; 0 = that rule keeps nothing."""

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    @property
    def keeps_all(self) -> bool:
        return not any((self.last, self.daily, self.weekly, self.monthly, self.yearly))


def _week(time: datetime) -> str:
    year, week, _ = time.isocalendar()
    return f"{year}-W{week:02}"


_PERIODS: tuple[tuple[str, Callable[[datetime], str]], ...] = (
    ("daily", lambda time: f"{time:%Y-%m-%d}"),
    ("weekly", _week),
    ("monthly", lambda time: f"{time:%Y-%m}"),
    ("yearly", lambda time: f"{time:%Y}"),
)


def kept(points: Iterable[tuple[str, datetime]], policy: Retention) -> dict[str, tuple[str, ...]]:
    """The names to keep, each with the rules that keep it."""
    ordered = sorted(points, key=lambda point: (point[1], point[0]), reverse=True)
    if policy.keeps_all:
        return {name: ("no rule",) for name, _ in ordered}
    reasons: dict[str, list[str]] = {}
    for name, _ in ordered[: policy.last]:
        reasons.setdefault(name, []).append("last")
    for rule, period_of in _PERIODS:
        seen: set[str] = set()
        for name, time in ordered:
            period = period_of(time.astimezone(UTC))
            if period not in seen and len(seen) < getattr(policy, rule):
                seen.add(period)
                reasons.setdefault(name, []).append(f"{rule} {period}")
    return {name: tuple(why) for name, why in reasons.items()}
