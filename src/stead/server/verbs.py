"""The verbs: create, update, patch, apply, delete and deletecollection, with Kubernetes' exact semantics.

Called by `app` for requests and by `client.local` for our own code; authorisation has happened before. Every write goes
the same way: decode → prune → defaults → admission → validation (`acceptance`) → metadata (`identity`, `transition`) →
managed fields (`mutation`) → compare-and-swap (`storing`); deleting stands in `deletion`. One
that changes nothing is not written. Stateless between calls; a write that loses a race is tried again on the new state
unless the caller named a resourceVersion. Follows C1 to C7, X1, X2, P1 to P5, A1 to A5, Y1, Y2, G1, G2, G4, U1, K1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube import meta
from stead.kube.errors import ApiError, already_exists, cause, conflict, invalid, not_found
from stead.server import core_rules, foreign, mutation, transition
from stead.server.acceptance import Acceptance, WriteGuard
from stead.server.authz import Attributes, Authorizer
from stead.server.calls import Call, DeleteOptions, Outcome
from stead.server.catalogue import Catalogue
from stead.server.deletion import Deletion
from stead.server.identity import own_identity, seen
from stead.server.reading import ListOptions, Page, Reader
from stead.server.registry import Object, Record, Registry, stored_bytes
from stead.server.storing import Storing
from stead.store import contract as stores

#: how often a write that lost a race is tried on the new state
RETRIES = 8
#: how often a generated name that is taken is drawn again
NAME_TRIES = 8


@contextlib.contextmanager
def _warned(warnings: list[str]) -> Iterator[None]:
    """A refusal carries the warnings that were found before it."""
    try:
        yield
    except ApiError as error:
        error.warnings = list(warnings)
        raise


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
        self._acceptance = Acceptance(registry, catalogue, authorizer, guard)
        self._storing = Storing(registry)
        self._deletion = Deletion(registry, self.reader, self._acceptance, self._storing)

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
        obj = own_identity(call, obj)
        metadata = dict(obj["metadata"])
        version = metadata.pop("resourceVersion", "")
        if version and version != "0" and str(version).isdigit():
            raise ApiError("BadRequest", "resourceVersion should not be set on objects to be created")
        # Of built-in kinds that count no generations, the original keeps what the client says.
        kept = ("generation",) if resource_keeps_generation(call.resource) else ()
        for field in transition.SERVER_FIELDS:
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
        resource, served = call.resource, self._acceptance.rules(call.resource)
        foreign.check_creatable(resource)
        warnings: list[str] = []
        obj = self._acceptance.decoded(call, obj, problems, warnings)
        metadata = {**obj["metadata"], "uid": meta.new_uid(), "creationTimestamp": meta.now()}
        if resource.has_generation:
            metadata["generation"] = 1
        obj = {**obj, "metadata": metadata}
        if not resource.builtin:
            warnings += meta.finalizer_warnings(metadata.get("finalizers") or [])
        if resource.status_subresource and not resource.builtin:
            obj.pop("status", None)
        self._acceptance.check_namespace(call, obj)
        # Admission comes after: what it fills in belongs to nobody.
        if managed is None:
            obj = mutation.track(served, call, None, obj)
        else:
            obj = {**obj, "metadata": {**obj["metadata"], **({"managedFields": managed} if managed else {})}}
        with _warned(warnings):
            obj = self._acceptance.admit(call, served, obj, None, warnings)
            self._acceptance.check_rights(call, obj, None)
        name = obj["metadata"]["name"]
        key = self.registry.key(resource, call.namespace, name)
        existing = self.registry.get(resource, call.namespace, name)
        if existing is None:
            try:
                return Outcome(201, await self._storing.put(call, key, obj, 0), warnings=warnings)
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
        obj = own_identity(call, obj)
        metadata = obj["metadata"]
        if not metadata.get("name"):
            text = f"the name of the object ({call.name} based on URL) was undeterminable: name must be provided"
            raise ApiError("BadRequest", text)
        warnings: list[str] = []
        obj = self._acceptance.decoded(call, obj, problems, warnings)
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
        served = self._acceptance.rules(call.resource)
        record = self.registry.get(call.resource, call.namespace, call.name)
        if record is None:
            raise not_found(call.resource.plural, call.name, call.resource.group)
        warnings: list[str] = []

        def changed(old: Object) -> Object:
            warnings.clear()
            new = change.applied_to(served, seen(call, old))
            new = mutation.identified(call, new, warnings)
            new = own_identity(call, new)
            return self._acceptance.decoded(call, new, change.problems, warnings, patch=True)

        with _warned(warnings):
            return await self._change(call, changed, change.resource_version, warnings, is_patch=True)

    async def apply(self, call: Call, applied: Object, problems: Sequence[str] = ()) -> Outcome:
        """Server-side apply: create or merge. Raises 400, 403, 409 and 422."""
        served = self._acceptance.rules(call.resource)
        mutation.check_applied(call, applied)
        applied = own_identity(call, applied)
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
            old = seen(call, self._acceptance.stored(call.resource, record))
            wanted = str(applied["metadata"].get("resourceVersion") or "")
            new = mutation.apply(served, call, old, applied)
            decoded = self._acceptance.decoded(call, new, problems, warnings, patch=True)
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
        obj = own_identity(call, {**new, "metadata": metadata})
        for field in (*transition.SERVER_FIELDS, "resourceVersion"):
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
            new = make(self._acceptance.stored(resource, record))
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
        resource, served, old = (
            call.resource,
            self._acceptance.rules(call.resource),
            self._acceptance.stored(call.resource, record),
        )
        if wanted and wanted != str(record.revision):
            raise conflict(resource.plural, call.name, resource.group)
        transition.check_identity(call, old, new, patch=patch or tracked)
        obj = transition.merged(call, old, new)
        obj = obj if tracked else mutation.track(served, call, old, obj)
        obj = self._acceptance.admit(call, served, obj, old, warnings)
        transition.check_name(call, old, obj)
        self._acceptance.check_rights(call, obj, old)
        obj = transition.with_generation(resource, old, obj)
        if mutation.same(old, obj):
            return Outcome(200, record, warnings=warnings)
        metadata = obj["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers") and self._is_final(resource, obj):
            return await self._remove_finished(call, record, obj, warnings)
        return Outcome(200, await self._storing.put(call, record.key, obj, record.revision), warnings=warnings)

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
        return await self._deletion.one(call, options)

    async def delete_collection(self, call: Call, selected: ListOptions, options: DeleteOptions) -> Page:
        """Delete what is selected, one by one; the page holds the objects as they were."""
        return await self._deletion.collection(call, selected, options)


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
