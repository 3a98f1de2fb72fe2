"""Answers of a recorded kube-apiserver against ours: a floor that must not sink.

Runs only where `STEAD_ORACLE` names the folder of recordings; else says "not replayed". Prints the score for each area.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests import api_oracle
from tests.api_server import running_server

#: share of answers of each area that must be equal, or better than a mistake of theirs
FLOOR = 0.95
#: documents of OpenAPI are in words of our own, and answered in JSON only: three of the few answers of this area
FLOORS = {"crd": 0.99, "discovery": 0.93}
#: servers that replay at the same time
SERVERS = 6


async def test_recorded_answers() -> None:
    folder = Path(os.environ.get("STEAD_ORACLE", "")) / "api"
    if not os.environ.get("STEAD_ORACLE") or not folder.is_dir():
        print("recorded API answers: not replayed")
        pytest.skip("not replayed: STEAD_ORACLE names no folder")
    wanted = os.environ.get("STEAD_ORACLE_ONLY", "")
    chosen = [s for s in api_oracle.scenarios(folder) if wanted in f"{s['area']}/{s['name']}"]
    # Scenarios mostly wait for watches to end; each server runs its share one after another, as recorded.
    aged = [scenario for scenario in chosen if api_oracle.needs_history_gone(scenario)]
    rest = [scenario for scenario in chosen if scenario not in aged]
    fixtures = api_oracle.definitions(folder)
    shares = await asyncio.gather(
        replay_share(aged, fixtures, 100_000), *(replay_share(rest[at::SERVERS], fixtures) for at in range(SERVERS))
    )
    grades = sorted((grade for share in shares for grade in share), key=lambda grade: (grade.scenario, grade.step))
    report(grades)
    areas: dict[str, list[bool]] = {}
    for grade in grades:
        areas.setdefault(grade.scenario.partition("/")[0], []).append(grade.grade in ("exact", "better"))
    shares_equal = {area: sum(equal) / len(equal) for area, equal in areas.items()}
    short = {area: f"{share:.1%}" for area, share in shares_equal.items() if share < FLOORS.get(area, FLOOR)}
    assert wanted or not short, f"below the floor: {short}"


async def replay_share(
    share: list[dict[str, Any]], fixtures: list[dict[str, Any]], floor: int = 0
) -> list[api_oracle.Grade]:
    """Replay scenarios one by one against a server of their own, whose history begins above `floor`."""
    grades: list[api_oracle.Grade] = []
    async with running_server(floor=floor) as server:
        await api_oracle.define(server.client, fixtures)
        replay = api_oracle.Replay(server.url, server.ssl, server.anonymous())
        for scenario in share:
            try:
                async with asyncio.timeout(90):
                    grades += await replay.run(scenario)
            except Exception as error:
                name, failure = f"{scenario['area']}/{scenario['name']}", f"{type(error).__name__}: {error}"
                steps = sum("response" in step for step in scenario["steps"])
                grades += [api_oracle.Grade(name, at, "different", failure) for at in range(steps)]
    return grades


def report(grades: list[api_oracle.Grade]) -> None:
    """Print the score by area, and each difference when asked."""
    areas: dict[str, Counter[str]] = {}
    for grade in grades:
        areas.setdefault(grade.scenario.partition("/")[0], Counter())[grade.grade] += 1
        if grade.grade != "exact" and os.environ.get("STEAD_ORACLE_SHOW"):
            print(f"{grade.grade:9} {grade.scenario}#{grade.step} {grade.why}")
    for area, counts in sorted(areas.items()):
        print(
            f"{area:18}",
            *(f"{name} {counts[name]:4}" for name in ("exact", "better", "message", "status", "different")),
        )
    total = Counter(grade.grade for grade in grades)
    print(f"recorded API answers: {total['exact']} of {len(grades)} exact, {total['different']} different")
