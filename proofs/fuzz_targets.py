"""What `fuzz` throws bytes at, a process a target: `python fuzz_targets.py TARGET CORPUS`, then libFuzzer's options.

A target takes bytes and lets through the refusals that a client may see; any other exception is a finding, as are a
hang and too much memory, which libFuzzer tells. Where an independent answer is easy, the target compares. `control`
has a mistake on purpose, behind two bytes that only coverage leads to.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["stead.kube", "stead.server.authz", "stead.server.request"]):
    from stead.kube import encoding, patch, protobuf, schema, selectors
    from stead.kube.cel import RuleError, Unsupported, compile_rule
    from stead.kube.errors import ApiError
    from stead.kube.structural_rules import check_structural
    from stead.server.authz import Attributes, attributes_of, rule_allows, uncovered
    from stead.server.request import request_from

_KINDS = ("application/json", "application/yaml")


def manifest(data: bytes) -> None:
    """JSON and YAML bodies: refused, or encoded again as they were."""
    for kind in _KINDS:
        with contextlib.suppress(encoding.DecodeError, ApiError):
            value = encoding.decode(data, kind).value
            assert encoding.decode(encoding.encode(value)).value == value
    with contextlib.suppress(encoding.DecodeError, ApiError):
        encoding.decode_documents(data)


def messages(data: bytes) -> None:
    """Protobuf bodies: refused, or JSON."""
    for body in (data, protobuf.MAGIC + data):
        with contextlib.suppress(ApiError):
            encoding.encode(protobuf.decode(body))


def _value(data: bytes) -> Any:
    try:
        return encoding.decode(data).value
    except encoding.DecodeError:
        return {"metadata": {"name": "a"}, "spec": {"list": [{"name": "x", "n": 1}], "map": {"a": None}}}


_MERGED = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "list": {
                    "type": "array",
                    "items": {"type": "object"},
                    "x-kubernetes-patch-strategy": "merge",
                    "x-kubernetes-patch-merge-key": "name",
                }
            },
        }
    },
}


def patches(data: bytes) -> None:
    """An object and a patch of each sort, separated by a zero byte; neither is changed."""
    left, _, right = data.partition(b"\0")
    obj = _value(left)
    before = json.dumps(obj)
    with contextlib.suppress(ApiError, encoding.DecodeError):
        patch.json_patch(obj, patch.decode_json_patch(right)[0])
    with contextlib.suppress(ApiError, encoding.DecodeError):
        change = patch.decode_merge_patch(right)[0]
        once = patch.merge_patch(obj, change)
        assert patch.is_equal(patch.merge_patch(once, change), once)
    if isinstance(obj, dict):
        with contextlib.suppress(ApiError, encoding.DecodeError):
            change = patch.decode_merge_patch(right, strategic=True)[0]
            patch.strategic_merge_patch(obj, change, _MERGED)
    assert json.dumps(obj) == before


def selecting(data: bytes) -> None:
    """Label and field selectors: refused, or the same once more when written out."""
    text = data.decode(errors="replace")
    for parse in (selectors.parse_labels, selectors.parse_fields):
        with contextlib.suppress(ApiError, ValueError):
            found: Any = parse(text)
            assert str(parse(str(found))) == str(found)


def _allowed(rule: dict[str, list[str]], asked: Attributes) -> bool:
    """What Kubernetes documents, written once more."""
    if not {"*", asked.verb} & set(rule.get("verbs", ())):
        return False
    if not asked.resource:
        return any(asked.path == url or (url[-1:] == "*" and asked.path.startswith(url[:-1]))
                   for url in rule.get("nonResourceURLs", ()))  # fmt: skip
    wanted = {"*", asked.resource}
    if "/" in asked.resource:
        wanted.add("*" + asked.resource[asked.resource.index("/"):])  # fmt: skip
    named = rule.get("resourceNames") or [asked.name]
    return bool({"*", asked.group} & set(rule.get("apiGroups", ())) and wanted & set(rule.get("resources", ()))
                and asked.name in named)  # fmt: skip


def permission(data: bytes) -> None:
    """A request line and a rule: the decision is that of the documents, and a rule covers itself."""
    draw = atheris.FuzzedDataProvider(data)
    words = ["*", "get", "list", "pods", "pods/log", "*/log", "", "apps", "a", "b", "/healthz", "/api/*",
             "virtualmachines", "virtualmachines/start", "kubevirt.io", "subresources.kubevirt.io"]  # fmt: skip

    def some() -> list[str]:
        return [words[draw.ConsumeIntInRange(0, len(words) - 1)] for _ in range(draw.ConsumeIntInRange(0, 3))]

    fields = ("verbs", "apiGroups", "resources", "resourceNames", "nonResourceURLs")
    rule = {field: held for field in fields if (held := some())}
    method = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "BREW")[draw.ConsumeIntInRange(0, 6)]
    path = "/" + draw.ConsumeUnicodeNoSurrogates(80)
    with contextlib.suppress(ApiError):
        attributes = attributes_of(request_from(method, path, draw.ConsumeUnicodeNoSurrogates(40)))
        assert rule_allows(rule, attributes) == _allowed(rule, attributes)
    one = [(draw.ConsumeIntInRange(0, len(words) - 1)) for _ in range(4)]
    asked = Attributes(
        verb=words[one[0]], group=words[one[1]], resource=words[one[2]], name=words[one[3]], path="/healthz"
    )
    assert rule_allows(rule, asked) == _allowed(rule, asked)
    assert uncovered([rule], [rule]) == []


def rules(data: bytes) -> None:
    """A rule in CEL and a value, separated by a zero byte: refused, no result, or a result; also as a schema's rule."""
    text, _, rest = data.decode(errors="replace").partition("\0")
    value = _value(rest.encode(errors="replace"))
    with contextlib.suppress(Unsupported, RuleError):
        compile_rule(text)(value, value)
    node = {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
        "x-kubernetes-validations": [{"rule": text}],
    }
    list(check_structural(node, "s"))
    schema.validate(node, value if isinstance(value, dict) else {"value": value})


