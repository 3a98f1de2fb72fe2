"""Who may do what: RBAC exactly, `system:masters`, and the rule that nobody grants more than they hold.

Called by `app` for each request, by `verbs` (escalation), `reviews` and `subresources`. Reads roles and bindings from
memory; a compiled view is kept until one of them changes. The node authorizer stands in `node_authz`. Follows R1 and
R2: rules add up, nothing denies; a binding to a missing role grants nothing.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from stead.kinds import register
from stead.kinds.aggregation import aggregated_rules, is_aggregated
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError, cause, not_found
from stead.server.authn import MASTERS, Reader, User
from stead.server.request import Request

RBAC_GROUP = "rbac.authorization.k8s.io"
Rule = dict[str, Any]


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """One question to the authorizer. `resource` may be `plural/subresource`; `path` for non-resource questions."""

    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    labels: str = ""
    fields: str = ""


class Decision(msgspec.Struct, frozen=True):
    """Allowed or not, and by which rule."""

    allowed: bool
    reason: str = ""


class StampedReader(Reader, Protocol):
    """A reader that can tell cheaply whether a collection has changed."""

    def stamp(self, resource: Resource) -> int: ...


class NodeAuthorizer(Protocol):
    """Decides for identities of hosts; None = not one of mine."""

    def decide(self, user: User, attributes: Attributes) -> Decision | None: ...


def attributes_of(request: Request) -> Attributes:
    """The question that a request puts."""
    if not request.is_resource:
        return Attributes(verb=request.verb, path=request.path)
    return Attributes(
        verb=request.verb, group=request.group, version=request.version, resource=request.resource_with_subresource,
        namespace=request.namespace, name=request.name or request.selected_name,
        labels=request.query.get("labelSelector") or "", fields=request.query.get("fieldSelector") or "",
    )  # fmt: skip


def forbidden(user: User, asked: Attributes, extra: str = "") -> ApiError:
    """403 in the API server's words."""
    if not asked.resource:
        return ApiError("Forbidden", f'forbidden: User "{user.name}" cannot {asked.verb} path "{asked.path}"', {})
    plural = asked.resource.partition("/")[0]
    qualified = f"{plural}.{asked.group}" if asked.group else plural
    named = f' "{asked.name}"' if asked.name else ""
    where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
    message = (
        f'{qualified}{named} is forbidden: User "{user.name}" cannot {asked.verb} resource "{asked.resource}" '
        f'in API group "{asked.group}" {where}{extra}'
    )
    details = {"name": asked.name, "group": asked.group, "kind": plural}
    return ApiError("Forbidden", message, {key: value for key, value in details.items() if value})


class _Grant(msgspec.Struct, frozen=True):
    """Rules that a binding gives, where ("" = everywhere), and the words that explain it."""

    namespace: str
    rules: tuple[Rule, ...]
    reason: str


