"""Responses: the bytes of each response."""

from __future__ import annotations

import base64
import hashlib

import pytest

from relay.config.origins import Allowed
from relay.http.response import Dates, Headers, cors_headers, json_body, page_headers, respond, stream_head


def test_a_response_states_its_length_and_keep_alive() -> None:
    assert respond(200, (("X", "y"),), b"abc") == (
        b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc"
    )
    assert respond(404, keep_alive=False) == (
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )


def test_a_response_to_head_keeps_the_length_but_not_the_body() -> None:
    assert respond(200, body=b"abc", head_only=True).endswith(b"Content-Length: 3\r\nConnection: keep-alive\r\n\r\n")


def test_204_has_neither_body_nor_length() -> None:
    assert respond(204) == b"HTTP/1.1 204 No Content\r\nConnection: keep-alive\r\n\r\n"


def test_json_is_not_cached() -> None:
    headers, body = json_body({"error": "ö"})
    assert dict(headers) == {"Content-Type": "application/json", "Cache-Control": "no-store"}
    assert body == '{"error":"ö"}\n'.encode()


def test_the_head_of_a_stream_has_the_headers_for_proxies_and_browsers() -> None:
    assert stream_head("text/event-stream", CHUNKED, ("Accept",)) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n"
        b"Connection: close\r\nTransfer-Encoding: chunked\r\nVary: Accept\r\nX-Accel-Buffering: no\r\n\r\n"
    )
    assert b"Transfer-Encoding" not in stream_head("text/event-stream", (), ("Accept",))


CHUNKED = (("Transfer-Encoding", "chunked"),)
ORIGIN = ("Access-Control-Allow-Origin", "https://a.example")
CREDENTIALS = ("Access-Control-Allow-Credentials", "true")
ANY = ("Access-Control-Allow-Origin", "*")
VARY = ("Vary", "Origin")


@pytest.mark.parametrize(
    ("items", "origin", "headers"),
    [
        ((), "https://a.example", ()),
        (("*",), "https://a.example", (ANY,)),
        (("*",), None, (ANY,)),
        (("https://a.example",), "https://a.example", (ORIGIN, CREDENTIALS, VARY)),
        (("https://a.example",), "https://b.example", (VARY,)),
        (("https://a.example",), None, (VARY,)),
        (("https://*.example",), "https://a.example", (ORIGIN, CREDENTIALS, VARY)),
        (("*", "https://a.example"), "https://a.example", (ORIGIN, CREDENTIALS, VARY)),
        (("*", "https://a.example"), "https://b.example", (ANY, VARY)),
        (("*", "https://a.example"), None, (ANY, VARY)),
    ],
)
def test_credentials_go_to_a_listed_origin_and_never_to_any(
    items: tuple[str, ...], origin: str | None, headers: Headers
) -> None:
    assert cors_headers(Allowed(items), origin) == headers


def test_the_date_is_formatted_once_a_second() -> None:
    times = iter([784111777.2, 784111777.9, 784111777.9, 784111778.0])
    dates = Dates(lambda: next(times))
    first = dates.now()
    assert first == "Sun, 06 Nov 1994 08:49:37 GMT"
    head = dates.head(stream_head("text/event-stream", CHUNKED, ("Accept",)))
    assert head.startswith(b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: ")
    assert dates.head(stream_head("text/event-stream", CHUNKED, ("Accept",))) is head
    assert dates.now() == "Sun, 06 Nov 1994 08:49:38 GMT"


def test_the_page_can_run_only_its_own_scripts_and_styles() -> None:
    page = b"<style>p{}</style><script>one()</script><script type='module'>two()\n</script>"
    policy = dict(page_headers(page))["Content-Security-Policy"]
    for block in (b"p{}", b"one()", b"two()\n"):
        assert base64.b64encode(hashlib.sha256(block).digest()).decode() in policy
    assert "unsafe" not in policy
    assert "connect-src 'self'" in policy
    assert "script-src 'none'" in dict(page_headers(b"<p>"))["Content-Security-Policy"]
