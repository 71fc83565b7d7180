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
        ("application/json", "json"),
        ("application/json, text/plain, */*", "json"),
        ("text/event-stream, application/json;q=0.9", "sse"),
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


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("", "sse"),
        ("gzip", "sse/gzip"),
        ("X-GZIP", "sse/gzip"),
        ("gzip, deflate, br, zstd", "sse/gzip"),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", "sse/gzip"),
        ("gzip;q=0", "sse"),
        ("identity", "sse"),
        ("deflate, br", "sse"),
    ],
)
def test_gzip_is_for_clients_that_accept_it(accept: str, name: str) -> None:
    assert form(f"Accept-Encoding: {accept}", config=Config(compress="gzip")) == name
    assert form(f"Accept-Encoding: {accept}") == "sse", "compress is off by default"


def test_every_syntax_can_be_compressed_but_not_in_http_1_0() -> None:
    config = Config(compress="gzip")
    assert form("Accept-Encoding: gzip", envelope="1", config=config) == "envelope/gzip"
    assert form("Accept-Encoding: gzip", "Accept: application/x-ndjson", config=config) == "ndjson/gzip"
    assert form("Accept-Encoding: gzip", version="1.0", config=config) == "sse/plain"


def test_caches_learn_which_headers_the_form_depends_on() -> None:
    assert Negotiator(Config()).vary == ("Accept",)
    assert Negotiator(Config(compress="gzip")).vary == ("Accept", "Accept-Encoding")
