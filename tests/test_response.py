"""Responses: the bytes that answer."""

from __future__ import annotations

import base64
import hashlib

from relay.config import Config
from relay.response import cors_headers, json_body, page_headers, respond, stream_head


def test_a_response_has_its_length_and_says_whether_it_goes_on() -> None:
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


def test_a_stream_s_head_is_what_proxies_and_browsers_need() -> None:
    assert stream_head(Config(), None) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n"
        b"Connection: keep-alive\r\nX-Accel-Buffering: no\r\n\r\n"
    )


def test_cors_follows_the_settings() -> None:
    listed = Config(cors_origin=("https://a.example",))
    assert cors_headers(Config(), "https://a.example") == ()
    assert cors_headers(Config(cors_origin=("*",)), "https://x.example") == (("Access-Control-Allow-Origin", "*"),)
    assert cors_headers(listed, "https://x.example") == (("Vary", "Origin"),)
    assert cors_headers(listed, None) == (("Vary", "Origin"),)
    assert dict(cors_headers(listed, "https://a.example")) == {
        "Access-Control-Allow-Origin": "https://a.example",
        "Vary": "Origin",
    }
    assert b"\r\nAccess-Control-Allow-Origin: https://a.example\r\nVary: Origin\r\n\r\n" in stream_head(
        listed, "https://a.example"
    )


def test_the_page_may_run_its_own_scripts_and_styles_only() -> None:
    page = b"<style>p{}</style><script>one()</script><script type='module'>two()\n</script>"
    policy = dict(page_headers(page))["Content-Security-Policy"]
    for block in (b"p{}", b"one()", b"two()\n"):
        assert base64.b64encode(hashlib.sha256(block).digest()).decode() in policy
    assert "unsafe" not in policy
    assert "connect-src 'self'" in policy
    assert "script-src 'none'" in dict(page_headers(b"<p>"))["Content-Security-Policy"]
