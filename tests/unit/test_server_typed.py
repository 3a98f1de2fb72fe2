"""Built-in kinds as they are read and printed: what clients see of defaults, quantities, times, claims and volumes."""

from __future__ import annotations

from typing import Any

import pytest

from stead.kinds import register
from stead.kube import meta, protobuf
from stead.kube.errors import ApiError
from stead.kube.yamltext import decode_yaml, encode_yaml
from stead.server import answer, core_rules, storage_rules, typed
from stead.server.request import duration_seconds

CLAIM = {
    "metadata": {"name": "a"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}},
}


def stored(obj: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {**typed.as_typed(register.PERSISTENT_VOLUME_CLAIM, obj), "status": status or {"phase": "Pending"}}


def test_a_claim_is_printed_canonically() -> None:
    spec = typed.as_typed(register.PERSISTENT_VOLUME_CLAIM, CLAIM)["spec"]
    assert (spec["resources"]["requests"]["storage"], spec["volumeMode"]) == ("1Gi", "Filesystem")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ({"kind": "PersistentVolumeClaim", "name": "b"}, {"apiGroup": None, "kind": "PersistentVolumeClaim"}),
        ({"kind": "Foo", "name": "b"}, None),
    ],
)
def test_a_claim_keeps_only_sources_that_can_fill_it(source: dict[str, Any], shown: dict[str, Any] | None) -> None:
    made = typed.as_typed(register.PERSISTENT_VOLUME_CLAIM, {**CLAIM, "spec": {**CLAIM["spec"], "dataSource": source}})
    expected = shown and {**shown, "name": "b"}
    assert (made["spec"].get("dataSource"), made["spec"].get("dataSourceRef")) == (expected, expected)


def test_what_may_not_change_of_a_claim_is_shown() -> None:
    old = stored(CLAIM)
    new = stored({**CLAIM, "spec": {**CLAIM["spec"], "resources": {"requests": {"storage": "2Gi"}}}})
    (found,) = storage_rules.claim_causes(new, old)
    assert found["message"].endswith('-   "storage": "1Gi"\n+   "storage": "2Gi"\n   }\n  },\n  "VolumeName": "",\n')
    bound = {"phase": "Bound"}
    assert not storage_rules.claim_causes({**new, "status": bound}, {**old, "status": bound})


def test_a_bound_claim_grows_where_its_class_allows_it() -> None:
    old, new = (
        stored(CLAIM),
        stored({**CLAIM, "spec": {**CLAIM["spec"], "resources": {"requests": {"storage": "2Gi"}}}}),
    )
    storage_rules.check_resize(register.PERSISTENT_VOLUME_CLAIM, new, old, lambda *_: {"allowVolumeExpansion": True})
    with pytest.raises(ApiError, match="must support resize"):
        storage_rules.check_resize(register.PERSISTENT_VOLUME_CLAIM, new, old, lambda *_: None)


def test_a_volume_says_where_it_is() -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}
    assert [c["field"] for c in storage_rules.volume_causes({"spec": spec}, None)] == ["spec"]
    was, now = ({"spec": {**spec, "hostPath": {"path": path, "type": ""}}} for path in ("/x", "/y"))
    (found,) = storage_rules.volume_causes(now, was)
    assert '-  "Path": "/x",\n+  "Path": "/y",\n' in found["message"]


@pytest.mark.parametrize(
    ("text", "part"), [("2026-01-01T00:00:01Z", '"Z" as ".000000"'), ("never", '"never" as "2006"')]
)
def test_times_of_a_lease_are_exact(text: str, part: str) -> None:
    with pytest.raises(ApiError) as refused:
        typed.as_typed(register.LEASE, {"metadata": {}, "spec": {"renewTime": text}})
    assert refused.value.message.endswith(f"cannot parse {part}")


def test_secrets_hold_bytes() -> None:
    made = typed.as_typed(register.SECRET, {"metadata": {}, "stringData": {"a": "b"}})
    assert (made["data"], made["type"], "stringData" in made) == ({"a": "Yg=="}, "Opaque", False)
    with pytest.raises(ApiError, match="illegal base64 data at input byte 3"):
        typed.as_typed(register.SECRET, {"metadata": {}, "data": {"x": "not base64!"}})
    broken = {"metadata": {}, "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "bm9qc29u"}}
    (found,) = core_rules.check(register.SECRET, broken, None)
    assert "redacted" in found["message"]


def test_a_node_is_tainted_by_known_effects() -> None:
    node = {"metadata": {}, "spec": {"taints": [{"key": "c", "effect": "Nope"}]}}
    (found,) = core_rules.check(register.NODE, node, None)
    assert found["field"] == "metadata.taints[0].effect"


def test_an_owner_is_named_once() -> None:
    owner = {"uid": "u", "name": "o"}
    made, warnings = meta.without_repeated_owners({"ownerReferences": [owner, dict(owner)]})
    assert made["ownerReferences"] == [owner]
    assert warnings[0].endswith("observed: u")


@pytest.mark.parametrize(("text", "seconds"), [("32s", 32.0), ("1m30s", 90.0), ("-1s", -1.0), ("0", 0.0)])
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize("text", ["abc", "", "5", "1x"])
def test_broken_durations_are_refused(text: str) -> None:
    with pytest.raises(ApiError, match="invalid timeout specified"):
        duration_seconds(text)


def test_texts_that_look_like_times_are_quoted() -> None:
    assert encode_yaml({"at": "12:30", "t": "2026-01-01T00:00:00Z"}) == b'at: "12:30"\nt: "2026-01-01T00:00:00Z"\n'
    repeated = decode_yaml(b"a: 1\nb: 2\na: 3\n")
    assert repeated.problems == ['line 3: key "a" already set in map']


def test_routes_of_built_in_kinds_refuse_other_types_first() -> None:
    answer.check_route("text/html,*/*;q=0.1", is_collection=False)
    with pytest.raises(ApiError, match="Available representations: application/json, application/yaml"):
        answer.check_route("application/*", is_collection=True)


def test_a_refusal_in_protobuf_can_be_read() -> None:
    status = ApiError("NotFound", 'configmaps "a" not found', {"name": "a", "kind": "configmaps"}).status()
    body = protobuf.encode_status(status)
    assert body.startswith(protobuf.MAGIC)
    assert b'configmaps "a" not found' in body
    assert answer.wants_protobuf("application/vnd.kubernetes.protobuf")
    assert not answer.wants_protobuf("application/vnd.kubernetes.protobuf,application/json")
