"""Who owns which field: managedFields after updates, and server-side apply.

The server calls `apply` for apply patches and `track_update` for every other write, after pruning and defaulting; both
return a new object whose `metadata.managedFields` is right. Pure but for the clock, which the caller passes in. Follows
structured-merge-diff's updater and apimachinery's `managedfields` as recorded from kube-apiserver 1.36: identity is
manager + operation + subresource (+ version for updates); an entry's time moves only when the write changed something.
All served versions of a kind share one schema, so that sets need no conversion.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from stead.kube import fieldset as fs
from stead.kube.errors import ApiError, cause
from stead.kube.meta import ANNOTATIONS_MAX_BYTES, split_api_version
from stead.kube.schema import Schema

APPLY, UPDATE = "Apply", "Update"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
#: above so many Update managers the oldest are merged into one
MAX_UPDATE_MANAGERS = 10
ANCIENT = "ancient-changes"
BEFORE_FIRST_APPLY = "before-first-apply"
#: longest manager name (kube-apiserver's limit for fieldManager)
MAX_MANAGER_LENGTH = 128

_STRIPPED: fs.Paths = frozenset(
    [("f:apiVersion",), ("f:kind",), ("f:metadata",)]
    + [
        ("f:metadata", "f:" + name)
        for name in (
            "name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields",
            "resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds",
        )
    ]
)  # fmt: skip


class Writer(msgspec.Struct, frozen=True, kw_only=True):
    """Who writes, how and when. `time` is RFC 3339; `ignored` are top-level fields that this endpoint leaves alone
    (`status` for a main resource with a status subresource; all others but `metadata` for `/status`)."""

    manager: str
    api_version: str
    time: str
    subresource: str = ""
    ignored: tuple[str, ...] = ()
    force: bool = False


class _Entry(msgspec.Struct, frozen=True):
    """One entry of managedFields with its set."""

    manager: str
    operation: str
    api_version: str
    subresource: str
    time: str
    paths: fs.Paths

    @property
    def identity(self) -> tuple[str, str, str, str]:
        version = "" if self.operation == APPLY else self.api_version
        return (self.operation, self.manager, version, self.subresource)


_Entries = dict[tuple[str, str, str, str], _Entry]


def manager_from_user_agent(user_agent: str) -> str:
    """The manager of a request without `fieldManager`: the User-Agent up to the first slash."""
    printable = "".join(c for c in user_agent.split("/", 1)[0] if c.isprintable())
    return printable[:MAX_MANAGER_LENGTH] or "unknown"


# --- updates ----------------------------------------------------------------------------------------------------


def track_update(schema: Schema, live: dict[str, Any] | None, new: dict[str, Any], writer: Writer) -> dict[str, Any]:
    """`new` with managedFields as a create (`live` None), PUT or patch of other kinds leaves them.

    managedFields in `new` replace the live ones; a list without any proper entry (`[]`, `[{}]`) resets them; absent or
    broken ones leave the live ones. Once reset they stay empty until the first apply.
    """
    entries = _starting_entries(live, new)
    if not entries and live is not None:
        return _with_entries(new, {})
    before = _body(live or {}, writer)
    difference = fs.compare(schema, before, _body(new, writer))
    taken = (difference.added | difference.modified) - _STRIPPED
    entries = _without(entries, difference.added | difference.modified | difference.removed)
    if taken:
        mine = _Entry(writer.manager, UPDATE, writer.api_version, writer.subresource, writer.time, taken)
        previous = entries.get(mine.identity)
        both = taken | (previous.paths if previous else fs.EMPTY)
        entries[mine.identity] = msgspec.structs.replace(mine, paths=both)
    return _with_entries(new, _capped(entries))


def _starting_entries(live: dict[str, Any] | None, new: dict[str, Any]) -> _Entries:
    stored = _entries_of(live or {}) or {}
    given = new.get("metadata", {}).get("managedFields")
    if not isinstance(given, list):
        return stored
    entries = _entries_of(new)
    return stored if entries is None else entries


def _entries_of(obj: dict[str, Any]) -> _Entries | None:
    """The entries of an object; {} for none or a reset (`[{}]`); None if any of them is malformed."""
    entries: _Entries = {}
    given = obj.get("metadata", {}).get("managedFields") or []
    if given == [{}]:
        return {}
    for raw in given:
        if not isinstance(raw, dict) or raw.get("operation") not in {APPLY, UPDATE}:
            return None
        fields = raw.get("fieldsV1") or {}
        if not isinstance(fields, dict) or raw.get("fieldsType", "FieldsV1") != "FieldsV1":
            return None
        entry = _Entry(
            str(raw.get("manager", "")), raw["operation"], str(raw.get("apiVersion", "")),
            str(raw.get("subresource", "")), str(raw.get("time") or ""), fs.paths_from_fields(fields),
        )  # fmt: skip
        entries[entry.identity] = entry
    return entries


def _body(obj: dict[str, Any], writer: Writer) -> dict[str, Any]:
    """The object without what this endpoint ignores."""
    return {k: v for k, v in obj.items() if k not in writer.ignored}


def _without(entries: _Entries, gone: fs.Paths) -> _Entries:
    """The entries without the paths; those that own nothing any more are dropped."""
    kept = {i: msgspec.structs.replace(e, paths=e.paths - gone) if e.paths & gone else e for i, e in entries.items()}
    return {identity: entry for identity, entry in kept.items() if entry.paths}


def _capped(entries: _Entries) -> _Entries:
    updates = sorted((e for e in entries.values() if e.operation == UPDATE), key=lambda e: (e.time, e.manager))
    surplus = len(updates) - MAX_UPDATE_MANAGERS
    if surplus <= 0:
        return entries
    result = dict(entries)
    # One more goes than the surplus, for the bucket is an entry too.
    for old in [e for e in updates if e.manager != ANCIENT][: surplus + 1]:
        del result[old.identity]
        bucket = msgspec.structs.replace(old, manager=ANCIENT, subresource="")
        if known := result.get(bucket.identity):
            bucket = msgspec.structs.replace(bucket, paths=bucket.paths | known.paths)
        result[bucket.identity] = bucket
    return result


def _with_entries(obj: dict[str, Any], entries: _Entries) -> dict[str, Any]:
    """A copy of the object that carries the entries in the API server's order: applies first, then by time and name."""
    metadata = {k: v for k, v in obj.get("metadata", {}).items() if k != "managedFields"}
    ordered = sorted(entries.values(), key=lambda e: (e.operation, e.time, e.manager, e.subresource))
    if ordered:
        metadata["managedFields"] = [_raw(entry) for entry in ordered]
    return {**obj, "metadata": metadata}