@atheris.instrument_func
def control(data: bytes) -> None:
    """A mistake on purpose."""
    if data[:1] == b"{" and data[1:2] == b"!":
        raise ZeroDivisionError("the mistake on purpose")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "manifest": manifest, "protobuf": messages, "patch": patches, "selector": selecting, "rbac": permission,
    "cel": rules, "control": control,
}  # fmt: skip
SEEDS: dict[str, tuple[bytes, ...]] = {
    "manifest": (b'{"a":[1,2.5e3,null,"x\\u00e9"]}', b"a: &x [1, {b: c}]\nd: |\n  text\n---\ne: !!int '5'\n"),
    "protobuf": (b"\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x10\x0a\x03\x0a\x01a\x12\x06\x0a\x01k\x12\x01v",),
    "patch": (b'{"a":1}\0[{"op":"add","path":"/b/-","value":1}]',
              b'{}\0{"spec":{"list":[{"name":"x","$patch":"delete"}],"$setElementOrder/list":[{"name":"y"}]}}'),
    "selector": (b"a in (b,c),!d,e!=f,g>1", b"metadata.name=a,status.phase!=B\\,c"),
    "rbac": (b"\x01\x02\x03\x04\x05\x06\x07api/v1/namespaces/a/pods/b/log?watch=1",),
    "cel": (b'self.all(k, v, has(self.a) && v.size() < 3 ? [1, ?optional.of(2)] == [] : "%s".format([k]) == "")\0{}',
            b"self.map(x, x * 2).filter(y, y in [1]) == [] && ip('::1').family() == 6 && url('/a') == 1\0[]"),
    "control": (b"a",),
}  # fmt: skip


def main(words: list[str]) -> None:
    """Fuzz the target that is named; the folder that follows is the corpus, filled with the target's seeds."""
    name, corpus = words[1], Path(words[2])
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([words[0], *words[2:]], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
