"""Quantities read, write and compare as apimachinery's do."""

import pytest

from stead.kube import quantity
from stead.kube.quantity import Quantity, canonical, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1024Mi", "1Gi"), ("0.5", "500m"), ("1.5Gi", "1536Mi"), ("0", "0"), ("0Gi", "0"), ("1000m", "1"),
        ("1e3", "1e3"), ("1000", "1k"), ("1E", "1E"), ("100k", "100k"), ("0.1Gi", "107374182400m"), ("-5Mi", "-5Mi"),
        ("1n", "1n"), ("0.1n", "1n"), ("1.000000000001", "1000000001n"), (".5", "500m"), ("5.", "5"), ("+3", "3"),
        ("1Ki", "1Ki"), ("1023", "1023"), ("1e-3", "1e-3"), ("12e6", "12e6"), ("1Ei", "1Ei"), (5, "5"),
        ("100Mi", "100Mi"),        ("500Ki", "500Ki"), ("1536Ki", "1536Ki"), ("0.5Ki", "512"), ("2E3", "2e3"),
    ],
)  # fmt: skip
def test_canonical_text(text: str | int, expected: str) -> None:
    assert canonical(text) == expected


@pytest.mark.parametrize("text", ["", "x", "1GiB", "1 Gi", "--1", "1.2.3", "Gi", "1KiB", "½", "1e", "9" * 100])
def test_bad_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"quantit"):
        parse(text)


def test_texts_of_refusals() -> None:
    with pytest.raises(ValueError, match=r"^quantities must match the regular expression"):
        parse("abc")
    with pytest.raises(ValueError, match=r"^unable to parse quantity's suffix$"):
        parse("1GiB")


def test_comparison_and_arithmetic_are_exact() -> None:
    assert parse("1Gi") == parse("1024Mi") > parse("1G")
    assert str(parse("1Gi") + parse("1Gi")) == "2Gi"
    assert int(parse("1500m")) == 2
    assert parse("1500m").milli() == 1500
    assert int(parse("-1500m")) == -1
    assert str(quantity.quantity_from_bytes(10 * 1024**3)) == "10Gi"
    assert sorted([parse("2"), parse("1500m"), Quantity(1)])[0] == Quantity(1)


def test_is_quantity() -> None:
    assert quantity.is_quantity("1Gi")
    assert quantity.is_quantity(3)
    assert not quantity.is_quantity(True)
    assert not quantity.is_quantity({"a": 1})
    assert not quantity.is_quantity("lots")
