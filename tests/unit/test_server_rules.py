"""Pure rules of the API server: request lines, negotiation, RBAC, hosts' references, forms."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stead.kube.errors import ApiError
from stead.server import answer, authz, node_authz
from stead.server.multipart import file_part
from stead.server.request import request_from


@pytest.mark.parametrize(
    ("method", "path", "query", "expected"),
    [
        ("GET", "/api/v1/namespaces", "", ("list", "", "namespaces", "", "", "")),
        ("GET", "/api/v1/namespaces/a", "", ("get", "", "namespaces", "a", "a", "")),
        ("PUT", "/api/v1/namespaces/a/finalize", "", ("update", "", "namespaces", "a", "a", "finalize")),
        ("GET", "/api/v1/namespaces/a/configmaps/", "watch=True", ("watch", "", "configmaps", "a", "", "")),
        ("GET", "/api/v1/namespaces/a/configmaps/c", "watch=1", ("get", "", "configmaps", "a", "c", "")),
        ("GET", "/api/v1/watch/namespaces/a/configmaps", "", ("watch", "", "configmaps", "a", "", "")),
        ("DELETE", "/apis/g.io/v1/things", "", ("deletecollection", "g.io", "things", "", "", "")),
        (
            "GET",
            "/apis/subresources.kubevirt.io/v1/namespaces/a/virtualmachineinstances/m/vnc/screenshot",
            "",
            ("get", "subresources.kubevirt.io", "virtualmachineinstances", "a", "m", "vnc/screenshot"),
        ),
        ("GET", "/apis/subresources.kubevirt.io/v1/namespaces/a/virtualmachineinstances/m/portforward/22/tcp", "",
         ("get", "subresources.kubevirt.io", "virtualmachineinstances", "a", "m", "portforward")),
    ],
)  # fmt: skip
def test_request_lines(method: str, path: str, query: str, expected: tuple[str, ...]) -> None:
    found = request_from(method, path, query)
    assert (found.verb, found.group, found.plural, found.namespace, found.name, found.subresource) == expected


def test_a_name_in_the_field_selector_counts_for_authorisation() -> None:
    found = request_from("GET", "/api/v1/namespaces/a/secrets", "fieldSelector=metadata.name%3Dx&watch=1")
    assert (found.verb, found.name, found.selected_name) == ("watch", "", "x")


@given(st.text(alphabet="abc/%.-~ü", max_size=60), st.text(max_size=40))
def test_any_request_line_is_read(path: str, query: str) -> None:
    request_from("GET", "/" + path, query)


def test_negotiation_walks_clauses_by_weight() -> None:
    assert answer.negotiate("application/vnd.kubernetes.protobuf,application/json").format == "json"
    table = answer.negotiate("application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
    assert table.projection == "Table"
    assert answer.negotiate("application/json;q=0.1,application/yaml").format == "yaml"
    with pytest.raises(ApiError) as refused:
        answer.negotiate("application/cbor")
    assert refused.value.code == 406


def test_warnings_stay_one_line_and_small() -> None:
    headers = answer.warning_headers(['a "quote"\r\nSet-Cookie: x', "x" * 9000, "y" * 9000, "z"])
    assert headers[0][1] == '299 - "a \\"quote\\"  Set-Cookie: x"'
    assert sum(len(value) for _, value in headers) < 5000


def test_rules_cover_what_they_should_and_no_more() -> None:
    held = [
        {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["configmaps"]},
        {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]},
    ]
    assert not authz.uncovered(held, [{"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"]}])
    assert not authz.uncovered(held, [{**held[1], "verbs": ["get"]}])
    missing = authz.uncovered(held, [{"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["secrets"]}])
    assert len(missing) == 2
    asked = authz.Attributes(verb="get", resource="pods/log", namespace="a")
    assert authz.rule_allows({"verbs": ["*"], "apiGroups": [""], "resources": ["*/log"]}, asked)
    assert not authz.rule_allows({"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]}, asked)


def test_a_host_sees_what_a_machine_refers_to() -> None:
    vmi = {
        "spec": {
            "volumes": [
                {
                    "name": "a",
                    "cloudInitNoCloud": {"secretRef": {"name": "s1"}, "networkDataSecretRef": {"name": "s2"}},
                },
                {"name": "b", "containerDisk": {"image": "x", "imagePullSecret": "s3"}},
                {"name": "c", "configMap": {"name": "c1"}},
                {"name": "d", "dataVolume": {"name": "p1"}},
            ],
            "accessCredentials": [{"sshPublicKey": {"source": {"secret": {"secretName": "s4"}}}}],
        }
    }
    assert node_authz.names_in(vmi, "secrets") == {"s1", "s2", "s3", "s4"}
    assert node_authz.names_in(vmi, "configmaps") == {"c1"}
    assert node_authz.names_in(vmi, "persistentvolumeclaims") == {"p1"}


@given(st.binary(max_size=300), st.integers(1, 40))
async def test_a_form_gives_its_file_however_it_is_cut(content: bytes, size: int) -> None:
    if b"\r\n--xYz" in b"\r\n" + content:
        return
    form = (
        b'--xYz\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
        b'--xYz\r\nContent-Disposition: form-data; name="file"; filename="d.img"\r\n\r\n' + content + b"\r\n--xYz--\r\n"
    )

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(form), size):
            yield form[at : at + size]

    found = [chunk async for chunk in file_part(chunks(), "multipart/form-data; boundary=xYz")]
    assert b"".join(found) == content


def test_a_host_may_read_what_its_instances_boot_and_carry() -> None:
    boot = {"container": {"image": "registry/kernel", "imagePullSecret": "pull"}}
    vmi = {
        "spec": {
            "domain": {"firmware": {"kernelBoot": boot}},
            "volumes": [{"name": "account", "serviceAccount": {"serviceAccountName": "robot"}}],
        }
    }
    assert node_authz.names_in(vmi, "secrets") == {"pull"}
    assert node_authz.names_in(vmi, "configmaps") == {"kube-root-ca.crt"}
    assert node_authz.names_in(vmi, "serviceaccounts") == {"robot"}