def _raw(entry: _Entry) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "manager": entry.manager,
        "operation": entry.operation,
        "apiVersion": entry.api_version,
        "fieldsType": "FieldsV1",
        "fieldsV1": fs.fields_from_paths(entry.paths),
    }
    if entry.time:
        raw["time"] = entry.time
    if entry.subresource:
        raw["subresource"] = entry.subresource
    return raw


# --- apply ------------------------------------------------------------------------------------------------------


def apply(schema: Schema, live: dict[str, Any] | None, config: dict[str, Any], writer: Writer) -> dict[str, Any]:
    """The object after server-side apply of `config` (`live` None: it is to be created), before defaulting.

    Raises ApiError: 400 if the config carries managedFields or does not fit the schema, 409 with a
    `FieldManagerConflict` cause for each field that others own with another value, unless `force`.
    """
    if config.get("metadata", {}).get("managedFields") is not None:
        raise ApiError("BadRequest", "metadata.managedFields must be nil")
    _check_config(schema, config)
    base = {k: v for k, v in (live or {}).items()}
    entries = _entries_of(base) or {}
    if live is not None and not entries:
        entries = _before_first_apply(schema, live, writer)
    body = _body(config, writer)
    try:
        result, entries = _apply(schema, base, body, (entries, writer))
    except _Conflicts as conflicts:
        if writer.manager != "kubectl":
            raise conflicts.error() from None
        # Fields that `kubectl apply` set from the client's side are kubectl's already.
        left = conflicts.without(_last_applied_paths(schema, base))
        if left.found:
            raise left.error() from None
        result, entries = _apply(schema, base, body, (entries, msgspec.structs.replace(writer, force=True)))
    return _with_entries(_with_last_applied(result, live, config, writer), entries)