class Authorizer:
    """RBAC over the objects in memory, after `system:masters` and the node authorizer."""

    def __init__(self, reader: StampedReader, nodes: NodeAuthorizer | None = None) -> None:
        self._reader = reader
        self._nodes = nodes
        self._stamp: tuple[int, ...] = ()
        self._subjects: dict[str, list[_Grant]] = {}

    def authorize(self, user: User, asked: Attributes) -> Decision:
        """Decide one question."""
        if MASTERS in user.groups:
            return Decision(True)
        if self._nodes is not None:
            decided = self._nodes.decide(user, asked)
            if decided is not None:
                return decided
        for grant in self._grants(user, asked.namespace):
            for rule in grant.rules:
                if rule_allows(rule, asked):
                    return Decision(True, grant.reason)
        return Decision(False)

    def check(self, user: User, asked: Attributes) -> Decision:
        """As `authorize`, but raises 403."""
        decision = self.authorize(user, asked)
        if not decision.allowed:
            raise forbidden(user, asked, f": {decision.reason}" if decision.reason else "")
        return decision

    def rules_for(self, user: User, namespace: str) -> list[Rule]:
        """All rules that a user holds in a namespace, cluster-wide ones included."""
        if MASTERS in user.groups:
            everything: list[Rule] = [
                {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
                {"verbs": ["*"], "nonResourceURLs": ["*"]},
            ]
            return everything
        return [rule for grant in self._grants(user, namespace) for rule in grant.rules]

    def check_role_write(self, user: User, resource: Resource, new: dict[str, Any], old: dict[str, Any] | None) -> None:
        """A role may not hold more than its writer does, unless the writer may `escalate`. Raises 403."""
        namespace = new["metadata"].get("namespace", "")
        name = new["metadata"].get("name", "")
        rules = [rule for rule in new.get("rules") or [] if isinstance(rule, dict)]
        if old is not None and all(old.get(key) == new.get(key) for key in ("rules", "aggregationRule")):
            return
        asked = Attributes(verb="escalate", group=RBAC_GROUP, resource=resource.plural, namespace=namespace, name=name)
        if self.authorize(user, asked).allowed:
            return
        if new.get("aggregationRule"):
            everything: Rule = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}
            rules = [everything, {"verbs": ["*"], "nonResourceURLs": ["*"]}]
        self._check_covered(user, resource, new, rules)

    def check_binding_write(
        self, user: User, resource: Resource, new: dict[str, Any], old: dict[str, Any] | None
    ) -> None:
        """A binding may not give more than its writer holds, unless the writer may `bind` the role. Raises 403, 404."""
        if old is not None and old.get("subjects") == new.get("subjects") and old.get("roleRef") == new.get("roleRef"):
            return
        ref = new.get("roleRef") or {}
        namespace = new["metadata"].get("namespace", "")
        plural = "clusterroles" if ref.get("kind") == "ClusterRole" else "roles"
        asked = Attributes(
            verb="bind", group=RBAC_GROUP, resource=plural, namespace=namespace, name=ref.get("name", "")
        )
        if self.authorize(user, asked).allowed:
            return
        rules = self._role_rules(ref, namespace)
        if rules is None:
            raise not_found(resource.plural, ref.get("name", ""), RBAC_GROUP)
        self._check_covered(user, resource, new, list(rules))

    def _check_covered(self, user: User, resource: Resource, new: dict[str, Any], rules: list[Rule]) -> None:
        namespace = new["metadata"].get("namespace", "")
        missing = uncovered(self.rules_for(user, namespace), rules)
        if not missing:
            return
        name = new["metadata"].get("name", "")
        groups = " ".join(f'"{group}"' for group in user.groups)
        texts = "\n".join(sorted({compact_rule(rule) for rule in _merged(missing)}))
        message = (
            f'{resource.plural}.{RBAC_GROUP} "{name}" is forbidden: user "{user.name}" (groups=[{groups}]) is '
            f"attempting to grant RBAC permissions not currently held:\n{texts}"
        )
        raise ApiError("Forbidden", message, {"name": name, "group": RBAC_GROUP, "kind": resource.plural})

    def _grants(self, user: User, namespace: str) -> list[_Grant]:
        self._refresh()
        found: list[_Grant] = []
        for subject in (f"u:{user.name}", *(f"g:{group}" for group in user.groups)):
            for grant in self._subjects.get(subject, ()):
                if not grant.namespace or grant.namespace == namespace:
                    found.append(grant)
        return found

    def _refresh(self) -> None:
        kinds = (register.ROLE, register.CLUSTER_ROLE, register.ROLE_BINDING, register.CLUSTER_ROLE_BINDING)
        stamp = tuple(self._reader.stamp(kind) for kind in kinds)
        if stamp == self._stamp:
            return
        self._stamp, self._subjects = stamp, {}
        for kind in (register.CLUSTER_ROLE_BINDING, register.ROLE_BINDING):
            for binding in self._reader.peek_all(kind):
                self._compile(kind, binding)

    def _compile(self, kind: Resource, binding: dict[str, Any]) -> None:
        namespace = binding["metadata"].get("namespace", "")
        ref = binding.get("roleRef") or {}
        rules = self._role_rules(ref, namespace)
        if not rules:
            return
        name = f"{binding['metadata']['name']}/{namespace}" if namespace else binding["metadata"]["name"]
        for subject in binding.get("subjects") or []:
            key, words = _subject(subject, namespace)
            reason = f'RBAC: allowed by {kind.kind} "{name}" of {ref.get("kind")} "{ref.get("name")}" to {words}'
            self._subjects.setdefault(key, []).append(_Grant(namespace, rules, reason))

    def _role_rules(self, ref: dict[str, Any], namespace: str) -> tuple[Rule, ...] | None:
        """Rules of the role that a binding refers to, aggregation included; None if it does not exist."""
        name = ref.get("name", "")
        if ref.get("kind") == "ClusterRole":
            role = self._reader.peek(register.CLUSTER_ROLE, "", name)
        else:
            role = self._reader.peek(register.ROLE, namespace, name)
        if role is None:
            return None
        rules = list(role.get("rules") or [])
        if is_aggregated(role):
            more = aggregated_rules(role, self._reader.peek_all(register.CLUSTER_ROLE))
            rules += [rule for rule in more if rule not in rules]
        return tuple(rules)


