"""Bodies are read as the API server reads them, and no hostile body hurts."""

import pytest

from stead.kube import encoding
from stead.kube.encoding import (
    DecodeError,
    decode,
    decode_documents,
    decode_object,
    decode_yaml_all,
    encode,
    encode_yaml,
)
from stead.kube.errors import ApiError


def test_duplicate_fields_are_reported_by_path() -> None:
    body = b'{"metadata":{"name":"a","name":"b"},"spec":{"l":[{"x":1,"x":2}]}}'
    decoded = decode(body)
    assert decoded.value == {"metadata": {"name": "b"}, "spec": {"l": [{"x": 2}]}}
    assert decoded.duplicates == ("metadata.name", "spec.l[0].x")
    yaml = b"metadata: {name: a, name: b}\nspec:\n  l:\n  - x: 1\n    x: 2\n"
    assert decode(yaml, "application/yaml; charset=utf-8").duplicates == ("metadata.name", "spec.l[0].x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: yes", {"a": True}), ("n: 1", {"false": 1}), ("a: 0777", {"a": 511}), ("a: 1e3", {"a": 1000}),
        ("a: 2001-01-01", {"a": "2001-01-01"}), ("a: '1'", {"a": "1"}), ("a: ~", {"a": None}),
        ("a: 1_000", {"a": 1000}),
        ("1: x", {"1": "x"}), ("a: 0x1F", {"a": 31}), ("a: 1.5", {"a": 1.5}), ("a: 10.128.0.5", {"a": "10.128.0.5"}),
        ("a: 12:30:00", {"a": "12:30:00"}), ("a: 02:00:00:00:00:01", {"a": "02:00:00:00:00:01"}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  b: 3", {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}), ("a: !!str 5", {"a": "5"}), ("", None), ("a: on", {"a": True}),
        ("a: -5", {"a": -5}), ("a: 1Gi", {"a": "1Gi"}), ("a: .5", {"a": 0.5}), ("a: =", {"a": "="}),
    ],
)  # fmt: skip
def test_yaml_scalars(text: str, value: object) -> None:
    assert decode(text.encode(), "application/yaml").value == value


def test_several_documents() -> None:
    documents = decode_yaml_all(b"a: 1\n---\nb: 2\n---\n")
    assert [d.value for d in documents] == [{"a": 1}, {"b": 2}, None]
    with pytest.raises(DecodeError):
        decode(b"a: 1\n---\nb: 2\n", "application/yaml")


def test_manifests() -> None:
    assert decode_documents(b"---\na: 1\n---\n---\nb: 2\n") == [{"a": 1}, {"b": 2}]
    assert decode_documents(b' {"a": 1}') == [{"a": 1}]
    assert decode_documents(b"") == []
    for bad in (b"- a\n", b"{", b"a: [", b"just text"):
        with pytest.raises(ApiError):
            decode_documents(bad)


def billion_laughs() -> bytes:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[" * 100_000, "application/json"),
        (b"[" * 300 + b"]" * 300, "application/json"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "application/json"),
        (b"9" * 10_000, "application/json"),
        (b"1e999", "application/json"),
        (b"NaN", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"{", "application/json"),
        (b"[" * 100_000, "application/yaml"),
        (b"- " * 5_000, "application/yaml"),
        (billion_laughs(), "application/yaml"),
        (b"a: *x", "application/yaml"),
        (b"a: .inf", "application/yaml"),
        (b"\x00", "application/yaml"),
        (b"a: [", "application/yaml"),
        (b"? {a: 1}\n: 2", "application/yaml"),
        (b"a: &a [*a]", "application/yaml"),
        (b"x" * (encoding.MAX_BYTES + 1), "application/json"),
    ],
)  # fmt: skip
def test_hostile_bodies_are_refused(body: bytes, kind: str) -> None:
    with pytest.raises(DecodeError):
        decode(body, kind)


def test_lone_surrogates_can_still_be_encoded() -> None:
    assert encode(decode(b'{"a":"\\ud800x\\ud83d\\ude00"}').value).decode() == '{"a":"�x😀"}'


def test_refusals_name_the_kind() -> None:
    with pytest.raises(
        ApiError, match="couldn't get version/kind; json parse error: unexpected end of JSON input"
    ) as caught:
        decode_object(b"{", "application/json", "ConfigMap")
    assert caught.value.code == 400
    assert "must be of type ConfigMap" in caught.value.message
    with pytest.raises(ApiError, match=r"cannot unmarshal array into Go value.*\(5b5d\)"):
        decode_object(b"[]", "application/json", "ConfigMap")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{bad", "invalid character 'b' looking for beginning of object key string"),
        (b"not json", "invalid character 'o' in literal null (expecting 'u')"),
        (b"tru", "unexpected end of JSON input"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        (b"{} x", "invalid character 'x' after top-level value"),
        (b'{"a":', "unexpected end of JSON input"),
        (b"", "unexpected end of JSON input"),
        (b"{'a':1}", r"invalid character '\'' looking for beginning of object key string"),
    ],
)
def test_json_refusals_speak_like_gos_decoder(body: bytes, text: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(body)
    assert str(caught.value) == text


def test_yaml_output_reads_back() -> None:
    value = {
        "b": ["yes", "n", "1", "null", "x: y", "line\nbreak\n", " lead\n", "0777", "1e3", ""],
        "a": {"t": True, "f": 1.5},
    }
    assert decode(encode_yaml(value), "application/yaml").value == value
