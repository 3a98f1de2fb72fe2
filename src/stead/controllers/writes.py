"""The few ways in which controllers write: status, guarded patches, create-if-absent, delete-if-there.

Called by every `reconcile`. All guard against stale reads: a lost race is raised as `ApiError("Conflict")`, which the
runner answers by looking again. Writing what is there already costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from stead.client.contract import Client, Object
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError, conflict


def changed_rv(obj: Object) -> Object:
    """The JSON patch step that refuses the patch if the object changed since it was read."""
    return {"op": "test", "path": "/metadata/resourceVersion", "value": obj["metadata"]["resourceVersion"]}


async def write_status(client: Client, resource: Resource, obj: Object, status: Object) -> Object:
    """Replace the whole status, if it differs. Returns the object as it is now. Raises Conflict."""
    if (obj.get("status") or {}) == status:
        return obj
    if resource.status_subresource:
        return await client.update(resource, {**obj, "status": status}, "status")
    return await guarded_patch(client, resource, obj, [{"op": "add", "path": "/status", "value": status}])


async def guarded_patch(
    client: Client, resource: Resource, obj: Object, steps: Sequence[Object], subresource: str = ""
) -> Object:
    """A JSON patch that applies only to this very version of `obj`. Raises Conflict."""
    metadata = obj["metadata"]
    try:
        return await client.patch(
            resource, metadata.get("namespace"), metadata["name"], [changed_rv(obj), *steps], subresource
        )
    except ApiError as error:
        # A failed `test` is answered with 422 and no causes; to us it is a lost race like any other.
        if error.code == 422 and not (error.details or {}).get("causes"):
            raise conflict(resource.plural, metadata["name"], resource.group) from error
        raise


def annotation_steps(obj: Object, values: dict[str, str | None]) -> list[Object]:
    """Patch steps that set (or, with None, remove) annotations."""
    known = obj["metadata"].get("annotations")
    if not known:
        return [{"op": "add", "path": "/metadata/annotations", "value": {k: v for k, v in values.items() if v}}]
    steps: list[Object] = []
    for key, value in values.items():
        path = "/metadata/annotations/" + key.replace("~", "~0").replace("/", "~1")
        if value is not None and known.get(key) != value:
            steps.append({"op": "add", "path": path, "value": value})
        elif value is None and key in known:
            steps.append({"op": "remove", "path": path})
    return steps


def finalizer_steps(obj: Object, *, add: str = "", remove: str = "") -> list[Object]:
    """Patch steps that add or remove one finalizer; empty if it is so already."""
    known: list[str] = list(obj["metadata"].get("finalizers") or ())
    wanted = [f for f in known if f != remove]
    if add and add not in wanted:
        wanted.append(add)
    return [] if wanted == known else [{"op": "add", "path": "/metadata/finalizers", "value": wanted}]


async def create_if_absent(client: Client, resource: Resource, obj: Object) -> bool:
    """Create; False if the name is taken already (by whom is the caller's to judge from its informer)."""
    try:
        await client.create(resource, obj)
    except ApiError as error:
        if error.reason == "AlreadyExists":
            return False
        raise
    return True


async def delete_if_there(client: Client, resource: Resource, obj: Object, propagation: str = "Background") -> bool:
    """Delete exactly this object (by uid); False if it is gone or was replaced."""
    metadata = obj["metadata"]
    try:
        await client.delete(
            resource, metadata.get("namespace"), metadata["name"], uid=metadata["uid"], propagation=propagation
        )
    except ApiError as error:
        if error.code in (404, 409):
            return False
        raise
    return True


async def read(client: Client, resource: Resource, namespace: str | None, name: str) -> Object | None:
    """A live read; None if absent."""
    try:
        return await client.get(resource, namespace, name)
    except ApiError as error:
        if error.code == 404:
            return None
        raise
