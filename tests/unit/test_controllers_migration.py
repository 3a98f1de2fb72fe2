"""What a migration does next in each situation; limits, order and terms; which machines a drain moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stead.controllers.evacuation import is_to_go, pause_left
from stead.controllers.migration import Scene, chosen_next, decide, status_after
from stead.controllers.migration_policy import Terms, terms_for
from stead.controllers.placement import Placement

Object = dict[str, Any]

NOW = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)
STATE = {"migrationUid": "m1", "sourceNode": "a", "targetNode": "b"}
LABEL = "kubevirt.io/migrationTargetNodeName"


def stamp(seconds_ago: float) -> str:
    return (NOW - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


def migration(phase: str = "", *, uid: str = "m1", seconds: float = 0, deleting: bool = False, **spec: Any) -> Object:
    metadata: Object = {"name": uid, "namespace": "default", "uid": uid, "creationTimestamp": stamp(seconds)}
    if deleting:
        metadata["deletionTimestamp"] = stamp(0)
    made: Object = {"metadata": metadata, "spec": {"vmiName": "web", **spec}}
    if phase:
        stamps = [{"phase": phase, "phaseTransitionTimestamp": stamp(seconds)}]
        made["status"] = {"phase": phase, "phaseTransitionTimestamps": stamps}
    return made


def instance(state: Object | None = None, *, node: str = "a", label: str = "b", **status: Any) -> Object:
    labels = {"kubevirt.io/nodeName": node, **({LABEL: label} if label and state else {})}
    found: Object = {"phase": "Running", "nodeName": node, **status}
    if state:
        found["migrationState"] = {**STATE, **state}
    return {"metadata": {"name": "web", "namespace": "default", "uid": "v1", "labels": labels}, "status": found}


def scene(of: Object, vmi: Object | None, **rest: Any) -> Scene:
    return Scene(migration=of, vmi=vmi, now=NOW, **rest)


@pytest.mark.parametrize(
    ("phase", "given"),
    [
        ("Pending", scene(migration(), instance())),
        ("", scene(migration("Pending"), instance())),
        ("Scheduling", scene(migration("Pending"), instance(), is_next=True)),
        ("PreparingTarget", scene(migration("Scheduling"), instance({"x": 1}))),
        ("TargetReady", scene(migration("PreparingTarget"), instance({"targetNodeAddress": "10.0.0.2"}))),
        ("Running", scene(migration("TargetReady"), instance({"startTimestamp": stamp(1)}))),
        ("", scene(migration("Running"), instance({"startTimestamp": stamp(1)}))),
        ("Succeeded", scene(migration("Running"), instance({"completed": True}, node="b", label=""))),
        ("Failed", scene(migration("Running"), instance({"failed": True}, label=""))),
        ("Failed", scene(migration("Running"), None)),
        ("Failed", scene(migration("Running"), instance(phase="Succeeded"))),
        ("Failed", scene(migration("Pending", deleting=True), instance())),
        (
            "Failed",
            scene(migration("Scheduling", seconds=301), instance(), place=lambda: Placement(None, {"b": "full"})),
        ),
        ("", scene(migration("Scheduling", seconds=10), instance(), place=lambda: Placement(None, {"b": "full"}))),
    ],
)
def test_the_next_phase(phase: str, given: Scene) -> None:
    step = decide(given)
    assert step.phase == phase
    assert not step.instance


def written(step: Any) -> Object:
    """What a step makes of the instance: values by path."""
    return {change["path"]: change["value"] for change in step.instance}


def test_a_target_is_written_once_it_is_chosen() -> None:
    step = decide(scene(migration("Scheduling"), instance(), place=lambda: Placement("b", {}), terms=Terms()))
    assert written(step)["/metadata/labels"][LABEL] == "b"
    assert written(step)["/status/migrationState"]["sourceNode"] == "a"


def test_a_machine_changes_hands_when_its_source_says_that_it_has_gone() -> None:
    step = decide(scene(migration("Running"), instance({"completed": True})))
    assert written(step)["/status"]["nodeName"] == "b"
    assert written(step)["/metadata/labels"] == {"kubevirt.io/nodeName": "b"}


@pytest.mark.parametrize(("alive", "ready_for", "moves"), [(True, 3, False), (True, 16, True), (False, 3, True)])
def test_the_targets_word_counts_when_the_source_is_silent(alive: bool, ready_for: float, moves: bool) -> None:
    state = {"startTimestamp": stamp(60), "targetNodeDomainReadyTimestamp": stamp(ready_for)}
    step = decide(scene(migration("Running"), instance(state), source_lives=alive))
    assert bool(step.instance) is moves


def test_the_source_has_the_last_word_on_a_failure() -> None:
    state = {"startTimestamp": stamp(60), "targetNodeDomainReadyTimestamp": stamp(60), "failed": True}
    step = decide(scene(migration("Running"), instance(state)))
    assert written(step) == {"/metadata/labels": {"kubevirt.io/nodeName": "a"}}, "the target must clear away its copy"


def test_a_deleted_migration_is_aborted() -> None:
    begun = decide(scene(migration("Running", deleting=True), instance({"startTimestamp": stamp(1)})))
    assert written(begun)["/status/migrationState"]["abortRequested"]
    assert "failed" not in written(begun)["/status/migrationState"], "that is the source's to say"
    waiting = decide(scene(migration("TargetReady", deleting=True), instance({"targetNodeAddress": "x"})))
    assert written(waiting)["/status/migrationState"]["failed"]


def test_a_target_that_dies_before_it_begins_fails_it() -> None:
    step = decide(scene(migration("TargetReady"), instance({"targetNodeAddress": "x"}), target_lives=False))
    assert written(step)["/status/migrationState"]["failed"]
    begun = decide(scene(migration("Running"), instance({"startTimestamp": stamp(9)}), target_lives=False))
    assert not begun.instance, "once begun, the source finds out by itself"


def test_phases_passed_over_are_stamped() -> None:
    vmi = instance({"completed": True}, node="b", label="")
    step = decide(scene(migration("Scheduling"), vmi))
    stamps = status_after(migration("Scheduling"), vmi, step, stamp(0))["phaseTransitionTimestamps"]
    phases = {entry["phase"] for entry in stamps}
    assert phases == {
        "Pending", "Scheduling", "Scheduled", "PreparingTarget", "TargetReady", "Running", "Succeeded",
    }  # fmt: skip


def test_limits_and_order() -> None:
    waiting = [migration("Pending", uid=f"u{n}", seconds=100 - n) for n in range(7)]
    critical = migration("Pending", uid="c", priority="system-critical")
    maintenance = migration("Pending", uid="s", seconds=999, priority="system-maintenance")
    everyone = [maintenance, *waiting, critical]
    hosts = {m["metadata"]["uid"]: f"h{n}" for n, m in enumerate(everyone)}

    def host_of(m: Object) -> str:
        return hosts[m["metadata"]["uid"]]

    assert chosen_next(everyone, [], Terms(), host_of) == {"c", "u0", "u1", "u2", "u3"}
    assert chosen_next(everyone, [(migration(uid="r"), "x")] * 4, Terms(), host_of) == {"c"}
    assert chosen_next(everyone, [], Terms(), lambda _: "one") == {"c", "u0"}, "two out of a host"


def test_the_policy_with_most_labels_wins_over_the_cluster() -> None:
    kubevirt = {"spec": {"configuration": {"migrations": {"allowPostCopy": True, "bandwidthPerMigration": "1Gi"}}}}
    vmi = {"metadata": {"labels": {"app": "db", "tier": "1"}}}
    namespace = {"metadata": {"labels": {"team": "x"}}}

    def policy(name: str, wanted: Object, **spec: Any) -> Object:
        return {"metadata": {"name": name}, "spec": {"selectors": {"virtualMachineInstanceSelector": wanted}, **spec}}

    policies = [
        policy("none", {}, bandwidthPerMigration="9Gi"),
        policy("other", {"app": "web", "tier": "1"}, bandwidthPerMigration="8Gi"),
        policy("b-less", {"app": "db"}, bandwidthPerMigration="7Gi"),
        policy("a-most", {"app": "db", "tier": "1"}, bandwidthPerMigration="64Mi"),
    ]
    terms = terms_for(kubevirt, policies, vmi, namespace)
    assert terms.policy == "a-most"
    assert terms.configuration["bandwidthPerMigration"] == "64Mi"
    assert terms.configuration["allowPostCopy"]
    assert terms.configuration["allowWorkloadDisruption"]
    assert terms_for(None, [], vmi, namespace).configuration["parallelMigrationsPerCluster"] == 5


@pytest.mark.parametrize("migratable", ["True", "False"])
@pytest.mark.parametrize("strategy", ["None", "LiveMigrate", "LiveMigrateIfPossible", "External"])
def test_which_machines_a_drain_moves(strategy: str, migratable: str) -> None:
    conditions = [{"type": "LiveMigratable", "status": migratable}]
    tainted = {"metadata": {"name": "a"}, "spec": {"taints": [{"key": "kubevirt.io/drain", "effect": "NoSchedule"}]}}
    vmi = {**instance(conditions=conditions), "spec": {"evictionStrategy": strategy}}
    assert is_to_go(vmi, tainted) == (migratable == "True" and strategy.startswith("LiveMigrate"))
    assert not is_to_go(vmi, {"metadata": {"name": "a"}})
    evicted = {**instance(conditions=conditions, evacuationNodeName="a"), "spec": {"evictionStrategy": strategy}}
    assert is_to_go(evicted, {}) == (migratable == "True")


def test_a_failed_evacuation_is_tried_again_after_a_pause_that_doubles() -> None:
    def failed(seconds: float) -> Object:
        return {"status": {"phase": "Failed", "migrationState": {"endTimestamp": stamp(seconds)}}}

    assert pause_left([], NOW) == 0
    assert pause_left([failed(5)], NOW) == 15
    assert pause_left([failed(100), failed(5)], NOW) == 35
