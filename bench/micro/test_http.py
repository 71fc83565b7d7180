"""Parse the bytes of a request head. The parser has one implementation; part of it is llhttp, in C."""

from __future__ import annotations

import pytest

from bench.micro.conftest import Measure
from bench.micro.table import RELAY
from relay.http.request import Request, RequestParser

HEAD_BYTES_MAX = 16 * 1024

HEADS = {
    "curl": (
        b"GET /events?topic=default HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"
    ),
    "a browser that resumes": (
        b"GET /events?topic=news&topic=orders.* HTTP/1.1\r\nHost: relay.example.org\r\nConnection: keep-alive\r\n"
        b"Cache-Control: no-cache\r\nLast-Event-ID: 0123456789abcdef-12345\r\nAccept: text/event-stream\r\n"
        b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 "
        b"Safari/537.36\r\nOrigin: https://www.example.org\r\nSec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\n"
        b"Sec-Fetch-Dest: empty\r\nReferer: https://www.example.org/\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
        b"Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\r\n"
    ),
    "a publisher": (
        b"POST /publish?topic=prices HTTP/1.1\r\nHost: relay.example.org\r\nAuthorization: Bearer 0123456789abcdef\r\n"
        b"Content-Type: application/json\r\nContent-Length: 0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("client", HEADS)
def test_head(client: str, measure: Measure) -> None:
    head = HEADS[client]

    def parse() -> Request | None:
        parser = RequestParser(HEAD_BYTES_MAX)
        parser.feed(head)
        return parser.head()

    request = measure("request head", f"{client}, {len(head)} bytes", RELAY, parse)
    assert request is not None
    assert head.startswith(f"{request.method} {request.raw_path}?topic={request.values('topic')[0]}".encode())
    assert len(request.headers) == head.count(b": ")
