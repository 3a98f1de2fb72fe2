"""Object metadata: names, labels, times, uids, owner references and simple JSON paths.

Owns the syntax rules that every object's `metadata` obeys and the small readers that other rooms need. The server and
admission call the validators, controllers the owner helpers, tables and field selectors the path reader. Stateless;
safe from any thread. Follows apimachinery's `util/validation` and `api/validation`; texts agree with a recorded
kube-apiserver 1.36. Validators return `details.causes` entries (see `errors.cause`), an empty list when all is well.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import secrets
import time
import uuid
from collections.abc import Callable
from typing import Any

from stead.kube.errors import cause
from stead.kube.jsonpath import compile_path, first_at, read_path, scalar_text

__all__ = [
    "ANNOTATIONS_MAX_BYTES",
    "SUFFIX_ALPHABET",
    "SUFFIX_LENGTH",
    "compile_path",
    "controller_of",
    "finalizer_warnings",
    "first_at",
    "format_micro_time",
    "format_time",
    "generate_name",
    "go_quote",
    "is_owned_by",
    "key",
    "label_name_errors",
    "label_value_errors",
    "new_uid",
    "now",
    "now_micro",
    "owner_reference",
    "parse_time",
    "path_segment_errors",
    "qualified_name_errors",
    "read_path",
    "scalar_text",
    "split_api_version",
    "subdomain_errors",
    "validate_annotations",
    "validate_finalizers",
    "validate_labels",
    "validate_metadata",
    "validate_owner_references",
]

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = _LABEL + r"(\." + _LABEL + ")*"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_RE = re.compile(_LABEL)
_SUBDOMAIN_RE = re.compile(_SUBDOMAIN)
_QUALIFIED_RE = re.compile(_QUALIFIED)

_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
    f"with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    f"and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_QUALIFIED_TEXT = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
    f"(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_QUALIFIED}')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation "
    f"is '({_QUALIFIED})?')"
)

#: alphabet of generated suffixes (apimachinery `util/rand`: no vowels, no look-alikes)
SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
SUFFIX_LENGTH = 5
_GENERATED_NAME_MAX = 63
ANNOTATIONS_MAX_BYTES = 256 * 1024
#: finalizers that need no domain prefix
_STANDARD_FINALIZERS = frozenset({"kubernetes", "orphan", "foregroundDeletion"})


# --- names ------------------------------------------------------------------------------------------------------


def subdomain_errors(name: str) -> list[str]:
    """Why `name` is not an RFC 1123 subdomain of at most 253 characters (the rule for most names)."""
    errors = [] if len(name) <= 253 else ["must be no more than 253 characters"]
    if not _SUBDOMAIN_RE.fullmatch(name):
        errors.append(_SUBDOMAIN_TEXT)
    return errors


def label_name_errors(name: str) -> list[str]:
    """Why `name` is not an RFC 1123 label of at most 63 characters (namespaces, services)."""
    errors = [] if len(name) <= 63 else ["must be no more than 63 characters"]
    if not _LABEL_RE.fullmatch(name):
        errors.append("must not contain dots" if _SUBDOMAIN_RE.fullmatch(name) else _LABEL_TEXT)
    return errors


def path_segment_errors(name: str) -> list[str]:
    """Why `name` cannot be one segment of a URL path (the rule for RBAC kinds)."""
    if name in {".", ".."}:
        return [f"may not be '{name}'"]
    return [f"may not contain '{char}'" for char in "/%" if char in name]


def qualified_name_errors(key: str) -> list[str]:
    """Why `key` is not a qualified name `[prefix/]name`, as label and annotation keys must be."""
    prefix, slash, name = key.rpartition("/")
    errors: list[str] = []
    if "/" in prefix:
        optional = " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        return ["a qualified name " + _QUALIFIED_TEXT + optional]
    if slash and not prefix:
        errors.append("prefix part must be non-empty")
    elif slash:
        errors += ["prefix part " + e for e in subdomain_errors(prefix)]
    if not name:
        errors.append("name part must be non-empty")
    elif len(name) > 63:
        errors.append("name part must be no more than 63 bytes")
    if not _QUALIFIED_RE.fullmatch(name):
        errors.append("name part " + _QUALIFIED_TEXT)
    return errors


def label_value_errors(value: str) -> list[str]:
    """Why `value` is not a label value (empty or 63 characters of the allowed set)."""
    errors = [] if len(value) <= 63 else ["must be no more than 63 bytes"]
    if value and not _QUALIFIED_RE.fullmatch(value):
        errors.append(_VALUE_TEXT)
    return errors


def go_quote(text: str) -> str:
    """`text` as Go's `%q` prints it, near enough for messages."""
    return _CONTROL.sub(lambda m: _GO_ESCAPES.get(m[1], rf"\x{m[1]}"), json.dumps(text, ensure_ascii=False))


