"""What is accepted into the store: types, pruning, defaults, admission, validation, and who may write what.

Called by `verbs` and `deletion` for every write, after authorisation. Reads other objects from memory; writes nothing
and keeps nothing between calls. Follows C1 to C7, Y1, Y2, G1, G2, G4, U1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from stead.kinds import register
from stead.kinds.events import GROUP as EVENTS_GROUP
from stead.kinds.resource import Resource
from stead.kube import meta, schema
from stead.kube.errors import ApiError, invalid, not_found
from stead.server import (
    core_rules,
    definition_rules,
    foreign,
    mutation,
    scale_rules,
    storage_rules,
    transition,
    typed,
)
from stead.server.admission import admit, schema_texts
from stead.server.admission.contract import AdmissionRequest
from stead.server.authn import User
from stead.server.authz import RBAC_GROUP, Authorizer
from stead.server.calls import Call
from stead.server.catalogue import Catalogue, Served
from stead.server.limit_ranges import Ranges
from stead.server.lookup import MemoryLookup
from stead.server.references import ReferenceGuard
from stead.server.registry import Object, Record, Registry

_META_ONLY = {"properties": {"metadata": schema.OBJECT_META}}


class WriteGuard(Protocol):
    """What a host may change in an object that it may write (`node_authz`)."""

    def check_write(self, user: User, resource: Resource, old: Object | None, new: Object | None) -> None: ...


class Acceptance:
    """See the module's prose."""

    def __init__(
        self, registry: Registry, catalogue: Catalogue, authorizer: Authorizer, guard: WriteGuard | None = None
    ) -> None:
        self._registry = registry
        self._catalogue = catalogue
        self._authorizer = authorizer
        self._lookup = MemoryLookup(registry)
        self._guard = guard
        self._references = ReferenceGuard(authorizer)
        self._ranges = Ranges(registry)

    def rules(self, resource: Resource) -> Served:
        """The kind whose schema rules what is stored: events have two names and one storage."""
        return self._catalogue.served(register.EVENT if resource.group == EVENTS_GROUP else resource)

    def stored(self, resource: Resource, record: Record) -> Object:
        """The stored state as its kind is defined now."""
        return foreign.as_defined(self.rules(resource).resource, record.obj) if resource.edition else record.obj

    def decoded(
        self, call: Call, obj: Object, problems: Sequence[str], warnings: list[str], *, patch: bool = False
    ) -> Object:
        """Types checked, unknown fields pruned (or refused), schema defaults put in. Raises 400 and 422."""
        resource, served = call.resource, self.rules(call.resource)
        root = served.schema if resource.builtin else _META_ONLY
        mismatch = schema.type_mismatch(root, obj, resource.kind)
        if mismatch:
            handled = f'{resource.kind} in version "{call.version}" cannot be handled as a {resource.kind}'
            raise ApiError("BadRequest", f"{handled}: {mismatch}")
        pruned, unknown = schema.prune(served.schema, obj)
        problems = [*problems, *(f'unknown field "{path}"' for path in unknown)]
        if problems and call.options.validation == "Strict":
            raise self._strict(call, problems, obj if patch else None)
        if call.options.validation == "Warn":
            warnings.extend(problems)
        defaulted: Object = schema.default(served.schema, pruned)
        owned, repeated = meta.without_repeated_owners(schema.normalise_metadata(defaulted["metadata"]))
        warnings.extend(repeated)
        decoded = {**defaulted, "metadata": owned}
        return typed.as_typed(resource, decoded) if resource.builtin else decoded

    def _strict(self, call: Call, problems: list[str], patched: Object | None) -> ApiError:
        text = f"strict decoding error: {mutation.told(problems)}"
        if patched is not None:
            return mutation.bad_patch(mutation.shown(call.resource, patched), text)
        kind = call.resource.kind
        return ApiError("BadRequest", f'{kind} in version "{call.version}" cannot be handled as a {kind}: {text}')

    def admit(self, call: Call, served: Served, obj: Object, old: Object | None, warnings: list[str]) -> Object:
        """Kind rules, schema and metadata validation. Raises 422 and what admission raises."""
        resource = call.resource
        obj = core_rules.prepare(resource, obj, old if not call.subresource else None) if not call.subresource else obj
        causes: list[dict[str, str]] = []
        if not resource.builtin and call.subresource == "status":
            inner = served.schema.get("properties", {}).get("status")
            before = schema.ABSENT if old is None else old.get("status", schema.ABSENT)
            if inner and obj.get("status"):
                causes += schema.validate(inner, obj["status"], "status", "", before)
                causes = schema.with_unchecked(served.schema, causes)
        elif not resource.builtin:
            causes += schema.validate(served.schema, obj, old=schema.ABSENT if old is None else old)
            if not resource.edition:
                refused, causes = schema_texts.refusal(resource, obj, causes)
                if refused is not None:
                    raise refused
        if resource.edition:
            causes += scale_rules.accessor_causes(resource, obj)
            if old is not None:
                causes, kept = foreign.ratchet(causes, old, obj)
                warnings.extend(kept)
        elif not causes and not resource.builtin:
            request = AdmissionRequest(
                operation="CREATE" if old is None else "UPDATE", resource=resource, namespace=call.namespace, obj=obj,
                old=old, user=call.user.name, groups=call.user.groups, dry_run=call.options.dry_run,
                subresource=call.subresource,
            )  # fmt: skip
            obj, advice = admit(request, self._lookup)
            warnings.extend(advice)
        rule = core_rules.name_rule(resource)
        causes += meta.validate_metadata(obj["metadata"], rule, builtin=resource.builtin)
        causes += core_rules.check(resource, obj, old)
        if causes:
            raise invalid(resource.kind, resource.group, obj["metadata"].get("name", ""), causes)
        storage_rules.check_resize(resource, obj, old, self._registry.peek)
        obj = self._ranges.admit(resource, obj, old)
        if old is not None:
            transition.check_finalizers(resource, old, obj)
            if not resource.builtin:
                known = old["metadata"].get("finalizers") or []
                added = [name for name in obj["metadata"].get("finalizers") or [] if name not in known]
                warnings.extend(meta.finalizer_warnings(added))
        return obj

    def _admit_delete(self, call: Call, old: Object) -> None:
        """What admission says to a deletion. Raises what it raises."""
        if not call.resource.builtin and not call.resource.edition:
            request = AdmissionRequest(
                operation="DELETE", resource=call.resource, namespace=call.namespace, obj={}, old=old,
                user=call.user.name, groups=call.user.groups, dry_run=call.options.dry_run,
            )  # fmt: skip
            admit(request, self._lookup)

    def check_namespace(self, call: Call, obj: Object) -> None:
        """New content needs a namespace that exists and is not going away."""
        resource = call.resource
        if not resource.namespaced:
            return
        namespace = self._registry.peek(register.NAMESPACE, "", call.namespace)
        if namespace is None:
            raise not_found("namespaces", call.namespace)
        if (
            namespace["metadata"].get("deletionTimestamp")
            or (namespace.get("status") or {}).get("phase") == "Terminating"
        ):
            name = obj["metadata"].get("name", "")
            qualified = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
            text = (
                f'{qualified} "{name}" is forbidden: unable to create new content in namespace {call.namespace} '
                "because it is being terminated"
            )
            inner = {
                "reason": "NamespaceTerminating", "message": f"namespace {call.namespace} is being terminated",
                "field": "metadata.namespace",
            }  # fmt: skip
            details = {"name": name, "group": resource.group, "kind": resource.plural, "causes": [inner]}
            raise ApiError("Forbidden", text, details)

    def check_rights(self, call: Call, obj: Object, old: Object | None) -> None:
        """Rules about who may write what: no escalation, hosts only their own."""
        resource = call.resource
        if resource.group == RBAC_GROUP:
            if resource.kind.endswith("Binding"):
                self._authorizer.check_binding_write(call.user, resource, obj, old)
            else:
                self._authorizer.check_role_write(call.user, resource, obj, old)
        definition_rules.check_writer(call.user, resource, obj)
        self._references.check_write(call.user, resource, old, obj)
        if self._guard is not None:
            self._guard.check_write(call.user, resource, old, obj)

    def check_delete(self, call: Call, old: Object) -> None:
        """Whether this caller may delete this object. Raises 403 and what admission raises."""
        if self._guard is not None:
            self._guard.check_write(call.user, call.resource, old, None)
        self._admit_delete(call, old)
        definition_rules.check_writer(call.user, call.resource, old)
