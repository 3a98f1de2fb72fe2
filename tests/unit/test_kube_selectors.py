"""Selectors parse, refuse and match as kube-apiserver's do."""

from __future__ import annotations

import json
import os
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from stead.kube import selectors
from stead.kube.errors import ApiError
from stead.kube.selectors import labels_from_object, parse_fields, parse_labels

LABELS = {"tier": "db", "env": "prod", "n": "5"}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True), ("tier=db", True), ("tier==db", True), ("tier=web", False), ("tier!=web", True), ("nope!=x", True),
        ("tier in (db,web)", True), ("tier notin (db, web)", False), ("nope notin (x)", True), ("nope in (x)", False),
        ("tier", True), ("!tier", False), ("!nope", True), ("n>4", True), ("n>5", False), ("n<6,tier=db", True),
        ("tier=db,env=test", False), ("tier in (db,web),!old", True), ("empty=", False), ("env>1", False),
    ],
)  # fmt: skip
def test_label_selectors(text: str, matches: bool) -> None:
    assert parse_labels(text).matches(LABELS) is matches


def test_labels_of_nobody() -> None:
    assert parse_labels("!a").matches(None)
    assert not parse_labels("a").matches(None)
    assert not parse_labels("")
    assert str(parse_labels("b in (y,x) , a!=1,!c")) == "a!=1,b in (x,y),!c"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tier in db", "unable to parse requirement: found 'db' expected: '('"),
        ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("a,,b", "found ',', expected: identifier after ','"),
        ("a=b=c", "found '=', expected: ',' or 'end of string'"),
        ("tier in (a,b", "unable to parse requirement: found '', expected: ',' or ')'"),
    ],
)
def test_bad_label_selectors(text: str, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_labels(text)
    assert (caught.value.code, caught.value.message) == (400, message)


def test_selector_objects() -> None:
    selector = labels_from_object(
        {
            "matchLabels": {"tier": "db"},
            "matchExpressions": [
                {"key": "env", "operator": "In", "values": ["prod", "test"]},
                {"key": "old", "operator": "DoesNotExist"},
            ],
        }
    )
    assert selector is not None
    assert selector.matches(LABELS)
    assert labels_from_object(None) is None
    assert labels_from_object({}) == selectors.EVERYTHING
    for bad in (
        {"key": "a", "operator": "Odd"},
        {"key": "a", "operator": "In"},
        {"key": "a", "operator": "Exists", "values": ["x"]},
    ):
        with pytest.raises(ApiError):
            labels_from_object({"matchExpressions": [bad]})


def test_field_selectors() -> None:
    obj = {"metadata": {"name": "a", "namespace": "n"}, "spec": {"unschedulable": True}, "status": {"phase": "x,y=z"}}
    assert parse_fields("metadata.name=a,metadata.name=a").matches(obj)
    assert parse_fields("metadata.name==a,status.phase!=q").matches(obj)
    assert parse_fields(r"status.phase=x\,y\=z").matches(obj)
    assert parse_fields("spec.unschedulable=true").matches(obj)
    assert parse_fields("spec.nope=").matches(obj)
    assert not parse_fields("metadata.name!=a").matches(obj)
    assert parse_fields("metadata.name=a").exact("metadata.name") == "a"
    assert parse_fields("metadata.name!=a").exact("metadata.name") is None


def test_unknown_fields_are_refused_in_two_ways() -> None:
    selector = parse_fields("metadata.name=a,spec.x=1")
    with pytest.raises(ApiError, match=r"^field label not supported: spec\.x$"):
        selectors.check_fields(selector, ("status.phase",), tabled=True)
    with pytest.raises(ApiError, match=r'"spec\.x" is not a known field selector: only "metadata\.name"'):
        selectors.check_fields(selector, (), tabled=False)
    selectors.check_fields(selector, ("spec.x",), tabled=True)


def test_recorded_selectors() -> None:
    """Every recorded selector is accepted or refused with the recorded text."""
    folder = os.environ.get("STEAD_ORACLE")
    if not folder:
        print("not replayed")
        return
    replayed = 0
    for scenario in json.loads((Path(folder) / "api/selectors.json").read_text()):
        for step in scenario["steps"]:
            if "?" not in step.get("request", {}).get("path", ""):
                continue
            query = urllib.parse.parse_qs(step["request"]["path"].split("?", 1)[1], keep_blank_values=True)
            expected = step["response"]["body"]["message"] if step["response"]["status"] == 400 else ""
            if "known field" in expected or "field label" in expected:
                continue
            for name, parse in (("labelSelector", parse_labels), ("fieldSelector", parse_fields)):
                if name in query:
                    assert _refusal(parse, query[name][0]) == expected
                    replayed += 1
    assert replayed > 50


def _refusal(parse: Any, text: str) -> str:
    try:
        parse(text)
    except ApiError as error:
        return error.message
    return ""