def check_identity(config: dict[str, Any], api_version: str, kind: str, name: str) -> None:
    """Refuse (400) an applied config of another type than the URL's, or without the URL's name in its metadata."""
    if (config.get("apiVersion"), config.get("kind")) != (api_version, kind):
        group, version = split_api_version(str(config.get("apiVersion") or ""), strict=False)
        raise ApiError("BadRequest", f"invalid object type: {group}/{version}, Kind={config.get('kind') or ''}")
    metadata = config.get("metadata")
    own = metadata.get("name") if isinstance(metadata, dict) else None
    if not own:
        text = f"the name of the object ({name} based on URL) was undeterminable: name must be provided"
        raise ApiError("BadRequest", text)
    if own != name:
        raise ApiError("BadRequest", f"the name of the object ({own}) does not match the name on the URL ({name})")


def _check_config(schema: Schema, config: dict[str, Any]) -> None:
    try:
        fs.check_typed(schema, config)
    except fs.SchemaMismatch as error:
        metadata = config.get("metadata") or {}
        group, version = split_api_version(str(config.get("apiVersion", "")), strict=False)
        kind = f"{group}/{version}, Kind={config.get('kind', '')}"
        place = f"{metadata.get('namespace', '')}/{metadata.get('name', '')}" if isinstance(metadata, dict) else "/"
        text = f"failed to create typed patch object ({place}; {kind}): {error}"
        raise ApiError("BadRequest", text) from error


def _before_first_apply(schema: Schema, live: dict[str, Any], writer: Writer) -> _Entries:
    paths = fs.compare(schema, {}, live).added - _STRIPPED
    entry = _Entry(BEFORE_FIRST_APPLY, UPDATE, str(live.get("apiVersion", writer.api_version)), "", writer.time, paths)
    return {entry.identity: entry} if paths else {}


def _apply(
    schema: Schema, live: dict[str, Any], config: dict[str, Any], state: tuple[_Entries, Writer]
) -> tuple[dict[str, Any], _Entries]:
    entries, writer = state
    mine = _Entry(
        writer.manager, APPLY, writer.api_version, writer.subresource, "", fs.paths_of(schema, config) - _STRIPPED
    )
    last = entries.get(mine.identity)
    mine = msgspec.structs.replace(mine, time=last.time if last else "")
    entries = {**entries, mine.identity: mine}
    merged = fs.merge(schema, live, _without_server_fields(config, live))
    if last:
        merged = _pruned(schema, merged, last.paths, entries)
    difference = fs.compare(schema, live, merged)
    changed = (difference.added | difference.modified) - _STRIPPED
    others = {identity: entry for identity, entry in entries.items() if identity != mine.identity}
    conflicts = {identity: entry.paths & changed for identity, entry in others.items() if entry.paths & changed}
    if conflicts and not writer.force:
        raise _Conflicts([(entries[identity], paths) for identity, paths in conflicts.items()])
    result = _without(others, changed | difference.removed)
    if changed or difference.removed - _STRIPPED:
        mine = msgspec.structs.replace(mine, time=writer.time)
    if mine.paths:
        result[mine.identity] = mine
    return merged, result


