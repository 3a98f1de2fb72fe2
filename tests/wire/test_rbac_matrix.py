"""Every role against every kind, verb and subresource, by another evaluator; then what RBAC adds: aggregation, nobody
granting more than they hold, impersonation, what one may do, and the same answers to real requests.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tests.api_server import RunningServer, running_server
from tests.rbac_evaluator import Policy, Question, may

from stead.client.contract import Selection
from stead.kinds import register
from stead.server.authn import User
from stead.server.authz import Attributes
from stead.server.roles import default_roles, with_aggregation

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "rbac.authorization.k8s.io"
Object = dict[str, Any]
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
SUB = "subresources.kubevirt.io"
#: (group, plural, subresource, further verbs)
TARGETS = (
    ("", "configmaps", ""), ("", "secrets", ""), ("", "namespaces", ""), ("", "nodes", ""), ("", "nodes", "status"),
    ("", "serviceaccounts", ""), ("", "serviceaccounts", "token"), ("", "persistentvolumes", ""),
    ("", "persistentvolumeclaims", ""), ("", "persistentvolumeclaims", "status"), ("", "events", ""),
    ("kubevirt.io", "virtualmachines", ""), ("kubevirt.io", "virtualmachines", "status"),
    ("kubevirt.io", "virtualmachineinstances", ""), ("kubevirt.io", "kubevirts", ""),
    (SUB, "virtualmachines", "start"), (SUB, "virtualmachines", "migrate"), (SUB, "virtualmachines", "expand-spec"),
    (SUB, "virtualmachineinstances", "console"), (SUB, "virtualmachineinstances", "guestosinfo"),
    (SUB, "virtualmachineinstances", "vnc/screenshot"),
    ("instancetype.kubevirt.io", "virtualmachineclusterinstancetypes", ""),
    ("cdi.kubevirt.io", "datavolumes", ""), ("cdi.kubevirt.io", "datavolumes", "source"),
    ("cdi.kubevirt.io", "storageprofiles", ""), ("upload.cdi.kubevirt.io", "uploadtokenrequests", ""),
    (GROUP, "roles", ""), (GROUP, "clusterroles", ""), ("authorization.k8s.io", "selfsubjectaccessreviews", ""),
    ("authorization.k8s.io", "localsubjectaccessreviews", ""), ("coordination.k8s.io", "leases", ""),
)  # fmt: skip
PATHS = ("/healthz", "/metrics", "/apis", "/apis/kubevirt.io/v1", "/openapi/v2", "/version", "/versions")


def rule(groups: list[str], resources: list[str], verbs: list[str], names: list[str] | None = None) -> Object:
    found: Object = {"apiGroups": groups, "resources": resources, "verbs": verbs}
    return {**found, "resourceNames": names} if names else found


OWN_ROLES: dict[str, list[Object]] = {
    "t-names": [rule([""], ["configmaps", "secrets"], ["get", "update"], ["a", "b"])],
    "t-sub-of-all": [rule([SUB, ""], ["*/start", "*/status"], ["update", "get"])],
    "t-everything-core": [rule([""], ["*"], ["*"])],
    "t-one-verb": [rule(["*"], ["*"], ["list"])],
    "t-sub-only": [rule([SUB], ["virtualmachines/start"], ["*"])],
    "t-plural-only": [rule([SUB], ["virtualmachines"], ["*"])],
    "t-paths": [{"nonResourceURLs": ["/metrics", "/apis/*", "/version*"], "verbs": ["get"]}],
    "t-wild-group-name": [rule(["*"], ["virtualmachines"], ["delete"], ["a"])],
    "t-empty": [],
}


def cluster_role(name: str, rules: list[Object], labels: dict[str, str] | None = None, **rest: Any) -> Object:
    metadata = {"name": name, "labels": labels or {}}
    return {"apiVersion": f"{GROUP}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": rules, **rest}


def binding(name: str, role: str, subject: Object, namespace: str = "", kind: str = "ClusterRole") -> Object:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {
        "apiVersion": f"{GROUP}/v1", "kind": "RoleBinding" if namespace else "ClusterRoleBinding", "metadata": metadata,
        "roleRef": {"apiGroup": GROUP, "kind": kind, "name": role}, "subjects": [subject],
    }  # fmt: skip


def user(name: str, kind: str = "User") -> Object:
    return {"kind": kind, "name": name, "apiGroup": GROUP}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        for name in ("team", "other"):
            metadata = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            await running.client.create(register.NAMESPACE, metadata)
        for name, rules in OWN_ROLES.items():
            await running.client.create(register.CLUSTER_ROLE, cluster_role(name, rules))
        role = {**cluster_role("local", [rule([""], ["configmaps"], ["*"])]), "kind": "Role"}
        role["metadata"]["namespace"] = "team"
        await running.client.create(register.ROLE, role)
        chosen = {"clusterRoleSelectors": [{"matchLabels": {"t-part": "yes"}}]}
        await running.client.create(register.CLUSTER_ROLE, cluster_role("t-whole", [], aggregationRule=chosen))
        part = cluster_role("t-part", [rule(["kubevirt.io"], ["virtualmachines"], ["get"])], {"t-part": "yes"})
        await running.client.create(register.CLUSTER_ROLE, part)
        for each in await _cluster_roles(running):
            name = each["metadata"]["name"]
            await running.client.create(
                register.CLUSTER_ROLE_BINDING, binding(f"everywhere-{name}", name, user(f"every-{name}"))
            )
            await running.client.create(
                register.ROLE_BINDING, binding(f"here-{name}", name, user(f"here-{name}", "Group"), "team")
            )
        account = {"kind": "ServiceAccount", "name": "robot", "namespace": "other"}
        await running.client.create(register.ROLE_BINDING, binding("local", "local", account, "team", "Role"))
        await running.client.create(
            register.ROLE_BINDING, binding("missing", "no-such-role", user("every-view"), "other")
        )
        yield running


async def _cluster_roles(server: RunningServer) -> list[Object]:
    return list((await server.client.list(register.CLUSTER_ROLE, Selection())).items)


async def _policy(server: RunningServer) -> Policy:
    kinds = (register.CLUSTER_ROLE, register.ROLE, register.CLUSTER_ROLE_BINDING, register.ROLE_BINDING)
    return Policy(*[list((await server.client.list(kind, Selection())).items) for kind in kinds])


def _subjects(policy: Policy) -> list[User]:
    names = [role["metadata"]["name"] for role in policy.cluster_roles]
    known = "system:authenticated"
    found = [User(f"every-{name}", "", (known,), {}) for name in names]
    found += [User("somebody", "", (f"here-{name}", known), {}) for name in names]
    robot = User("system:serviceaccount:other:robot", "", ("system:serviceaccounts", known), {})
    return [*found, robot, User("system:anonymous", "", ("system:unauthenticated",), {})]


def _questions() -> list[Question]:
    cells = [
        Question(verb, group, plural, sub, namespace, name)
        for (group, plural, sub), verb, (namespace, name) in itertools.product(
            TARGETS, (*VERBS, "impersonate"), (("team", ""), ("other", "a"), ("", ""))
        )
    ]
    return cells + [Question(verb, path=path) for verb in ("get", "post") for path in PATHS]


def _attributes(asked: Question) -> Attributes:
    return Attributes(
        verb=asked.verb, group=asked.group, resource=f"{asked.plural}/{asked.sub}" if asked.sub else asked.plural,
        namespace=asked.namespace, name=asked.name, path=asked.path,
    )  # fmt: skip


async def test_every_cell_agrees_with_an_independent_evaluator(server: RunningServer) -> None:
    policy = await _policy(server)
    cells = list(itertools.product(_subjects(policy), _questions()))
    wrong = []
    allowed = 0
    for who, asked in cells:
        ours = server.api.authorizer.authorize(who, _attributes(asked)).allowed
        allowed += ours
        if ours != may(policy, who.name, set(who.groups), asked):
            wrong.append((who.name, who.groups, asked, ours))
    assert wrong == []
    assert len(cells) >= 2000
    assert allowed > 500, "hardly anything is allowed: this proves nothing"


async def test_reviews_say_the_same(server: RunningServer) -> None:
    policy = await _policy(server)
    cells = random.Random(5).sample(list(itertools.product(_subjects(policy), _questions())), 400)
    path = f"{server.url}/apis/authorization.k8s.io/v1/subjectaccessreviews"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=server.ssl)) as session:
        for who, asked in cells:
            spec: Object = {"user": who.name, "groups": list(who.groups)}
            if asked.path:
                spec["nonResourceAttributes"] = {"verb": asked.verb, "path": asked.path}
            else:
                spec["resourceAttributes"] = {
                    "verb": asked.verb, "group": asked.group, "resource": asked.plural, "subresource": asked.sub,
                    "namespace": asked.namespace, "name": asked.name,
                }  # fmt: skip
            async with session.post(path, json={"spec": spec}) as answer:
                found = await answer.json()
            assert found["status"]["allowed"] is may(policy, who.name, set(who.groups), asked), (who, asked)


async def test_real_requests_are_refused_exactly_where_the_evaluator_says(server: RunningServer) -> None:
    policy = await _policy(server)
    urls = {
        ("", "configmaps"): "/api/v1", ("", "secrets"): "/api/v1", ("kubevirt.io", "virtualmachines"):
        "/apis/kubevirt.io/v1", ("cdi.kubevirt.io", "datavolumes"): "/apis/cdi.kubevirt.io/v1beta1",
        (GROUP, "roles"): f"/apis/{GROUP}/v1", ("", "events"): "/api/v1",
    }  # fmt: skip
    methods = {"get": "GET", "list": "GET", "delete": "DELETE", "deletecollection": "DELETE", "update": "PUT"}
    cells = list(itertools.product(_subjects(policy), urls, methods, ("team", "other")))
    denied = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=server.ssl)) as session:
        for who, (group, plural), verb, namespace in random.Random(6).sample(cells, 250):
            name = "" if verb in ("list", "deletecollection") else "absent"
            headers = [("Impersonate-User", who.name), *(("Impersonate-Group", each) for each in who.groups)]
            url = f"{server.url}{urls[group, plural]}/namespaces/{namespace}/{plural}"
            if plural == "roles" and verb == "deletecollection":
                continue  # it would change what is asked about
            request = session.request(
                methods[verb], f"{url}/{name}" if name else url, headers=headers, json={} if verb == "update" else None
            )
            async with request as answer:
                wanted = may(policy, who.name, set(who.groups), Question(verb, group, plural, "", namespace, name))
                assert (answer.status != 403) is wanted, (who, verb, plural, namespace, await answer.text())
                denied += not wanted
    assert 50 < denied < 240


async def test_what_one_may_do_is_what_the_review_of_rules_lists(server: RunningServer) -> None:
    """Each of the listed rules allows what it says, and all together allow what the evaluator allows."""
    policy = await _policy(server)
    path = f"{server.url}/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=server.ssl)) as session:
        for name in ("every-view", "every-kubevirt.io:edit", "every-t-names", "every-t-whole"):
            headers = {"Impersonate-User": name, "Impersonate-Group": "system:authenticated"}
            async with session.post(path, json={"spec": {"namespace": "team"}}, headers=headers) as answer:
                status = (await answer.json())["status"]
            assert status["incomplete"] is False
            rules = [*status["resourceRules"], *status["nonResourceRules"]]
            told = Policy([cluster_role("told", rules)], [], [binding("told", "told", user(name))], [])
            for asked in _questions():
                if asked.namespace == "team" or asked.path:
                    mine = may(told, name, set(), asked)
                    assert mine is may(policy, name, {"system:authenticated"}, asked), (name, asked)


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ({}, 403),
        ({"escalate": True}, 201),
    ],
)
async def test_nobody_writes_a_role_with_more_than_they_hold(
    server: RunningServer, extra: dict[str, bool], code: int
) -> None:
    who = f"writer-{code}"
    rules = [rule([GROUP], ["roles", "rolebindings"], ["create", "get"]), rule([""], ["configmaps"], ["get", "list"])]
    if extra:
        rules.append(rule([GROUP], ["roles"], ["escalate"]))
    await server.client.create(register.CLUSTER_ROLE, cluster_role(who, rules))
    await server.client.create(register.ROLE_BINDING, binding(who, who, user(who), "team"))
    url = f"{server.url}/apis/{GROUP}/v1/namespaces/team/roles"
    headers = {"Impersonate-User": who}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=server.ssl)) as session:
        cases = (
            ("less", [rule([""], ["configmaps"], ["get"], ["a"])], 201),
            ("same", [rule([""], ["configmaps"], ["list", "get"])], 201),
            ("verb", [rule([""], ["configmaps"], ["get", "delete"])], code),
            ("kind", [rule([""], ["configmaps", "secrets"], ["get"])], code),
            ("sub", [rule([""], ["configmaps/status"], ["get"])], code),
            ("all", [rule(["*"], ["*"], ["*"])], code),
        )
        for name, wanted, answer_code in cases:
            body = {**cluster_role(f"{who}-{name}", wanted), "kind": "Role"}
            async with session.post(url, json=body, headers=headers) as answer:
                text = await answer.text()
                assert answer.status == answer_code, (name, text)
                assert answer_code != 403 or "attempting to grant RBAC permissions not currently held" in text


async def test_nobody_binds_a_role_with_more_than_they_hold_unless_they_may_bind_it(server: RunningServer) -> None:
    rules = [
        rule([GROUP], ["rolebindings"], ["create"]), rule([GROUP], ["clusterroles"], ["bind"], ["t-everything-core"]),
        rule([""], ["configmaps", "secrets"], ["get", "update"]),
    ]  # fmt: skip
    await server.client.create(register.CLUSTER_ROLE, cluster_role("binder", rules))
    await server.client.create(register.ROLE_BINDING, binding("binder", "binder", user("binder"), "team"))
    url = f"{server.url}/apis/{GROUP}/v1/namespaces/team/rolebindings"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=server.ssl)) as session:
        cases = (("t-names", 201), ("t-everything-core", 201), ("cluster-admin", 403), ("view", 403), ("t-gone", 404))
        for role, code in cases:
            body = binding(f"bound-{role}", role, user("friend"), "team")
            async with session.post(url, json=body, headers={"Impersonate-User": "binder"}) as answer:
                assert answer.status == code, (role, await answer.text())


IMPERSONATION = [
    ({"Impersonate-User": "ann"}, 200),
    ({"Impersonate-User": "bob"}, 403),
    ({"Impersonate-User": "ann", "Impersonate-Group": "devs"}, 200),
    ({"Impersonate-User": "ann", "Impersonate-Group": "system:masters"}, 403),
    ({"Impersonate-User": "ann", "Impersonate-Uid": "7"}, 200),
    ({"Impersonate-User": "ann", "Impersonate-Uid": "8"}, 403),
    ({"Impersonate-User": "ann", "Impersonate-Extra-Scopes": "view"}, 200),
    ({"Impersonate-User": "ann", "Impersonate-Extra-Scopes": "write"}, 403),
    ({"Impersonate-User": "ann", "Impersonate-Extra-Other": "view"}, 403),
    ({"Impersonate-User": "system:serviceaccount:team:robot"}, 200),
    ({"Impersonate-User": "system:serviceaccount:other:robot"}, 403),
    ({"Impersonate-Group": "devs"}, 400),
]


async def test_one_is_another_only_as_far_as_impersonate_is_held(server: RunningServer) -> None:
    own = "authentication.k8s.io"
    rules = [
        rule([""], ["users"], ["impersonate"], ["ann"]), rule([""], ["groups"], ["impersonate"], ["devs"]),
        rule([own], ["uids"], ["impersonate"], ["7"]), rule([own], ["userextras/scopes"], ["impersonate"], ["view"]),
    ]  # fmt: skip
    await server.client.create(register.CLUSTER_ROLE, cluster_role("actor", rules))
    await server.client.create(register.CLUSTER_ROLE_BINDING, binding("actor", "actor", user("actor")))
    accounts = cluster_role("actor-here", [rule([""], ["serviceaccounts"], ["impersonate"])])
    await server.client.create(register.CLUSTER_ROLE, accounts)
    await server.client.create(register.ROLE_BINDING, binding("actor", "actor-here", user("actor"), "team"))
    connector = aiohttp.TCPConnector(ssl=server.context("actor"))
    async with aiohttp.ClientSession(connector=connector) as session:
        for headers, code in IMPERSONATION:
            async with session.get(f"{server.url}/version", headers=headers) as answer:
                assert answer.status == code, (headers, await answer.text())
        url = f"{server.url}/apis/{own}/v1/selfsubjectreviews"
        headers = {"Impersonate-User": "ann", "Impersonate-Group": "devs", "Impersonate-Uid": "7",
                   "Impersonate-Extra-Scopes": "view"}  # fmt: skip
        async with session.post(url, json={}, headers=headers) as answer:
            info = (await answer.json())["status"]["userInfo"]
    assert (info["username"], info["uid"], info["extra"]) == ("ann", "7", {"scopes": ["view"]})
    assert set(info["groups"]) == {"devs", "system:authenticated"}


async def test_kubevirts_roles_are_there_for_everybody_to_bind() -> None:
    """What KubeVirt and CDI install, and how it joins Kubernetes' own roles."""
    roles = {role["metadata"]["name"]: role for role in with_aggregation(default_roles())}
    for prefix in ("kubevirt.io", "cdi.kubevirt.io"):
        for name in ("admin", "edit", "view"):
            assert all(found in roles[name]["rules"] for found in roles[f"{prefix}:{name}"]["rules"])
    migrate = Question("update", SUB, "virtualmachines", "migrate", "team")
    create = Question("create", "kubevirt.io", "virtualmachineinstancemigrations", "", "team")
    policy = Policy(list(roles.values()), [], [binding(n, n, user(n)) for n in roles], [])
    for asked in (migrate, create):
        assert may(policy, "kubevirt.io:migrate", set(), asked)
        # Since KubeVirt 1.5 nobody migrates by their role in a namespace alone.
        assert not any(may(policy, name, set(), asked) for name in ("admin", "edit", "view", "kubevirt.io:admin"))
