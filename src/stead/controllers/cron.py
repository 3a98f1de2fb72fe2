"""Five-field cron schedules: parse one, ask for the first moment after another. Pure, times in UTC.

Called by `controllers.importcron`. Fields: minute, hour, day of month, month, day of week (0 and 7 are Sunday); `*`,
lists, ranges, steps, month and day names, and the macros @hourly, @daily, @midnight, @weekly, @monthly, @yearly,
@annually. If both day fields are restricted either suffices, as in crontab(5) and robfig/cron.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS = {
    n: i + 1 for i, n in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"])
}
_DAYS = {n: i for i, n in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
_HORIZON_DAYS = 366 * 8 + 2  # a 29 February may be eight years away


class Schedule(msgspec.Struct, frozen=True):
    """The allowed values of each field."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    #: both day fields are restricted: either suffices
    either_day: bool

    def is_day(self, moment: datetime) -> bool:
        """Whether the schedule has any time on this date."""
        if moment.month not in self.months:
            return False
        by_date, by_weekday = moment.day in self.days, (moment.isoweekday() % 7) in self.weekdays
        return by_date or by_weekday if self.either_day else by_date and by_weekday

    def after(self, moment: datetime) -> datetime | None:
        """The first scheduled minute strictly after `moment`; None if there is none (31 February)."""
        start = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
        day = start.replace(hour=0, minute=0)
        for offset in range(_HORIZON_DAYS):
            date = day + timedelta(days=offset)
            if not self.is_day(date):
                continue
            for hour in sorted(self.hours):
                for minute in sorted(self.minutes):
                    found = date.replace(hour=hour, minute=minute)
                    if found >= start:
                        return found
        return None


def parse(text: str) -> Schedule:
    """Read a schedule. Raises ValueError with a sentence."""
    fields = _MACROS.get(text.strip().lower(), text).split()
    if len(fields) != 5:
        raise ValueError(f"cron schedule {text!r} has {len(fields)} fields instead of 5")
    weekdays = frozenset(d % 7 for d in _field(fields[4], 0, 7, _DAYS))
    return Schedule(
        _field(fields[0], 0, 59, {}),
        _field(fields[1], 0, 23, {}),
        _field(fields[2], 1, 31, {}),
        _field(fields[3], 1, 12, _MONTHS),
        weekdays,
        not fields[2].startswith(("*", "?")) and not fields[4].startswith(("*", "?")),
    )


def _field(text: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    values: set[int] = set()
    for part in text.split(","):
        body, slash, step_text = part.partition("/")
        step = _number(step_text, {}) if slash else 1
        first, dash, last = body.partition("-")
        if body in ("*", "?"):
            start, end = low, high
        elif dash:
            start, end = _number(first, names), _number(last, names)
        else:
            start = _number(first, names)
            end = high if slash else start
        if step < 1 or not low <= start <= end <= high:
            raise ValueError(f"cron field {text!r} is not within {low}-{high}")
        values.update(range(start, end + 1, step))
    return frozenset(values)


def _number(text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    if not text.isdecimal():
        raise ValueError(f"cron field has {text!r} where a number is expected")
    return int(text)
