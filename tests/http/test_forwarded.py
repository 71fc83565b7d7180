"""The client's address behind a proxy, and the proxies that are trusted to report it."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.networks import parse_networks
from relay.errors import RequestError
from relay.http.forwarded import (
    BINARY_BYTES_MAX,
    LINE_BYTES_MAX,
    SIGNATURE,
    client_address,
    read_header,
    trusted,
)
from tests.running import TIMEOUT_S, Relay, Stream, relay

PROXIES = parse_networks(["10.0.0.0/8", "::1"])


def binary(command: int = 0x21, family: int = 0x11, body: bytes = b"\x01\x02\x03\x04\x05\x06\x07\x08\0\1\0\2") -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", "192.0.2.1"),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n", "2001:db8::1"),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1 2\r\n", "192.0.2.1"),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
        (binary(), "1.2.3.4"),
        (binary(family=0x21, body=ipaddress.ip_address("2001:db8::1").packed * 2 + b"\0\1\0\2"), "2001:db8::1"),
        (binary(body=b"\x01\x02\x03\x04\x05\x06\x07\x08\0\1\0\2" + b"\x04\0\x01x"), "1.2.3.4"),
        (binary(body=b"\x01\x02\x03\x04\x05\x06\x07\x08\0\1\0\2" + b"\x20\xff\xff" + b"x" * 9000), "1.2.3.4"),
        (binary(command=0x20), None),
        (binary(family=0x31, body=b"x" * 216), None),
    ],
)
def test_a_header_is_read_when_it_is_complete_at_every_split(header: bytes, address: str | None) -> None:
    for end in range(len(header)):
        assert read_header(header[:end]) is None
    assert read_header(header) == (address, len(header))
    assert read_header(header + b"GET / HTTP/1.1\r\n") == (address, len(header))


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 1.2.3.400 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
        b"PROXY UNKNOWN" + b"x" * LINE_BYTES_MAX,
        SIGNATURE + b"\x11\x11\x00\x0c",
        SIGNATURE + b"\x22\x11\x00\x0c",
        SIGNATURE + struct.pack("!BBH", 0x21, 0x11, BINARY_BYTES_MAX),
        binary(body=b"short"),
    ],
)
def test_an_invalid_header_is_rejected(header: bytes) -> None:
    with pytest.raises(RequestError) as raised:
        read_header(header)
    assert raised.value.status == 400


@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]), st.binary(max_size=300))
def test_any_input_is_read_rejected_or_incomplete(start: bytes, rest: bytes) -> None:
    try:
        found = read_header(start + rest)
    except RequestError:
        return
    assert found is None or found[1] <= len(start + rest)


@pytest.mark.parametrize(
    ("peer", "header", "address"),
    [
        ("10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "192.0.2.9, 192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "192.0.2.1, 10.0.0.2", "192.0.2.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("::ffff:10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "unknown, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "192.0.2.1,", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1:4711", "192.0.2.1"),
        ("10.0.0.1", "192.0.2.1:", "192.0.2.1"),
        ("10.0.0.1", "192.0.2.1:_port", "192.0.2.1"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("10.0.0.1", "[2001:DB8::1]", "2001:db8::1"),
        ("10.0.0.1", "2001:db8:0::1", "2001:db8::1"),
        ("10.0.0.1", "fe80::1%eth0", "fe80::1"),
        ("10.0.0.1", "[fe80::1%25eth0]:80", "fe80::1"),
        ("10.0.0.1", '"[2001:db8::1]:4711"', "2001:db8::1"),
        ("10.0.0.1", ' "192.0.2.1" ', "192.0.2.1"),
        ("10.0.0.1", "::ffff:192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "[::ffff:192.0.2.1]:80", "192.0.2.1"),
        ("10.0.0.1", "192.0.2.1:4711, 10.0.0.2:80, [::1]:80", "192.0.2.1"),
        ("10.0.0.1", "nonsense, _hidden, 192.0.2.1", "192.0.2.1"),
        # An unreadable part makes everything to its left untrustworthy: no client can choose an address there.
        ("10.0.0.1", "192.0.2.1, _hidden, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "192.0.2.1, unix:", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1, , 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "192.0.2.1, 192.0.2.2:4711", "192.0.2.2"),
        ("10.0.0.1", "192.0.2.1 192.0.2.2", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.300:80", "10.0.0.1"),
        ("10.0.0.1", "[192.0.2.1]x", "10.0.0.1"),
        ("10.0.0.1", "[2001:db8::1", "10.0.0.1"),
        ("10.0.0.1", "[", "10.0.0.1"),
        ("10.0.0.1", "\"", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("192.0.2.7", "192.0.2.1", "192.0.2.7"),
        ("local", "192.0.2.1", "local"),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_not_a_trusted_proxy(peer: str, header: str, address: str) -> None:
    assert client_address(peer, header, PROXIES) == address


def test_only_listed_proxies_are_trusted() -> None:
    assert trusted("10.1.2.3", PROXIES)
    assert trusted("::1", PROXIES)
    assert not trusted("11.1.2.3", PROXIES)
    assert not trusted("proxy.example", PROXIES)
    with pytest.raises(ValueError, match="nonsense"):
        parse_networks(["nonsense"])


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::fffe:0:0/95", "::fffe:0:0/95"),
        ("::/0", "::/0"),
    ],
)
def test_an_ipv4_mapped_network_matches_the_addresses_that_are_compared_as_ipv4(text: str, network: str) -> None:
    assert parse_networks([text]) == (ipaddress.ip_network(network),)


def is_rejected(server: Relay, headers: dict[str, str]) -> bool:
    with Stream(server.port, headers=headers) as stream:
        return stream.head.startswith(b"HTTP/1.1 429 ")


def test_limits_per_address_use_the_forwarded_address_of_a_trusted_proxy() -> None:
    limit = ("--streams-per-address-max", "1", "--trusted-proxy", "127.0.0.0/8")
    with relay(*limit) as server, Stream(server.port, headers={"X-Forwarded-For": "192.0.2.1"}):
        assert is_rejected(server, {"X-Forwarded-For": "192.0.2.1"})
        assert is_rejected(server, {"X-Forwarded-For": "192.0.2.9, 192.0.2.1"})
        assert is_rejected(server, {"X-Forwarded-For": '"192.0.2.1:4711"'})
        assert not is_rejected(server, {"X-Forwarded-For": "192.0.2.2"})
        assert not is_rejected(server, {"X-Forwarded-For": "[2001:db8::1]:4711"})
    with relay(*limit[:2]) as server, Stream(server.port, headers={"X-Forwarded-For": "192.0.2.1"}):
        assert is_rejected(server, {"X-Forwarded-For": "192.0.2.2"})


def ask(server: Relay, data: bytes) -> bytes:
    """Send bytes on a new connection. Return all bytes up to the close, or up to `: `."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        connection.sendall(data)
        while b"\r\n\r\n" not in answer and (more := connection.recv(4096)):
            answer += more
    return answer