def _without_server_fields(config: dict[str, Any], live: dict[str, Any]) -> dict[str, Any]:
    """The config without creationTimestamp, which applies carry as null or stale and the server alone sets."""
    metadata = config.get("metadata")
    if not live or not isinstance(metadata, dict) or "creationTimestamp" not in metadata:
        return config
    return {**config, "metadata": {k: v for k, v in metadata.items() if k != "creationTimestamp"}}


def _pruned(schema: Schema, merged: dict[str, Any], last: fs.Paths, entries: _Entries) -> dict[str, Any]:
    """`merged` without what this manager applied last time and nobody, himself included, owns now."""
    named_last = fs.with_named_fields(schema, last)
    owned = frozenset().union(*(entry.paths for entry in entries.values()))
    kept = fs.paths_of(schema, fs.remove(schema, merged, named_last))
    survivors = fs.with_named_fields(schema, kept) | fs.with_named_fields(schema, owned)
    present = fs.with_named_fields(schema, fs.paths_of(schema, merged))
    result: dict[str, Any] = fs.remove(schema, merged, ((present - survivors) & named_last) - _STRIPPED)
    return result


# --- conflicts --------------------------------------------------------------------------------------------------


class _Conflicts(Exception):
    """Fields that other managers own with other values."""

    def __init__(self, found: list[tuple[_Entry, fs.Paths]]) -> None:
        super().__init__("conflicts")
        self.found = sorted(found, key=lambda pair: pair[0].manager)

    def without(self, allowed: fs.Paths) -> _Conflicts:
        left = [(entry, paths - allowed) for entry, paths in self.found]
        return _Conflicts([(entry, paths) for entry, paths in left if paths])

    def error(self) -> ApiError:
        """The 409 that the client sees."""
        causes = [
            cause(text, f"conflict with {_who(entry)}", "FieldManagerConflict")
            for entry, paths in self.found
            for text in fs.told(paths)
        ]
        if len(causes) == 1:
            message = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
        else:
            blocks = ["\n- ".join([f"conflicts with {_who(entry)}:", *fs.told(paths)]) for entry, paths in self.found]
            message = f"Apply failed with {len(causes)} conflicts: " + "\n".join(blocks)
        return ApiError("Conflict", message, {"causes": causes})


def _who(entry: _Entry) -> str:
    text = json.dumps(entry.manager, ensure_ascii=False)
    if entry.subresource:
        text += f' with subresource "{entry.subresource}"'
    return text if entry.operation == APPLY else f"{text} using {entry.api_version}"


# --- kubectl's annotation ---------------------------------------------------------------------------------------


def _last_applied_paths(schema: Schema, live: dict[str, Any]) -> fs.Paths:
    text = (live.get("metadata", {}).get("annotations") or {}).get(LAST_APPLIED)
    try:
        config = json.loads(text) if text else None
    except ValueError:
        return fs.EMPTY
    if not isinstance(config, dict) or config.get("kind") != live.get("kind"):
        return fs.EMPTY
    return fs.leaves(fs.paths_of(schema, config))


def _with_last_applied(
    result: dict[str, Any], live: dict[str, Any] | None, config: dict[str, Any], writer: Writer
) -> dict[str, Any]:
    """The result with kubectl's annotation renewed, if kubectl applies and the live object carries it."""
    annotations = (live or {}).get("metadata", {}).get("annotations") or {}
    if writer.manager != "kubectl" or LAST_APPLIED not in annotations or writer.subresource:
        return result
    metadata = dict(config.get("metadata") or {})
    metadata["annotations"] = {k: v for k, v in (metadata.get("annotations") or {}).items() if k != LAST_APPLIED}
    text = json.dumps({**config, "metadata": metadata}, separators=(",", ":"), sort_keys=True) + "\n"
    merged = {**(result["metadata"].get("annotations") or {}), LAST_APPLIED: text}
    if sum(len(k.encode()) + len(v.encode()) for k, v in merged.items()) > ANNOTATIONS_MAX_BYTES:
        return result
    return {**result, "metadata": {**result["metadata"], "annotations": merged}}