_CONTROL = re.compile(r"(?<!\\)\\u00([01][0-9a-f])")
_GO_ESCAPES = {"07": r"\a", "0b": r"\v"}


def _bad(field: str, value: Any, text: str) -> dict[str, str]:
    shown = go_quote(value) if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return cause(field, f"Invalid value: {shown}: {text}")


def validate_labels(labels: dict[str, str], field: str = "metadata.labels") -> list[dict[str, str]]:
    """Causes for every label whose key or value breaks the syntax."""
    causes = []
    for key, value in labels.items():
        causes += [_bad(field, key, e) for e in qualified_name_errors(key)]
        causes += [_bad(field, value, e) for e in label_value_errors(value)]
    return causes


def validate_annotations(annotations: dict[str, str], field: str = "metadata.annotations") -> list[dict[str, str]]:
    """Causes for annotation keys (case does not matter in them) and the total of 256 KiB."""
    causes = [_bad(field, key, e) for key in annotations for e in qualified_name_errors(key.lower())]
    size = sum(len(k.encode()) + len(v.encode()) for k, v in annotations.items())
    if size > ANNOTATIONS_MAX_BYTES:
        text = f"Too long: may not be more than {ANNOTATIONS_MAX_BYTES} bytes"
        causes.append(cause(field, text, "FieldValueTooLong"))
    return causes


def validate_finalizers(finalizers: list[str], *, domain_needed: bool = True) -> list[dict[str, str]]:
    """Causes for finalizers that are not qualified names. Custom resources may leave the domain out."""
    field = "metadata.finalizers"
    causes = []
    for index, finalizer in enumerate(finalizers):
        errors = qualified_name_errors(finalizer)
        causes += [_bad(field, finalizer, e) for e in errors]
        if domain_needed and not errors and "/" not in finalizer and finalizer not in _STANDARD_FINALIZERS:
            text = "name is neither a standard finalizer name nor is it fully qualified"
            causes.append(_bad(f"{field}[{index}]", finalizer, text))
    if "orphan" in finalizers and "foregroundDeletion" in finalizers:
        causes.append(_bad(field, finalizers, "finalizer orphan and foregroundDeletion cannot be both set"))
    return causes


def finalizer_warnings(finalizers: list[str]) -> list[str]:
    """Warnings for finalizers of custom resources that lack a domain or a path."""
    return [
        f'metadata.finalizers: "{f}": prefer a domain-qualified finalizer name '
        f"{'including a path (/) ' if '.' in f else ''}to avoid accidental conflicts with other finalizer writers"
        for f in finalizers
        if "/" not in f and f not in _STANDARD_FINALIZERS
    ]


def validate_owner_references(owners: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Causes for owner references with missing parts, forbidden kinds or two controllers."""
    field = "metadata.ownerReferences"
    causes: list[dict[str, str]] = []
    controller = ""
    for owner in owners:
        group, version = split_api_version(owner.get("apiVersion", ""), strict=False)
        if not version:
            causes.append(_bad(f"{field}.apiVersion", owner.get("apiVersion", ""), "version must not be empty"))
        causes += [_bad(f"{field}.{k}", "", "must not be empty") for k in ("kind", "name", "uid") if not owner.get(k)]
        if owner.get("kind") == "Event" and group in {"", "events.k8s.io"}:
            text = f"{group}/{version}, Kind=Event is disallowed from being an owner"
            causes.append(_bad(field, _in_order(owner), text))
        if not owner.get("controller"):
            continue
        if controller:
            text = (
                'Only one reference can have Controller set to true. Found "true" in references for '
                f"{controller} and {_owner_text(owner)}"
            )
            causes.append(_bad(field, [_in_order(o) for o in owners], text))
        else:
            controller = _owner_text(owner)
    return causes


def _in_order(owner: dict[str, Any]) -> dict[str, Any]:
    """The reference with its fields in the API server's order, for messages."""
    fields = ("apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion")
    return {f: owner[f] for f in fields if f in owner}


def _owner_text(owner: dict[str, Any]) -> str:
    return f"{owner.get('kind', '')}/{owner.get('name', '')}"


def validate_metadata(
    metadata: dict[str, Any], name_errors: Callable[[str], list[str]] = subdomain_errors, *, builtin: bool = True
) -> list[dict[str, str]]:
    """Causes for all of `metadata` but the namespace: name, labels, annotations, finalizers, owners.

    `name_errors` is the name rule of the kind: `subdomain_errors`, `label_name_errors` or `path_segment_errors`.
    `builtin` is false for custom resources, whose finalizers need no domain.
    """
    causes: list[dict[str, str]] = []
    generate, name = metadata.get("generateName", ""), metadata.get("name", "")
    if generate:
        # The prefix is checked as a name would be that ends in the generated suffix.
        causes += [_bad("metadata.generateName", generate, e) for e in name_errors(generate.rstrip("-.") or generate)]
    if name:
        causes += [_bad("metadata.name", name, e) for e in name_errors(name)]
    else:
        text = "Required value: name or generateName is required"
        causes.append(cause("metadata.name", text, "FieldValueRequired"))
    causes += validate_labels(metadata.get("labels") or {})
    causes += validate_annotations(metadata.get("annotations") or {})
    causes += validate_owner_references(metadata.get("ownerReferences") or [])
    causes += validate_finalizers(metadata.get("finalizers") or [], domain_needed=builtin)
    return causes


def identity_causes(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, str]]:
    """Causes for what `new` says otherwise of an object's identity and end; what it leaves out stays."""
    fields = ("uid", "deletionTimestamp", "deletionGracePeriodSeconds")
    return [
        _bad(f"metadata.{name}", new[name], "field is immutable")
        for name in fields
        if new.get(name) and new[name] != old.get(name)
    ]


