"""Kubernetes' CEL libraries for validation rules: every documented example, as a rule that holds or fails."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from stead.kube import schema
from stead.kube.cel import RuleError, Unsupported, compile_rule

_DIGEST = "sha256:" + "6aefddb645ee6963afd681b1845c661d0ea4c3b20ab9db86d9e753b203d385f2"

#: rules that are true, whatever `self` is; one a line
TRUE = (Path(__file__).parent.parent / "data" / "cel_true.txt").read_text().splitlines()


@pytest.mark.parametrize("rule", [line.replace("DIGEST", _DIGEST) for line in TRUE])
def test_what_is_documented_is_true(rule: str) -> None:
    assert compile_rule(rule)(None) is True


@pytest.mark.parametrize(
    "rule",
    [
        "url('../relative-path').getHost() == ''", "url('https://a:b:c/').getPort() == ''", "ip('256.0.0.1') == self",
        "cidr('::1/129').prefixLength() == 0", "quantity('200K').sign() == 1", "semver('200K').major() == 1",
        "image('registry.k8s.io//kube').tag() == ''", "quantity('9999999999999999999999999G').asInteger() == 1",
        "optional.none().value() == 1", "[].min() == 1", "'%d'.format(['x']) == ''", "'%s %s'.format(['x']) == ''",
        "'%q'.format([1]) == ''", "9223372036854775807 + 1 > 0", "1 % 0 == 0", "duration('1x') == duration('1s')",
        "timestamp('2024-13-01T00:00:00Z') == timestamp('2024-01-01T00:00:00Z')", "int('1.5') == 1", "bool('yes')",
        "{'a': 1, 'b': 1}.transformMapEntry(k, v, {v: k}) == {}", "{'a': 1}.x.size() == 1", "has({}.a.b)",
        "timestamp('9999-12-31T23:59:59Z') + duration('24h') == timestamp('2024-01-01T00:00:00Z')", "1 < 'a'", "!1",
        "-(-9223372036854775808) == 1", "'a'.getHost() == ''", "[1].family() == 4", "double('x') == 1.0", "0 == 1 || 5",
    ],
)  # fmt: skip
def test_what_has_no_result_is_an_error(rule: str) -> None:
    with pytest.raises(RuleError):
        compile_rule(rule)(None)


@pytest.mark.parametrize(
    "rule",
    [
        "authorizer.group('').check('get')", "self.isIP()", "getHost('x')", "ip.family('::1')", "format.nothing()",
        "self.transformList(v, v)", "self.all(i, v, w, true)", "optional.some(1)", "self.reverse()", "math.least(1, 2)",
        "base64.encode(b'x')", "cel.bind(x, 1, x)", "'\\ud800' == self", "'\\q' == self", "99999999999999999999 > 1",
        "has(self.?a)", "has(self[0])", "self.?", "[?", "{?", "!" * 3000, "-" * 3000 + "1",
    ],
)  # fmt: skip
def test_what_rules_do_not_have_is_refused(rule: str) -> None:
    with pytest.raises(Unsupported):
        compile_rule(rule)


@pytest.mark.parametrize(
    "rule",
    [
        "self.all(a, self.all(b, self.all(c, self.all(d, a + b + c + d >= 0))))",
        "self.map(a, 'x').join().replace('x', self.map(a, 'y').join()).replace('y', self.map(a, 'z').join()) == ''",
        "[self]" + ".map(x, [x, x])" * 60 + " == [self]" + ".map(x, [x, x])" * 60,
        "string(" * 30 + "'1'" + ")" * 30 + " == '1' || " * 100 + "self.all(a, self.all(b, self.exists(c, c < 0)))",
        "1" + "+1" * 2000 + " > 0",
    ],
)
def test_a_rule_cannot_hold_up_the_server(rule: str) -> None:
    """Each would take hours or all memory; all end, with the refusal that the budget or the types give."""
    begun = time.process_time()
    with pytest.raises((RuleError, Unsupported)):
        compile_rule(rule)(list(range(400)))
    assert time.process_time() - begun < 100


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "ratio": {"type": "number"},
        "until": {"type": "string", "format": "date-time"},
        "pause": {"type": "string", "format": "duration"},
        "raw": {"type": "string", "format": "byte"},
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "ports": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "properties": {"name": {"type": "string"}, "port": {"type": "integer"}}},
        },
    },
}


@pytest.mark.parametrize(
    "rule",
    [
        "self.ratio / 2.0 == 1.5",
        "self.until > timestamp('2026-01-01T00:00:00Z') && self.until.getFullYear() == 2026",
        "self.pause > duration('1m') && self.pause.getMinutes() == 90",
        "self.raw == b'hello'",
        "self.tags == ['b', 'a'] && self.tags + ['a', 'c'] == ['c', 'b', 'a']",
        "self.ports == [{'name': 'b', 'port': 2}, {'name': 'a', 'port': 1}]",
        "(self.ports + [{'name': 'a', 'port': 9}]).exists(p, p.name == 'a' && p.port == 9)",
        "size(self.ports + [{'name': 'a', 'port': 9}]) == 2",
    ],
)
def test_values_have_the_types_of_their_schema(rule: str) -> None:
    value = {
        "ratio": 3, "until": "2026-05-01T00:00:00Z", "pause": "90m", "raw": "aGVsbG8=", "tags": ["a", "b"],
        "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}],
    }  # fmt: skip
    root = {**SCHEMA, "x-kubernetes-validations": [{"rule": rule}]}
    assert schema.validate(root, value) == []


def test_an_optional_old_value_is_none_on_create_and_compared_on_update() -> None:
    rule = {"rule": "!oldSelf.hasValue() || self >= oldSelf.value()", "optionalOldSelf": True, "message": "shrinks"}
    starts = {"rule": "oldSelf.hasValue() || self == 1", "optionalOldSelf": True, "message": "begins at 1"}
    root = {"type": "object", "properties": {"n": {"type": "integer", "x-kubernetes-validations": [rule, starts]}}}
    assert schema.validate(root, {"n": 1}) == []
    assert [c["message"] for c in schema.validate(root, {"n": 5})] == ["Invalid value: 5: begins at 1"]
    assert schema.validate(root, {"n": 5}, old={"n": 4}) == []
    assert [c["message"] for c in schema.validate(root, {"n": 3}, old={"n": 4})] == ["Invalid value: 3: shrinks"]


def test_a_message_that_fails_leaves_the_rules_own() -> None:
    rule = {"rule": "self < 5", "message": "below 5", "messageExpression": "'%s'.format([self, 1][5])"}
    root = {"type": "object", "properties": {"n": {"type": "integer", "x-kubernetes-validations": [rule]}}}
    assert [c["message"] for c in schema.validate(root, {"n": 7})] == ["Invalid value: 7: below 5"]
    rule["messageExpression"] = "'%d is not below 5'.format([self])"
    assert [c["message"] for c in schema.validate(root, {"n": 7})] == ["Invalid value: 7: 7 is not below 5"]
