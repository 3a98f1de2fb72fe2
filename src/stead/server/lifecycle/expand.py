"""expand-spec and expand-vm-spec: a machine with its instancetype and preference written out.

Nothing is stored. The result carries the shared defaults as well (observed 49, recordings `expand-*`). Pure.
"""

from __future__ import annotations

import copy

from stead.kinds import apply_instancetype
from stead.kube.errors import ApiError
from stead.server.admission import defaults_spec, matchers, rules_instancetype
from stead.server.admission.cluster import Cluster
from stead.server.admission.shape import settled_spec
from stead.server.lifecycle.contract import Decision, Json, bad_request, found_machine


def decide_expand(name: str, machine: Json | None, cluster: Cluster, namespace: str) -> Decision:
    """A stored machine, expanded."""
    return Decision(code=200, body=expanded_machine(found_machine(machine, name), cluster, namespace))


def decide_expand_body(body: Json, cluster: Cluster, namespace: str) -> Decision:
    """A machine that the caller sent, expanded."""
    home = (body.get("metadata") or {}).get("namespace")
    if home and home != namespace:
        raise bad_request(f"VM namespace must be empty or {namespace}")
    metadata = {**(body.get("metadata") or {}), "namespace": namespace}
    made = expanded_machine({**body, "metadata": metadata}, cluster, namespace)
    return Decision(code=200, body={**made, "status": body.get("status") or {}})


def expanded_machine(machine: Json, cluster: Cluster, namespace: str) -> Json:
    """A new machine without matchers. Raises a 400 for what is missing and for fields in conflict."""
    made: Json = copy.deepcopy(machine)
    instancetype = _matched(made, matchers.INSTANCETYPE, cluster, namespace)
    preference = _matched(made, matchers.PREFERENCE, cluster, namespace)
    template: Json = made["spec"]["template"]
    completed = apply_instancetype.complete_devices(
        template.get("spec") or {}, (preference or {}).get("spec"), binding=cluster.default_binding
    )
    applied, conflicts = rules_instancetype.applied({**template, "spec": completed}, instancetype, preference)
    if conflicts:
        raise bad_request(apply_instancetype.conflict_message(conflicts))
    defaults_spec.fill_spec(applied["spec"], cluster)
    applied["spec"] = settled_spec(applied["spec"])
    made["spec"]["template"] = applied
    made["spec"].pop("instancetype", None)
    made["spec"].pop("preference", None)
    return made


def _matched(machine: Json, matched: matchers.Matched, cluster: Cluster, namespace: str) -> Json | None:
    matcher = machine["spec"].get(matched.field)
    if not matcher:
        return None
    found = matchers.find_matched(machine, matched, cluster.lookup, namespace)
    if found is not None:
        return found
    resource = matchers.resource_of(matched, matcher)
    if resource is None:
        raise bad_request(f"got unexpected kind in {matched.title}: {matcher.get('kind')}")
    missing = f'{resource.plural}.{resource.group} "{matcher.get("name", "")}" not found'
    raise ApiError("BadRequest", missing)
