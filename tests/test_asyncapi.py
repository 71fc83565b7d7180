"""The AsyncAPI document is correct: it matches the schema of AsyncAPI, and the messages of a real server match it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests import ROOT
from tests.running import TIMEOUT_S, TOKEN, Relay, relay

DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "reference" / "asyncapi.yaml").read_text())
OPENAPI: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "reference" / "openapi.yaml").read_text())
MESSAGES: dict[str, Any] = DOCUMENT["components"]["messages"]
SCHEMA = ROOT / "tests" / "clients" / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"


def kinds(message: dict[str, Any]) -> list[str]:
    """Return the names of the messages in the document that a message matches."""
    found = MESSAGES.items()
    return [name for name, each in found if jsonschema.Draft7Validator(each["payload"]).is_valid(message)]


def test_the_document_matches_the_schema_of_asyncapi() -> None:
    if not SCHEMA.exists():
        pytest.skip("the packages of tests/clients/package.json are not installed")
    jsonschema.validate(DOCUMENT, json.loads(SCHEMA.read_text()))


def references(part: Any) -> list[str]:
    """Return the references in a part of the document."""
    if isinstance(part, list):
        return [found for each in part for found in references(each)]
    if not isinstance(part, dict):
        return []
    own = [part["$ref"]] if "$ref" in part else []
    return own + [found for each in part.values() for found in references(each)]


def test_each_reference_names_a_part_of_the_document() -> None:
    found = references(DOCUMENT)
    assert len(found) > 20
    for reference in found:
        part: Any = DOCUMENT
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_the_examples_match_their_message(name: str) -> None:
    for example in MESSAGES[name]["examples"]:
        assert name in kinds(example["payload"])


def test_a_published_event_has_the_same_members_in_both_documents() -> None:
    assert MESSAGES["published"]["payload"]["properties"] == OPENAPI["components"]["schemas"]["Event"]["properties"]


def stream(server: Relay, last_id: str) -> list[dict[str, Any]]:
    """Return the lines of a stream until its topic ends."""
    headers = {"Accept": "application/x-ndjson", "Last-Event-ID": last_id}
    status, _, body = server.request("GET", "/events/match", headers=headers)
    assert status == 200
    return [json.loads(line) for line in body.splitlines() if line]


def test_the_messages_of_a_server_match_the_document(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with relay("--unix", str(path)) as server, socket.socket(socket.AF_UNIX) as feeder:
        feeder.settimeout(TIMEOUT_S)
        feeder.connect(str(path))
        lines = feeder.makefile("rwb")
        sent = [{"topic": "match", "data": {"n": 1}, "ack": 1}, {"topic": "", "data": 2}]
        lines.write(b"".join(json.dumps(each).encode() + b"\n" for each in sent))
        lines.flush()
        answers = [json.loads(lines.readline()) for _ in sent]
        signal = json.dumps({"action": "stop"}).encode()
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        assert server.request("POST", "/topics/match/signal", signal, headers)[0] == 202
        answers.append(json.loads(lines.readline()))
        lines.write(b'{"topic": "match", "event": "relay.end", "data": "", "ack": 2}\n')
        lines.flush()
        lines.readline()
        received = stream(server, "00000000-1")
    for name, answer in zip(("acknowledged", "rejected", "signal"), answers, strict=True):
        assert name in kinds(answer), answer
    found = {kind for each in received for kind in kinds(each)}
    assert found >= {"event", "gap", "end", "position"}, received
    assert all(kinds(each) for each in received)