def without_repeated_owners(metadata: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`metadata` with each owner named once, and a warning if one was named again."""
    owners = metadata.get("ownerReferences") or []
    kept: list[dict[str, Any]] = []
    again: list[str] = []
    for owner in owners:
        if owner in kept:
            again.append(str(owner.get("uid", "")))
        else:
            kept.append(owner)
    if not again:
        return metadata, []
    return {**metadata, "ownerReferences": kept}, [_REPEATED_OWNERS + ", ".join(dict.fromkeys(again))]


_REPEATED_OWNERS = (
    ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject "
    "such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: "
)


def generate_name(base: str) -> str:
    """`base`, cut to 58 characters, and five random characters."""
    suffix = "".join(secrets.choice(SUFFIX_ALPHABET) for _ in range(SUFFIX_LENGTH))
    return base[: _GENERATED_NAME_MAX - SUFFIX_LENGTH] + suffix


def new_uid() -> str:
    """A random (version 4) uid."""
    return str(uuid.uuid4())


# --- times ------------------------------------------------------------------------------------------------------

_TIME_RE = re.compile(r"(\d{4}-\d{2}-\d{2})T(\d{2}:\d{2}:\d{2})(?:[.,](\d{1,9}))?(Z|[+-]\d{2}:\d{2})")


def format_time(moment: datetime.datetime) -> str:
    """RFC 3339 in UTC with whole seconds: `metav1.Time`."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_time(moment: datetime.datetime) -> str:
    """RFC 3339 in UTC with six decimals: `metav1.MicroTime`."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def now() -> str:
    """The present as `metav1.Time`."""
    return f"{_second(int(time.time()))}Z"


def now_micro() -> str:
    """The present as `metav1.MicroTime`."""
    second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(second)}.{nanoseconds // 1000:06}Z"


@functools.lru_cache(maxsize=2)
def _second(second: int) -> str:
    """A Unix time without its fraction; asked for the same second again and again."""
    return datetime.datetime.fromtimestamp(second, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def parse_time(text: str) -> datetime.datetime:
    """An aware datetime from RFC 3339 text (fractions beyond microseconds cut). Raises ValueError."""
    match = _TIME_RE.fullmatch(text)
    if not match:
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    day, clock, fraction, zone = match.groups()
    micro = (fraction or "0")[:6].ljust(6, "0")
    return datetime.datetime.fromisoformat(f"{day}T{clock}.{micro}{'+00:00' if zone == 'Z' else zone}")


# --- versions and owners ----------------------------------------------------------------------------------------


def split_api_version(api_version: str, *, strict: bool = True) -> tuple[str, str]:
    """(group, version) of an `apiVersion`; the core group is "". Two slashes: ValueError, or ("", "") if not strict."""
    parts = api_version.split("/")
    if len(parts) == 1:
        return "", parts[0]
    if len(parts) == 2:
        return parts[0], parts[1]
    if strict:
        raise ValueError(f"unexpected GroupVersion string: {api_version}")
    return "", ""


def owner_reference(owner: dict[str, Any], *, controller: bool = True, block: bool = True) -> dict[str, Any]:
    """The ownerReference that points at `owner` (an object with apiVersion, kind and a stored metadata)."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": controller,
        "blockOwnerDeletion": block,
    }


def controller_of(obj: dict[str, Any]) -> dict[str, Any] | None:
    """The ownerReference with `controller: true`, if any."""
    owners: list[dict[str, Any]] = obj.get("metadata", {}).get("ownerReferences") or []
    return next((o for o in owners if o.get("controller")), None)


def is_owned_by(obj: dict[str, Any], uid: str) -> bool:
    """Whether any ownerReference names the uid."""
    return any(o.get("uid") == uid for o in obj.get("metadata", {}).get("ownerReferences") or [])


def key(obj: dict[str, Any]) -> str:
    """`namespace/name`, or `name` for a cluster-scoped object: the key of queues and caches."""
    metadata = obj["metadata"]
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])