def _subject(subject: dict[str, Any], namespace: str) -> tuple[str, str]:
    kind, name = subject.get("kind"), subject.get("name", "")
    if kind == "ServiceAccount":
        where = subject.get("namespace") or namespace
        return f"u:system:serviceaccount:{where}:{name}", f'ServiceAccount "{name}/{where}"'
    if kind == "Group":
        return f"g:{name}", f'Group "{name}"'
    return f"u:{name}", f'User "{name}"'


def rule_allows(rule: Rule, asked: Attributes) -> bool:
    """Whether one policy rule answers a question with yes."""
    verbs = rule.get("verbs") or []
    if "*" not in verbs and asked.verb not in verbs:
        return False
    if not asked.resource:
        return any(
            url == "*" or url == asked.path or (url.endswith("*") and asked.path.startswith(url[:-1]))
            for url in rule.get("nonResourceURLs") or []
        )
    groups = rule.get("apiGroups") or []
    if "*" not in groups and asked.group not in groups:
        return False
    names = rule.get("resourceNames") or []
    if names and asked.name not in names:
        return False
    return _resource_matches(rule.get("resources") or [], asked.resource)


def _resource_matches(resources: list[str], asked: str) -> bool:
    if "*" in resources or asked in resources:
        return True
    _, slash, subresource = asked.partition("/")
    return bool(slash) and f"*/{subresource}" in resources


def uncovered(held: list[Rule], wanted: list[Rule]) -> list[Rule]:
    """Those of `wanted`, taken apart into single permissions, that `held` does not cover."""
    missing = []
    for rule in wanted:
        for single in _break_down(rule):
            if not any(_covers(own, single) for own in held) and single not in missing:
                missing.append(single)
    return missing


def _break_down(rule: Rule) -> list[Rule]:
    singles: list[Rule] = []
    for verb in rule.get("verbs") or []:
        for url in rule.get("nonResourceURLs") or []:
            singles.append({"verbs": [verb], "nonResourceURLs": [url]})
        for group in rule.get("apiGroups") or []:
            for resource in rule.get("resources") or []:
                names = rule.get("resourceNames") or []
                base = {"verbs": [verb], "apiGroups": [group], "resources": [resource]}
                singles += [{**base, "resourceNames": [name]} for name in names] if names else [base]
    return singles


def _covers(own: Rule, single: Rule) -> bool:
    def has(key: str) -> bool:
        held = own.get(key) or []
        return "*" in held or single[key][0] in held

    if not has("verbs"):
        return False
    if "nonResourceURLs" in single:
        url = single["nonResourceURLs"][0]
        return any(
            held in ("*", url) or (held.endswith("*") and url.startswith(held[:-1]))
            for held in own.get("nonResourceURLs") or []
        )
    if not has("apiGroups") or not own.get("resources"):
        return False
    names = own.get("resourceNames") or []
    if names and (single.get("resourceNames") or [""])[0] not in names:
        return False
    return _resource_matches(own["resources"], single["resources"][0])


def _merged(singles: list[Rule]) -> list[Rule]:
    """Single permissions that differ in the verb only, put together again."""
    merged: list[Rule] = []
    for single in singles:
        rest = {key: value for key, value in single.items() if key != "verbs"}
        for rule in merged:
            if {key: value for key, value in rule.items() if key != "verbs"} == rest:
                rule["verbs"] = [*rule["verbs"], *single["verbs"]]
                break
        else:
            merged.append(dict(single))
    return merged


def compact_rule(rule: Rule) -> str:
    """A rule as the API server prints it: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`."""
    parts = []
    for key, title in (
        ("nonResourceURLs", "NonResourceURLs"),
        ("apiGroups", "APIGroups"),
        ("resources", "Resources"),
        ("resourceNames", "ResourceNames"),
        ("verbs", "Verbs"),
    ):
        if rule.get(key):
            inner = " ".join(f'"{value}"' for value in rule[key])
            parts.append(f"{title}:[{inner}]")
    return "{" + ", ".join(parts) + "}"


def role_ref_immutable(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, str]]:
    """The cause that a changed roleRef gives, if it changed."""
    if old.get("roleRef") == new.get("roleRef"):
        return []
    return [cause("roleRef", "Invalid value: cannot change roleRef")]
