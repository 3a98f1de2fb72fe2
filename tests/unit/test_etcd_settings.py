"""Where a store is, as settings say it, and what etcd's refusals mean."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from stead.config import ConfigError, Settings, load
from stead.store import location
from stead.store.contract import MAX_BYTES, MAX_WRITES, Put, StoreFailure, TooLarge, Unanswered, Unavailable, in_parts
from stead.store.etcd_gateway import Outdated, _failure

FILES = {"store_ca_file": "/a", "store_certificate_file": "/b", "store_key_file": "/c"}


@pytest.mark.parametrize(
    ("url", "members", "name"),
    [
        ("etcd://a:1", ("a:1",), "stead"),
        ("etcd://a:1,10.0.0.2:2379,[2001:db8::1]:3/lab-2", ("a:1", "10.0.0.2:2379", "[2001:db8::1]:3"), "lab-2"),
        ("etcd://a:1/", ("a:1",), "stead"),
    ],
)
def test_a_cluster_is_named_by_its_members(url: str, members: tuple[str, ...], name: str) -> None:
    found = location.of(Settings(store=url, **FILES))
    assert (found.members, found.name) == (members, name)
    assert location.of(Settings(store=url, **FILES), "sqlite").path == Path("/var/lib/stead/plane/store.db")


@pytest.mark.parametrize("url", ["etcd://", "etcd://a", "etcd://a:1,", "http://a:1", "etcd://a:1/Ä", "etcd://a:1/x/y"])
def test_what_is_no_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="store"):
        load(environ={"STEAD_STORE": url, **{f"STEAD_{key.upper()}": value for key, value in FILES.items()}})


@pytest.mark.parametrize("missing", FILES)
def test_etcd_is_never_spoken_to_in_the_clear(missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        load(flags={"store": "etcd://a:1", **FILES, missing: ""})


@pytest.mark.parametrize(
    ("status", "code", "text", "kind"),
    [
        (400, 11, "etcdserver: mvcc: required revision has been compacted", Outdated),
        (400, 3, "etcdserver: request is too large", TooLarge),
        (429, 8, "grpc: received message larger than max (6400010 vs. 4718592)", TooLarge),
        (429, 8, "etcdserver: mvcc: database space exceeded", Unavailable),
        (503, 14, "etcdserver: no leader", Unavailable),
        (503, 14, "etcdserver: request timed out, possibly due to previous leader failure", Unanswered),
        (503, 14, "etcdserver: leader changed", Unanswered),
        (504, 4, "context deadline exceeded", Unanswered),
        (403, 7, "etcdserver: permission denied", StoreFailure),
    ],
)
def test_a_refusal_says_whether_a_write_may_have_happened(status: int, code: int, text: str, kind: type) -> None:
    error = _failure("https://a:1", status, msgspec.json.encode({"error": text, "message": text, "code": code}))
    assert type(error) is kind
    assert text in str(error)


def test_many_writes_go_in_parts_that_any_store_takes() -> None:
    writes = [Put(f"/registry/g/p/{n}", b"x" * (n * 1000), 0) for n in range(350)]
    parts = list(in_parts(writes))
    assert [write for part in parts for write in part] == writes
    assert all(len(part) <= MAX_WRITES for part in parts)
    assert all(len(part) == 1 or sum(len(write.value) for write in part) <= MAX_BYTES for part in parts)
    assert list(in_parts([])) == []