@pytest.mark.parametrize("header", [b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", binary()])
def test_a_proxy_without_the_expected_proxy_protocol_is_closed(header: bytes) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    with relay("--proxy-protocol", "--trusted-proxy", "127.0.0.1", "--log-level", "debug") as server:
        assert ask(server, header + request).startswith(b"HTTP/1.1 200 ")
        assert ask(server, request) == b""
        assert ask(server, b"PROXY nonsense\r\n" + request) == b""
        assert server.stop() == 0
    with relay("--proxy-protocol", "--trusted-proxy", "192.0.2.1") as server:
        assert ask(server, request).startswith(b"HTTP/1.1 200 ")
        assert ask(server, header + request).startswith(b"HTTP/1.1 400 ")


def test_a_browser_over_a_limit_receives_a_stream_with_a_retry() -> None:
    events = {"Accept": "text/event-stream"}
    with relay("--streams-max", "1") as server, Stream(server.port):
        with Stream(server.port, headers=events) as browser:
            assert browser.head.startswith(b"HTTP/1.1 200 OK")
            assert browser.rest() == []
            comment, retry = browser.raw.splitlines()
            assert comment == b": all 1 streams are taken"
            assert 6000 <= int(retry.removeprefix(b"retry: ")) <= 10000
        with Stream(server.port, headers={"Accept": "*/*"}) as rejected:
            assert rejected.head.startswith(b"HTTP/1.1 503 ")
        with Stream(server.port, "topic=a..b", headers=events) as wrong:
            assert wrong.head.startswith(b"HTTP/1.1 400 ")
    settings = ("--streams-max", "1", "--refuse-streams", "status")
    with relay(*settings) as server, Stream(server.port), Stream(server.port, headers=events) as rejected:
        assert rejected.head.startswith(b"HTTP/1.1 503 ")
