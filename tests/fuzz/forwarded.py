"""The PROXY header: any bytes give an address or 400. Later bytes and splits change nothing."""

from __future__ import annotations

import ipaddress

from relay.config.networks import parse_networks
from relay.errors import RequestError
from relay.http.forwarded import BINARY_BYTES_MAX, SIGNATURE, client_address, read_header

WORDS = (
    b"PROXY ",
    b"TCP4 ",
    b"TCP6 ",
    b"UNKNOWN",
    b"10.0.0.1 ",
    b"::ffff:1.2.3.4 ",
    b"65535",
    b"\r\n",
    SIGNATURE,
    b"\x21\x11\0\x0c",
    b"\x21\x21\0\x24",
    b"\x20\0\0\0",
    b"\x01\x02\x03\x04\x05\x06\x07\x08\0\x50\0\x50",
    b",",
    b":80",
    b"[2001:db8::1]",
    b"%eth0",
    b'"',
    b"unknown",
    b"_x",
)
PROXIES = parse_networks(("10.0.0.0/8", "::1"))


def check(data: bytes) -> None:
    """Check one input, as a PROXY header and as the value of X-Forwarded-For."""
    try:
        found = read_header(data)
    except RequestError as error:
        assert error.status == 400
    else:
        if found is None:
            assert len(data) < BINARY_BYTES_MAX
        else:
            address, size = found
            assert 0 < size <= len(data)
            assert address is None or ipaddress.ip_address(address)
            assert read_header(data[:size]) == read_header(data + b"GET") == found
            for end in range(size):
                assert read_header(data[:end]) is None
    assert ipaddress.ip_address(client_address("10.0.0.1", data.decode("latin-1"), PROXIES))
