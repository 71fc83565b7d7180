"""`relay.sources.validation`: data that does not follow the rules of its topic is rejected, with the place."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.config.model import Config
from relay.core.ended import Ended
from relay.core.log import Log
from relay.core.writer import Writer
from relay.errors import ConfigError, EventError
from relay.event import Event
from relay.sources import validation
from relay.sources.validation import Validation
from tests.running import TOKEN, relay, run

ORDER = {
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": {"type": "integer"},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        "at": {"type": "string", "format": "date-time"},
    },
    "$defs": {"item": {"type": "object", "properties": {"a/b": {"type": "number"}}}},
}


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "order.json"
    path.write_text(json.dumps(ORDER))
    return path


def rejection(rules: Validation, data: Any, topic: str = "orders.eu", event: str | None = None) -> str:
    """Return the reason for which an event is rejected; empty if it is accepted."""
    try:
        rules.check(Event(data=data, topic=topic, event=event))
    except EventError as error:
        return str(error)
    return ""


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def test_data_matches_the_schema_of_its_topic(schema: Path) -> None:
    rules = Validation([f"orders.*=schema {schema}"])
    assert rejection(rules, raw({"id": 7, "items": [{"a/b": 1}], "at": "2026-01-01T00:00:00Z"})) == ""
    assert rejection(rules, raw({"id": "7"})).startswith("data: does not match the schema of orders.*: /id: ")
    assert "/items/1/a~1b: " in rejection(rules, raw({"id": 7, "items": [{}, {"a/b": "x"}]}))
    assert "/at: " in rejection(rules, raw({"id": 7, "at": "yesterday"}))
    assert "the value: " in rejection(rules, raw({}))


def test_every_kind_of_data_is_checked(schema: Path) -> None:
    rules = Validation([f"orders.*=schema {schema}"])
    for data in ("text", raw(None), raw([]), msgspec.UNSET, {"name": "of a form"}):
        assert rejection(rules, data), data
    assert rejection(rules, {"id": 1}) == ""


@pytest.mark.parametrize("data", [b"1e400", b'{"id":1,"x":[-1e999]}', b"[" * 512 + b"]" * 512])
def test_data_that_cannot_be_checked_is_rejected(schema: Path, data: bytes) -> None:
    rules = Validation([f"orders.*=schema {schema}"])
    assert rejection(rules, msgspec.Raw(data)).startswith("data: ")


def test_other_topics_and_events_of_relay_itself_are_not_checked(schema: Path) -> None:
    rules = Validation([f"orders.*=schema {schema}"])
    assert rejection(rules, "x", topic="orders") == ""
    assert rejection(rules, "x", event="relay.end") == ""
    assert rejection(rules, "x", event="relays")


def test_the_size_of_the_data_is_limited() -> None:
    rules = Validation(["logs.**=size 4"])
    assert rejection(rules, "abcd", "logs.a.b") == rejection(rules, raw([1]), "logs.a") == ""
    assert rejection(rules, "abcde", "logs.a") == "data: is 5 bytes; the rule of logs.** allows 4"
    assert rejection(rules, "ééé", "logs.a").startswith("data: is 6 bytes")
    assert rejection(rules, {"a": 1}, "logs.a").startswith("data: is 7 bytes")


def test_all_rules_that_match_apply(schema: Path) -> None:
    rules = Validation([f"orders.*=schema {schema}", "**=size 10"])
    assert "/id" in rejection(rules, raw({"id": ""}))
    assert "is 24 bytes" in rejection(rules, raw({"id": 7, "more": 12345}))


def test_the_reason_is_short(schema: Path) -> None:
    assert len(rejection(Validation([f"orders.*=schema {schema}"]), raw({"id": "x" * 10_000}))) < 300


def test_the_rules_of_many_topics_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "TOPICS_CACHED", 2)
    rules = Validation(["logs.*=size 1"])
    for number in range(5):
        assert rejection(rules, "long", f"logs.{number}")
    assert len(rules._found) == 2


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ('{"type": "nonsense"}', "is not a valid JSON Schema"),
        ('{"$ref": "http://127.0.0.1:9/x.json"}', "is not a valid JSON Schema"),
        ('{"$ref": "file:///etc/hostname"}', "is not a valid JSON Schema"),
        ("7", "is not a valid JSON Schema"),
    ],
)
def test_an_unusable_schema_is_an_error_at_the_start(text: str | None, error: str, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"^validate: a\.b: ") as caught:
        Validation([f"a.b=schema {path}"])
    assert error in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_library_is_an_error_with_the_remedy(schema: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    with pytest.raises(ConfigError, match=r"pip install 'relay-sse\[validation\]'"):
        Validation([f"a=schema {schema}"])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_rejects_events_from_every_source(workers: str, schema: Path, tmp_path: Path) -> None:
    flags = ("--validate", f"orders.*=schema {schema}", "--unix", str(tmp_path / "relay.sock"), "--workers", workers)
    with relay(*flags) as server:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        status, _, body = server.request("POST", "/publish/orders.eu", b'{"id": "7"}', headers)
        assert (status, json.loads(body)["field"]) == (400, "data")
        assert "/id: " in json.loads(body)["error"]
        assert server.request("POST", "/publish/orders.eu", b'{"id": 7}', headers)[0] == 200
        done = run("publish", "--to", f"unix:{server.unix_path}", "--topic", "orders.eu", "text")
        assert done.returncode == 1
        assert "does not match the schema of orders.*" in done.stderr
        metrics = server.request("GET", "/metrics")[2].decode()
        assert re.search(r'^relay_events_invalid_total(\{worker="hub"\})? 2\.0$', metrics, re.MULTILINE)


def test_the_log_of_another_program_is_validated_before_it_is_written() -> None:
    """A node of a cluster checks an event before its broker receives it."""
    config = Config(validate=("logs.*=size 1",))
    writer = Writer(config, Log("0" * 8, bytes_max=1000), lambda *_: 1, Ended(), lambda _: None)
    writer.use_validation(Validation(config.validate).check)
    writer.check(Event(data="a", topic="logs.a"))
    with pytest.raises(EventError, match="is 2 bytes"):
        writer.check(Event(data="ab", topic="logs.a"))
    with pytest.raises(EventError, match="invalid UTF-8"):
        writer.check(Event(data=msgspec.Raw(b'{"a":"\xff"}'), topic="logs.a"))
    assert writer.invalid == 1


def test_a_server_with_an_unusable_schema_does_not_start(tmp_path: Path) -> None:
    done = run("serve", "--listen", "127.0.0.1:0", "--validate", f"a=schema {tmp_path / 'missing.json'}")
    assert done.returncode == 2
    assert "missing.json: No such file or directory" in done.stderr
