"""Deleting: at once, or by marking an object while finalizers stand; one object or all that are selected.

Called by `verbs`, after authorisation. A delete that loses a race is tried again on the new state. Stateless between
calls. Follows K1, G1, G2 and G4.
"""

from __future__ import annotations

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube import meta
from stead.kube.errors import ApiError, conflict, not_found
from stead.server import core_rules, definition_status, mutation
from stead.server.acceptance import Acceptance
from stead.server.calls import Call, DeleteOptions, Outcome
from stead.server.reading import ListOptions, Page, Reader
from stead.server.registry import Object, Record, Registry, stored_bytes
from stead.server.storing import Storing
from stead.store import contract as stores

#: how often a delete that lost a race is tried on the new state
RETRIES = 8


class Deletion:
    """See the module's prose."""

    def __init__(self, registry: Registry, reader: Reader, acceptance: Acceptance, storing: Storing) -> None:
        self._registry = registry
        self._reader = reader
        self._acceptance = acceptance
        self._storing = storing

    async def one(self, call: Call, options: DeleteOptions) -> Outcome:
        """Delete, or mark for deletion while finalizers stand. Raises 403, 404 and 409."""
        resource = call.resource
        for _ in range(RETRIES):
            record = self._registry.get(resource, call.namespace, call.name)
            if record is None:
                raise not_found(resource.plural, call.name, resource.group)
            _check_preconditions(call, record, options)
            if resource is register.NAMESPACE and call.name in core_rules.PROTECTED_NAMESPACES:
                text = f'namespaces "{call.name}" is forbidden: this namespace may not be deleted'
                raise ApiError("Forbidden", text, {"name": call.name, "kind": "namespaces"})
            self._acceptance.check_delete(call, record.obj)
            try:
                return await self._delete_once(call, record, options)
            except stores.Conflict as lost:
                await self._registry.settle(lost.revision)
        raise conflict(resource.plural, call.name, resource.group)

    async def _delete_once(self, call: Call, record: Record, options: DeleteOptions) -> Outcome:
        resource, old = call.resource, record.obj
        dry_run = options.dry_run or call.options.dry_run
        if resource is register.NAMESPACE and (old.get("spec") or {}).get("finalizers"):
            return await self._mark(call, record, _terminating(old), dry_run)
        if resource is register.CUSTOM_RESOURCE_DEFINITION:
            return await self._mark(call, record, definition_status.terminating(old, meta.now()), dry_run)
        metadata = dict(old["metadata"])
        finalizers = _deletion_finalizers(metadata, options.propagation)
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
            revision = await self._registry.commit([stores.Delete(record.key, record.revision)])
            record = Record(record.key, revision, record.value)
        if resource.builtin and resource.kind in core_rules.DELETE_RETURNS_OBJECT:
            return Outcome(200, record)
        return Outcome(200, status=_success(resource, call.name, metadata.get("uid", "")))

    async def _mark(self, call: Call, record: Record, obj: Object, dry_run: bool) -> Outcome:
        if mutation.same(record.obj, obj):
            return Outcome(200, record)
        if dry_run:
            return Outcome(200, Record(record.key, record.revision, stored_bytes(obj)))
        return Outcome(200, await self._storing.put(call, record.key, obj, record.revision))

    async def collection(self, call: Call, selected: ListOptions, options: DeleteOptions) -> Page:
        """Delete what is selected, one by one; the page holds the objects as they were."""
        page = await self._reader.page(call.resource, call.namespace, selected)
        for record in page.records:
            metadata = record.obj["metadata"]
            single = Call(
                user=call.user, resource=call.resource, version=call.version,
                namespace=metadata.get("namespace", ""), name=metadata["name"], options=call.options,
            )  # fmt: skip
            try:
                await self.one(single, options)
            except ApiError as error:
                if error.reason != "NotFound":
                    raise
        return page


def _terminating(old: Object) -> Object:
    if old["metadata"].get("deletionTimestamp"):
        return old
    metadata = {**old["metadata"], "deletionTimestamp": meta.now()}
    return {**old, "metadata": metadata, "status": {**(old.get("status") or {}), "phase": "Terminating"}}


def _deletion_finalizers(metadata: Object, propagation: str) -> list[str]:
    """Finalizers that will stand once the policy has added its own or taken the other's away."""
    finalizers = list(metadata.get("finalizers") or [])
    ours = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}.get(propagation)
    if propagation:
        finalizers = [name for name in finalizers if name not in ("foregroundDeletion", "orphan")]
    if ours:
        finalizers.append(ours)
    return finalizers


def _check_preconditions(call: Call, record: Record, options: DeleteOptions) -> None:
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


def _success(resource: Resource, name: str, uid: str) -> Object:
    """The Status of a delete that is done."""
    details = {"name": name, "group": resource.group, "kind": resource.plural, "uid": uid}
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {key: value for key, value in details.items() if value},
    }  # fmt: skip
