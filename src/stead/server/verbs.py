"""The verbs: create, update, patch, apply, delete and deletecollection, with Kubernetes' exact semantics.

Called by `app` for requests and by `client.local` for our own code; authorisation has happened before. Every write goes
the same way: decode → prune → defaults → admission → validation → metadata → managed fields → compare-and-swap. One
that changes nothing is not written. Stateless between calls; a write that loses a race is tried again on the new state
unless the caller named a resourceVersion. Follows C1 to C7, X1, X2, P1 to P5, A1 to A5, Y1, Y2, G1, G2, G4, U1, K1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from stead.kinds import register
from stead.kinds.events import GROUP as EVENTS_GROUP
from stead.kinds.events import core_from_events_v1
from stead.kinds.resource import Resource
from stead.kube import meta, schema
from stead.kube.errors import ApiError, already_exists, cause, conflict, invalid, not_found
from stead.server import (
    core_rules,
    definition_rules,
    definition_status,
    foreign,
    mutation,
    scale_rules,
    storage_rules,
    typed,
)
from stead.server.admission import admit, schema_texts
from stead.server.admission.contract import AdmissionRequest
from stead.server.authn import User
from stead.server.authz import RBAC_GROUP, Attributes, Authorizer
from stead.server.bodies import too_large
from stead.server.calls import Call, DeleteOptions, Outcome
from stead.server.catalogue import Catalogue, Served
from stead.server.limit_ranges import Ranges
from stead.server.lookup import MemoryLookup
from stead.server.quota import Quotas
from stead.server.reading import ListOptions, Page, Reader
from stead.server.references import ReferenceGuard
from stead.server.registry import Object, Record, Registry, stored_bytes
from stead.store import contract as stores

#: bytes of an object's JSON that are stored (etcd's limit for one request)
MAX_OBJECT_BYTES = 1536 * 1024
#: how often a write that lost a race is tried on the new state
RETRIES = 8
#: how often a generated name that is taken is drawn again
NAME_TRIES = 8
#: metadata that only the server writes
_SERVER_FIELDS = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "generation",
)

_META_ONLY = {"properties": {"metadata": schema.OBJECT_META}}


@contextlib.contextmanager
def _warned(warnings: list[str]) -> Iterator[None]:
    """A refusal carries the warnings that were found before it."""
    try:
        yield
    except ApiError as error:
        error.warnings = list(warnings)
        raise


class WriteGuard(Protocol):
    """What a host may change in an object that it may write (`node_authz`)."""

    def check_write(self, user: User, resource: Resource, old: Object | None, new: Object | None) -> None: ...


class Verbs:
    """See the module's prose."""

    def __init__(
        self,
        registry: Registry,
        catalogue: Catalogue,
        authorizer: Authorizer,
        guard: WriteGuard | None = None,
    ) -> None:
        self.registry = registry
        self.catalogue = catalogue
        self.reader = Reader(registry)
        self._authorizer = authorizer
        self._lookup = MemoryLookup(registry)
        self._guard = guard
        self._references = ReferenceGuard(authorizer)
        self._ranges, self._quotas = Ranges(registry), Quotas(registry)

    # --- reading ------------------------------------------------------------------------------------------------

    def get(self, resource: Resource, namespace: str, name: str) -> Record:
        """The current state of an object. Raises 404."""
        record = self.registry.get(resource, namespace, name)
        if record is None:
            raise not_found(resource.plural, name, resource.group)
        return record

    # --- create -------------------------------------------------------------------------------------------------

    async def create(self, call: Call, obj: Object, problems: Sequence[str] = ()) -> Outcome:
        """Create an object. Raises 400, 403, 404, 409 and 422."""
        obj = self._own_identity(call, obj)
        metadata = dict(obj["metadata"])
        version = metadata.pop("resourceVersion", "")
        if version and version != "0" and str(version).isdigit():
            raise ApiError("BadRequest", "resourceVersion should not be set on objects to be created")
        # Of built-in kinds that count no generations, the original keeps what the client says.
        kept = ("generation",) if resource_keeps_generation(call.resource) else ()
        for field in _SERVER_FIELDS:
            if field not in kept:
                metadata.pop(field, None)
        generated = metadata.get("generateName", "") if not metadata.get("name") else ""
        obj["metadata"] = metadata
        for _ in range(NAME_TRIES):
            if generated:
                obj = {**obj, "metadata": {**metadata, "name": meta.generate_name(generated)}}
            try:
                return await self._create_named(call, obj, problems)
            except ApiError as error:
                if not (generated and error.reason == "AlreadyExists"):
                    raise
        raise already_exists(call.resource.plural, obj["metadata"]["name"], call.resource.group)

    async def _create_named(self, call: Call, obj: Object, problems: Sequence[str], managed: Any = None) -> Outcome:
        resource, served = call.resource, self._rules(call.resource)
        foreign.check_creatable(resource)
        warnings: list[str] = []
        obj = self._decoded(call, obj, problems, warnings)
        metadata = {**obj["metadata"], "uid": meta.new_uid(), "creationTimestamp": meta.now()}
        if resource.has_generation:
            metadata["generation"] = 1
        obj = {**obj, "metadata": metadata}
        if not resource.builtin:
            warnings += meta.finalizer_warnings(metadata.get("finalizers") or [])
        if resource.status_subresource and not resource.builtin:
            obj.pop("status", None)
        self._check_namespace(call, obj)
        # Admission comes after: what it fills in belongs to nobody.
        if managed is None:
            obj = mutation.track(served, call, None, obj)
        else:
            obj = {**obj, "metadata": {**obj["metadata"], **({"managedFields": managed} if managed else {})}}
        with _warned(warnings):
            obj = self._admit(call, served, obj, None, warnings)
            self._check_rights(call, obj, None)
        name = obj["metadata"]["name"]
        key = self.registry.key(resource, call.namespace, name)
        existing = self.registry.get(resource, call.namespace, name)
        if existing is None:
            try:
                return Outcome(201, await self._put(call, key, obj, 0), warnings=warnings)
            except stores.Conflict as lost:
                await self.registry.settle(lost.revision)
                existing = self.registry.get(resource, call.namespace, name)
        error = already_exists(resource.plural, name, resource.group)
        if existing is not None and existing.obj["metadata"].get("deletionTimestamp"):
            error = ApiError(error.reason, f"object is being deleted: {error.message}", error.details)
        raise error

    # --- update -------------------------------------------------------------------------------------------------

    async def update(self, call: Call, obj: Object, problems: Sequence[str] = ()) -> Outcome:
        """Replace an object (or its status). Raises 400, 404, 409 and 422."""
        resource = call.resource
        obj = self._own_identity(call, obj)
        metadata = obj["metadata"]
        if not metadata.get("name"):
            text = f"the name of the object ({call.name} based on URL) was undeterminable: name must be provided"
            raise ApiError("BadRequest", text)
        warnings: list[str] = []
        obj = self._decoded(call, obj, problems, warnings)
        wanted = metadata.get("resourceVersion") or ""
        if wanted and not str(wanted).isdigit():
            text = f"resourceVersion: Invalid value: {meta.go_quote(str(wanted))}: must be an unsigned integer"
            raise ApiError("BadRequest", text)
        record = self.registry.get(resource, call.namespace, call.name)
        if record is None:
            return await self._create_by_update(call, obj, str(wanted))
        needs_version = not resource.builtin or resource.kind in core_rules.VERSION_REQUIRED
        if wanted in ("", "0") and needs_version and call.subresource != "finalize":
            found = [cause("metadata.resourceVersion", "Invalid value: 0: must be specified for an update")]
            raise _invalid_by_plural(resource, call.name, found)
        wanted = "" if wanted == "0" else str(wanted)
        with _warned(warnings):
            return await self._change(call, lambda _old: obj, wanted, warnings)

    async def _create_by_update(self, call: Call, obj: Object, wanted: str) -> Outcome:
        resource = call.resource
        if not resource.builtin or resource.kind not in core_rules.CREATED_BY_PUT or call.subresource:
            raise not_found(resource.plural, call.name, resource.group)
        if wanted not in ("", "0"):
            raise conflict(resource.plural, call.name, resource.group)
        metadata = {key: value for key, value in obj["metadata"].items() if key != "resourceVersion"}
        asked = _attributes(call, "create")
        self._authorizer.check(call.user, asked)
        return await self.create(call, {**obj, "metadata": metadata})

    async def patch(self, call: Call, change: mutation.Change) -> Outcome:
        """Patch an object (or its status) with a JSON, merge or strategic merge patch. Raises 404, 409, 415 and 422."""
        served = self._rules(call.resource)
        record = self.registry.get(call.resource, call.namespace, call.name)
        if record is None:
            raise not_found(call.resource.plural, call.name, call.resource.group)
        warnings: list[str] = []

        def changed(old: Object) -> Object:
            warnings.clear()
            new = change.applied_to(served, self._seen(call, old))
            new = mutation.identified(call, new, warnings)
            new = self._own_identity(call, new)
            return self._decoded(call, new, change.problems, warnings, patch=True)

        with _warned(warnings):
            return await self._change(call, changed, change.resource_version, warnings, is_patch=True)

    async def apply(self, call: Call, applied: Object, problems: Sequence[str] = ()) -> Outcome:
        """Server-side apply: create or merge. Raises 400, 403, 409 and 422."""
        served = self._rules(call.resource)
        mutation.check_applied(call, applied)
        applied = self._own_identity(call, applied)
        warnings: list[str] = []
        for _ in range(RETRIES):
            record = self.registry.get(call.resource, call.namespace, call.name)
            if record is None:
                if call.subresource:
                    raise not_found(call.resource.plural, call.name, call.resource.group)
                if applied["metadata"].get("uid"):
                    uid = applied["metadata"]["uid"]
                    text = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                    raise conflict_text(call, text)
                self._authorizer.check(call.user, _attributes(call, "create"))
                new = mutation.apply(served, call, None, applied)
                managed = new["metadata"].get("managedFields")
                try:
                    return await self._create_applied(call, new, managed, problems)
                except ApiError as error:
                    if error.reason != "AlreadyExists":
                        raise
                    continue
            old = self._seen(call, self._stored(call.resource, record))
            wanted = str(applied["metadata"].get("resourceVersion") or "")
            new = mutation.apply(served, call, old, applied)
            decoded = self._decoded(call, new, problems, warnings, patch=True)
            if new["metadata"].get("managedFields"):
                decoded["metadata"]["managedFields"] = new["metadata"]["managedFields"]
            try:
                return await self._write_changed(call, record, decoded, wanted, warnings, tracked=True)
            except stores.Conflict as lost:
                await self.registry.settle(lost.revision)
        raise conflict(call.resource.plural, call.name, call.resource.group)

    async def _create_applied(self, call: Call, new: Object, managed: Any, problems: Sequence[str]) -> Outcome:
        """Create what was applied, with the managed fields that the apply made."""
        metadata = {key: value for key, value in new["metadata"].items() if key != "managedFields"}
        metadata.setdefault("name", call.name)
        obj = self._own_identity(call, {**new, "metadata": metadata})
        for field in (*_SERVER_FIELDS, "resourceVersion"):
            obj["metadata"].pop(field, None)
        return await self._create_named(call, obj, problems, managed or [])

    async def _change(
        self, call: Call, make: Any, wanted: str, warnings: list[str], *, is_patch: bool = False
    ) -> Outcome:
        """Write what `make(old)` gives, again on a lost race unless the caller named a version."""
        resource = call.resource
        for _ in range(RETRIES):
            record = self.registry.get(resource, call.namespace, call.name)
            if record is None:
                raise not_found(resource.plural, call.name, resource.group)
            new = make(self._stored(resource, record))
            if is_patch and not wanted:
                seen = str(new["metadata"].get("resourceVersion") or "")
                if seen and seen != str(record.revision):
                    raise conflict(resource.plural, call.name, resource.group)
            try:
                return await self._write_changed(call, record, new, wanted, warnings, patch=is_patch)
            except stores.Conflict as lost:
                # What took its place decides: another version is a conflict, none is not found.
                await self.registry.settle(lost.revision)
        raise conflict(resource.plural, call.name, resource.group)

    async def _write_changed(
        self,
        call: Call,
        record: Record,
        new: Object,
        wanted: str,
        warnings: list[str],
        *,
        patch: bool = False,
        tracked: bool = False,
    ) -> Outcome:
        resource, served, old = call.resource, self._rules(call.resource), self._stored(call.resource, record)
        if wanted and wanted != str(record.revision):
            raise conflict(resource.plural, call.name, resource.group)
        self._check_identity(call, old, new, patch=patch or tracked)
        obj = self._merged(call, old, new)
        obj = obj if tracked else mutation.track(served, call, old, obj)
        obj = self._admit(call, served, obj, old, warnings)
        self._check_update(call, old, obj)
        self._check_rights(call, obj, old)
        obj = self._with_generation(resource, old, obj)
        if mutation.same(old, obj):
            return Outcome(200, record, warnings=warnings)
        metadata = obj["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers") and self._is_final(resource, obj):
            return await self._remove_finished(call, record, obj, warnings)
        return Outcome(200, await self._put(call, record.key, obj, record.revision), warnings=warnings)

    async def _remove_finished(self, call: Call, record: Record, obj: Object, warnings: list[str]) -> Outcome:
        """The last finalizer went: delete, and answer with the object as it was left."""
        if not call.options.dry_run:
            await self.registry.commit([stores.Delete(record.key, record.revision)])
        return Outcome(200, Record(record.key, record.revision, stored_bytes(obj)), warnings=warnings)

    def _is_final(self, resource: Resource, obj: Object) -> bool:
        """Whether nothing holds a deleted object any more; a Namespace is held by spec.finalizers."""
        return resource is not register.NAMESPACE or not (obj.get("spec") or {}).get("finalizers")

    # --- delete -------------------------------------------------------------------------------------------------

    async def delete(self, call: Call, options: DeleteOptions) -> Outcome:
        """Delete, or mark for deletion while finalizers stand. Raises 403, 404 and 409."""
        resource = call.resource
        for _ in range(RETRIES):
            record = self.registry.get(resource, call.namespace, call.name)
            if record is None:
                raise not_found(resource.plural, call.name, resource.group)
            self._check_preconditions(call, record, options)
            if resource is register.NAMESPACE and call.name in core_rules.PROTECTED_NAMESPACES:
                text = f'namespaces "{call.name}" is forbidden: this namespace may not be deleted'
                raise ApiError("Forbidden", text, {"name": call.name, "kind": "namespaces"})
            if self._guard is not None:
                self._guard.check_write(call.user, resource, record.obj, None)
            self._admit_delete(call, record.obj)
            definition_rules.check_writer(call.user, resource, record.obj)
            try:
                return await self._delete_once(call, record, options)
            except stores.Conflict as lost:
                await self.registry.settle(lost.revision)
        raise conflict(resource.plural, call.name, resource.group)

    async def _delete_once(self, call: Call, record: Record, options: DeleteOptions) -> Outcome:
        resource, old = call.resource, record.obj
        dry_run = options.dry_run or call.options.dry_run
        if resource is register.NAMESPACE and (old.get("spec") or {}).get("finalizers"):
            return await self._mark(call, record, self._terminating(old), dry_run)
        if resource is register.CUSTOM_RESOURCE_DEFINITION:
            return await self._mark(call, record, definition_status.terminating(old, meta.now()), dry_run)
        metadata = dict(old["metadata"])
        finalizers = self._deletion_finalizers(metadata, options.propagation)
        if finalizers:
            if metadata.get("deletionTimestamp") and finalizers == list(metadata.get("finalizers") or []):
                return Outcome(200, record)
            metadata["finalizers"] = finalizers
            if not metadata.get("deletionTimestamp"):
                metadata["deletionTimestamp"] = meta.now()
                metadata["deletionGracePeriodSeconds"] = 0
                if resource.has_generation:
                    metadata["generation"] = int(metadata.get("generation", 0)) + 1
            return await self._mark(call, record, {**old, "metadata": metadata}, dry_run)
        if not dry_run:
            revision = await self.registry.commit([stores.Delete(record.key, record.revision)])
            record = Record(record.key, revision, record.value)
        if resource.builtin and resource.kind in core_rules.DELETE_RETURNS_OBJECT:
            return Outcome(200, record)
        return Outcome(200, status=success(resource, call.name, metadata.get("uid", "")))

    async def _mark(self, call: Call, record: Record, obj: Object, dry_run: bool) -> Outcome:
        if mutation.same(record.obj, obj):
            return Outcome(200, record)
        if dry_run:
            return Outcome(200, Record(record.key, record.revision, stored_bytes(obj)))
        return Outcome(200, await self._put(call, record.key, obj, record.revision))

    def _terminating(self, old: Object) -> Object:
        if old["metadata"].get("deletionTimestamp"):
            return old
        metadata = {**old["metadata"], "deletionTimestamp": meta.now()}
        return {**old, "metadata": metadata, "status": {**(old.get("status") or {}), "phase": "Terminating"}}

    def _deletion_finalizers(self, metadata: Object, propagation: str) -> list[str]:
        """Finalizers that will stand once the policy has added its own or taken the other's away."""
        finalizers = list(metadata.get("finalizers") or [])
        ours = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}.get(propagation)
        if propagation:
            finalizers = [name for name in finalizers if name not in ("foregroundDeletion", "orphan")]
        if ours:
            finalizers.append(ours)
        return finalizers

    def _check_preconditions(self, call: Call, record: Record, options: DeleteOptions) -> None:
        uid = record.obj["metadata"].get("uid", "")
        resource = call.resource
        if options.uid and options.uid != uid:
            text = (
                f"Operation cannot be fulfilled on {resource.kind}{f'.{resource.group}' if resource.group else ''} "
                f'"{call.name}": the UID in the precondition ({options.uid}) does not match the UID in record ({uid}). '
                "The object might have been deleted and then recreated"
            )
            raise ApiError("Conflict", text, {"name": call.name, "group": resource.group, "kind": resource.kind})
        if options.resource_version and options.resource_version != str(record.revision):
            text = (
                f"Operation cannot be fulfilled on {resource.kind}{f'.{resource.group}' if resource.group else ''} "
                f'"{call.name}": the ResourceVersion in the precondition ({options.resource_version}) does not match '
                f"the ResourceVersion in record ({record.revision}). The object might have been modified"
            )
            raise ApiError("Conflict", text, {"name": call.name, "group": resource.group, "kind": resource.kind})

    async def delete_collection(self, call: Call, selected: ListOptions, options: DeleteOptions) -> Page:
        """Delete what is selected, one by one; the page holds the objects as they were."""
        page = await self.reader.page(call.resource, call.namespace, selected)
        for record in page.records:
            metadata = record.obj["metadata"]
            one = Call(
                user=call.user, resource=call.resource, version=call.version,
                namespace=metadata.get("namespace", ""), name=metadata["name"], options=call.options,
            )  # fmt: skip
            try:
                await self.delete(one, options)
            except ApiError as error:
                if error.reason != "NotFound":
                    raise
        return page

    def _rules(self, resource: Resource) -> Served:
        """The kind whose schema rules what is stored: events have two names and one storage."""
        return self.catalogue.served(register.EVENT if resource.group == EVENTS_GROUP else resource)

    def _stored(self, resource: Resource, record: Record) -> Object:
        """The stored state as its kind is defined now."""
        return foreign.as_defined(self._rules(resource).resource, record.obj) if resource.edition else record.obj

    # --- steps of a write ---------------------------------------------------------------------------------------

    def _own_identity(self, call: Call, obj: Object) -> Object:
        """The object under the stored version, names and namespace agreed with the URL; a fresh top and metadata."""
        resource = call.resource
        if resource.group == EVENTS_GROUP:
            obj = (
                core_from_events_v1(obj)
                if obj.get("apiVersion", call.api_version).startswith(EVENTS_GROUP)
                else dict(obj)
            )
            stored_version = "v1"
        else:
            stored_version = resource.api_version
            stated = obj.get("apiVersion") or call.api_version
            if stated not in (call.api_version, stored_version):
                expected = f"does not match the expected API version ({call.api_version})"
                raise ApiError("BadRequest", f"the API version in the data ({stated}) {expected}")
        kind = obj.get("kind") or resource.kind
        if kind != resource.kind:
            text = f"{kind} in version {meta.go_quote(call.version)} cannot be handled as a {resource.kind}"
            raise ApiError("BadRequest", text)
        metadata = obj.get("metadata")
        if metadata is None:
            metadata = {}
        if not isinstance(metadata, dict):
            text = (
                f'{resource.kind} in version "{call.version}" cannot be handled as a {resource.kind}: json: cannot '
                f"unmarshal {schema.type_of(metadata)} into Go struct field {resource.kind}.metadata of type "
                "v1.ObjectMeta"
            )
            raise ApiError("BadRequest", text)
        metadata = dict(metadata)
        if resource.namespaced:
            if metadata.get("namespace") in (None, ""):
                metadata["namespace"] = call.namespace
            elif metadata["namespace"] != call.namespace:
                text = "the namespace of the provided object does not match the namespace sent on the request"
                raise ApiError("BadRequest", text)
        else:
            metadata.pop("namespace", None)
        if call.name and metadata.get("name") and metadata["name"] != call.name:
            text = f"the name of the object ({metadata['name']}) does not match the name on the URL ({call.name})"
            raise ApiError("BadRequest", text)
        return {**obj, "apiVersion": stored_version, "kind": resource.kind, "metadata": metadata}

    def _seen(self, call: Call, obj: Object) -> Object:
        """A stored object as the caller's version shows it."""
        return {**obj, "apiVersion": call.api_version} if call.version != call.resource.version else obj

    def _decoded(
        self, call: Call, obj: Object, problems: Sequence[str], warnings: list[str], *, patch: bool = False
    ) -> Object:
        """Types checked, unknown fields pruned (or refused), schema defaults put in. Raises 400 and 422."""
        resource, served = call.resource, self._rules(call.resource)
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

    def _admit(self, call: Call, served: Served, obj: Object, old: Object | None, warnings: list[str]) -> Object:
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
        storage_rules.check_resize(resource, obj, old, self.registry.peek)
        obj = self._ranges.admit(resource, obj, old)
        if old is not None:
            self._check_finalizers(resource, old, obj)
            if not resource.builtin:
                known = old["metadata"].get("finalizers") or []
                added = [name for name in obj["metadata"].get("finalizers") or [] if name not in known]
                warnings.extend(meta.finalizer_warnings(added))
        return obj

    def _admit_delete(self, call: Call, old: Object) -> None:
        if not call.resource.builtin and not call.resource.edition:
            request = AdmissionRequest(
                operation="DELETE", resource=call.resource, namespace=call.namespace, obj={}, old=old,
                user=call.user.name, groups=call.user.groups, dry_run=call.options.dry_run,
            )  # fmt: skip
            admit(request, self._lookup)

    def _check_namespace(self, call: Call, obj: Object) -> None:
        """New content needs a namespace that exists and is not going away."""
        resource = call.resource
        if not resource.namespaced:
            return
        namespace = self.registry.peek(register.NAMESPACE, "", call.namespace)
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

    def _check_rights(self, call: Call, obj: Object, old: Object | None) -> None:
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

    def _check_identity(self, call: Call, old: Object, new: Object, *, patch: bool) -> None:
        """What names an object does not change. Raises 409 for the uid of a PUT, else 422."""
        resource, stated, actual = call.resource, new["metadata"].get("uid"), old["metadata"].get("uid")
        causes = meta.identity_causes(old["metadata"], new["metadata"])
        if patch or not stated or stated == actual:
            if causes:
                # The original finds each of these twice.
                raise invalid(resource.kind, resource.group, call.name, [c for each in causes for c in (each, each)])
            return
        qualified = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
        kind = f"{resource.group}/{resource.plural}" if resource.group else resource.plural
        key = "/".join(filter(None, ("/registry", kind, call.namespace, call.name)))
        text = (
            f'Operation cannot be fulfilled on {qualified} "{call.name}": StorageError: invalid object, Code: 4, Key: '
            f"{key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {stated}, "
            f"UID in object meta: {actual}"
        )
        raise ApiError("Conflict", text, {"name": call.name, "group": resource.group, "kind": resource.plural})

    def _merged(self, call: Call, old: Object, new: Object) -> Object:
        """The new state: what the subresource may write from `new`, the rest and the server's own fields from `old`."""
        resource = call.resource
        kept = {field: old["metadata"][field] for field in _SERVER_FIELDS if field in old["metadata"]}
        metadata = {key: value for key, value in new["metadata"].items() if key not in _SERVER_FIELDS}
        metadata = {**metadata, **kept}
        metadata.pop("resourceVersion", None)
        metadata["resourceVersion"] = old["metadata"]["resourceVersion"]
        if call.subresource == "status":
            if resource.builtin:
                merged = {**old, "metadata": metadata}
            else:
                managed = {"managedFields": metadata["managedFields"]} if metadata.get("managedFields") else {}
                merged = {**old, "metadata": {**old["metadata"], **managed}}
            merged.pop("status", None)
            if "status" in new:
                merged["status"] = new["status"]
            return merged
        if call.subresource == "finalize":
            spec = {**(old.get("spec") or {}), "finalizers": (new.get("spec") or {}).get("finalizers") or []}
            if not spec["finalizers"]:
                del spec["finalizers"]
            return {**old, "spec": spec}
        merged = {**new, "metadata": metadata}
        if resource.status_subresource:
            merged.pop("status", None)
            if "status" in old:
                merged["status"] = old["status"]
        return merged

    def _with_generation(self, resource: Resource, old: Object, obj: Object) -> Object:
        """generation + 1 when anything but metadata (and status, where that is a subresource) changed."""
        if not resource.has_generation:
            return obj
        ignored = {"metadata", "status"} if resource.status_subresource else {"metadata"}
        before = {key: value for key, value in old.items() if key not in ignored}
        after = {key: value for key, value in obj.items() if key not in ignored}
        if before == after:
            return obj
        generation = int(old["metadata"].get("generation", 0)) + 1
        return {**obj, "metadata": {**obj["metadata"], "generation": generation}}

    def _check_finalizers(self, resource: Resource, old: Object, obj: Object) -> None:
        """No new finalizer on an object that is being deleted."""
        if not old["metadata"].get("deletionTimestamp"):
            return
        known = set(old["metadata"].get("finalizers") or [])
        added = [name for name in obj["metadata"].get("finalizers") or [] if name not in known]
        if added:
            shown = "[]string{" + ", ".join(meta.go_quote(name) for name in added) + "}"
            text = (
                "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers "
                f"{shown}"
            )
            found = [cause("metadata.finalizers", text, "FieldValueForbidden")] * 2
            raise invalid(resource.kind, resource.group, obj["metadata"]["name"], found)

    def _check_update(self, call: Call, old: Object, obj: Object) -> None:
        if obj["metadata"].get("name") != old["metadata"].get("name"):
            text = f"Invalid value: {meta.go_quote(obj['metadata'].get('name', ''))}: field is immutable"
            found = [cause("metadata.name", text)]
            raise invalid(call.resource.kind, call.resource.group, call.name, found)

    async def _put(self, call: Call, key: str, obj: Object, expected: int) -> Record:
        """Write and return the new state; a dry run returns it with the old revision (0: none)."""
        value = stored_bytes(obj)
        if len(value) > MAX_OBJECT_BYTES:
            raise too_large(MAX_OBJECT_BYTES)
        if call.options.dry_run:
            with self._quotas.place(call.resource, call.namespace, obj):
                return Record(key, expected, value)
        put = stores.Put(key, value, expected)
        revision = await self._quotas.commit(call.resource, call.namespace, obj, put)
        return self.registry.record(key, revision, value)


def resource_keeps_generation(resource: Resource) -> bool:
    """Whether a generation is what the client said."""
    return resource.builtin and not resource.has_generation


def _attributes(call: Call, verb: str) -> Attributes:
    return Attributes(
        verb=verb, group=call.resource.group, version=call.version, resource=call.resource.plural,
        namespace=call.namespace, name=call.name,
    )  # fmt: skip


def _invalid_by_plural(resource: Resource, name: str, causes: list[dict[str, str]]) -> ApiError:
    """422 as the storage layer words it: with the plural where others say the kind."""
    return invalid(resource.plural, resource.group, name, causes)


def conflict_text(call: Call, text: str) -> ApiError:
    """409 with a text of its own."""
    resource = call.resource
    qualified = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
    details = {"name": call.name, "group": resource.group, "kind": resource.plural}
    return ApiError("Conflict", f'Operation cannot be fulfilled on {qualified} "{call.name}": {text}', details)


def success(resource: Resource, name: str, uid: str) -> Object:
    """The Status of a delete that is done."""
    details = {"name": name, "group": resource.group, "kind": resource.plural, "uid": uid}
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {key: value for key, value in details.items() if value},
    }  # fmt: skip
