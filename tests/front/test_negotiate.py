"""Negotiation: the form of a stream from its request (`relay.front.negotiate`)."""

from __future__ import annotations

import pytest

from relay.config.model import Config
from relay.errors import RequestError
from relay.front.negotiate import Negotiator
from relay.http.request import RequestParser


def form(*lines: str, version: str = "1.1", envelope: str | None = None, config: Config | None = None) -> str:
    """Return the form of a request for the topic `a.b` with these header lines."""
    parser = RequestParser(16384)
    head = "".join(f"{line}\r\n" for line in ("Host: x", *lines))
    parser.feed(f"GET /events?topic=a.b HTTP/{version}\r\n{head}\r\n".encode("latin-1"))
    request = parser.head()
    assert request is not None
    return Negotiator(config or Config()).form(request, ("a.b",), envelope)


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("", "sse"),
        ("*/*", "sse"),
        ("text/event-stream", "sse"),
        ("application/json", "sse"),
        ("application/x-ndjson", "ndjson"),
        ("Application/X-NDJSON; charset=utf-8", "ndjson"),
        ("application/ndjson", "ndjson"),
        ("application/jsonl", "ndjson"),
        ("application/x-ndjson, */*", "ndjson"),
        ("text/event-stream, application/x-ndjson", "sse"),
        ("application/x-ndjson, text/event-stream", "ndjson"),
        ("text/event-stream;q=0.5, application/x-ndjson;q=0.9", "ndjson"),
        ("text/event-stream, application/x-ndjson; q=0.9", "sse"),
        ("application/x-ndjson;q=0", "sse"),
        ("application/x-ndjson;q=nonsense", "ndjson"),
        (",;,application/x-ndjson,,", "ndjson"),
    ],
)
def test_accept_chooses_the_syntax(accept: str, name: str) -> None:
    assert form(f"Accept: {accept}") == name


def test_http_1_0_has_no_chunks() -> None:
    assert form(version="1.0") == "sse/plain"
    assert form("Accept: application/x-ndjson", version="1.0") == "ndjson/plain"


def test_the_envelope_is_for_streams_that_ask_or_are_configured() -> None:
    assert form(envelope="1") == "envelope"
    assert form(envelope="0") == "sse"
    configured = Config(envelope=("a.*",))
    assert form(config=configured) == "envelope"
    assert form(config=configured, envelope="0") == "sse"
    assert form(config=Config(envelope=("b.*",))) == "sse"


def test_ndjson_needs_no_envelope() -> None:
    assert form("Accept: application/x-ndjson", envelope="1") == "ndjson"


def test_an_envelope_is_0_or_1() -> None:
    with pytest.raises(RequestError, match="envelope must be 0 or 1") as caught:
        form(envelope="yes")
    assert caught.value.status == 400
