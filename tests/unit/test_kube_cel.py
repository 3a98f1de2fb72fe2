"""Validation rules in CEL: what is true, what cannot be said, what we do not know."""

from __future__ import annotations

from typing import Any

import pytest

from stead.kube.cel import Unsupported, compile_rule, is_transition
from stead.kube.cel_values import RuleError


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ("self.min <= self.max", {"min": 1, "max": 2}, True),
        ("!has(self.opt) || self.opt.startsWith('o')", {}, True),
        ('!has(self.opt) || self.opt.startsWith("o")', {"opt": "x"}, False),
        ("self.all(am, am in ['a', 'b'])", ["a", "b"], True),
        ("self.all(am, am in ['a', 'b'])", ["a", "c"], False),
        ("self.exists(x, x > 2) && !self.exists(x, x > 9)", [1, 3], True),
        ("self.exists_one(x, x == 1)", [1, 1], False),
        ("size(self) == 2 && self.size() == 2", [1, 2], True),
        ("self.filter(x, x > 1).size() == 1", [1, 2], True),
        ("self.map(x, x * 2) == [2, 4]", [1, 2], True),
        ("self.a[0] + 2 * 3 == 7", {"a": [1]}, True),
        ("self == true", 1, False),
        ("self ? 1 == 1 : 1 == 2", True, True),
        ("'a' in self", {"a": 1}, True),
        ("self['a-b'] == 1 && self.a__dash__b == 1", {"a-b": 1}, True),
        ("self.matches('^[a-z]+$')", "abc", True),
        ("-self < 0 && self % 3 == 1 && self / 2 == 2", 4, True),
        ("self.contains('..') == false", "a.b", True),
        ("int(self) == 5 && string(5) == self", "5", True),
        ("self.x == 1 || true", {}, True),
        ("self == null", None, True),
        (r"self == 'it\'s'", "it's", True),
        ("duration(self) > duration('59m') && duration('1h30m') == duration('90m')", "1h", True),
        ("timestamp(self) < timestamp('2026-01-02T00:00:00Z')", "2026-01-01T00:00:00Z", True),
        (r'self.matches(r"""^(?i)[A-Z]"?\.$""")', "a.", True),
        ('self == """a\n\'b"""', "a\n'b", True),
        ("{'a': 1} == self", {"a": 1}, True),
        ("self.split('.')[1].upperAscii() == 'B' && self.replace('.', '-').substring(1) == '-b'", "a.b", True),
        ("self.map(x, x > 1, x * 2) == [4] && self.isSorted() && self.sum() == 3 && self.max() == 2", [1, 2], True),
        ("quantity(self).isGreaterThan(quantity('1Gi')) && isQuantity('2') && !isQuantity('x')", "2Gi", True),
        ("isIP(self) && !isCIDR(self) && isCIDR('10.0.0.0/8')", "10.0.0.1", True),
        ("self.find('[0-9]+') == '12' && self.indexOf('1') == 1 && self.trim().charAt(0) == 'a'", "a12", True),
    ],
)
def test_rules(rule: str, value: Any, expected: bool) -> None:
    assert compile_rule(rule)(value, None) is expected


@pytest.mark.parametrize(
    ("rule", "value"),
    [("self.x == 1", {}), ("self < 1", "a"), ("self && true", 1), ("self[5] == 1", [1]), ("1 / self == 1", 0)],
)
def test_what_cannot_be_evaluated_is_an_error(rule: str, value: Any) -> None:
    with pytest.raises(RuleError):
        compile_rule(rule)(value, None)


@pytest.mark.parametrize(
    "rule",
    [
        "self >",
        "",
        "self.foo(",
        "self.isURL()",
        "other == self",
        "self.all(x, y > 1)",
        "self ~ 1",
        "has(self)",
        "(" * 99,
        "self self",
        "x" * 5000,
    ],
)
def test_what_we_do_not_know_is_refused(rule: str) -> None:
    with pytest.raises(Unsupported):
        compile_rule(rule)


def test_transition_rules() -> None:
    assert is_transition("self == oldSelf")
    assert not is_transition("self.oldSelfish == 1")
    assert compile_rule("self == oldSelf")("a", "a") is True
