"""Where a connection comes from, when a proxy stands between: `X-Forwarded-For`, and the PROXY protocol.

Owns both formats, and from whom they are believed. Sans-IO. What anybody but a trusted proxy says is not looked at:
whoever could choose an address of his own would have no limit.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterable

from relay.errors import RequestError

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""Begins a header of version 2 (PROXY protocol, section 2.2)."""
LINE_BYTES_MAX = 107
"""Longest header of version 1, its CRLF included (section 2.1)."""
BINARY_BYTES_MAX = 16 + 4096
"""Longest header of version 2 that is taken: addresses have 36 bytes, the rest are extensions that nobody reads."""

_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [ -~]*)?|TCP([46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) ([0-9]{1,5}) ([0-9]{1,5}))"
)
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Read addresses and networks: `10.0.0.0/8`, `::1`.

    Raises:
        ValueError: one is neither; the text names it.
    """
    return tuple(ipaddress.ip_network(text) for text in texts)


def trusted(address: str, networks: tuple[Network, ...]) -> bool:
    """Tell whether an address is one of a trusted proxy; what is no address is not."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)


def client_address(peer: str, header: str, networks: tuple[Network, ...]) -> str:
    """Return the address of a request's client.

    From the right, where the proxies write: the first address that is not a trusted proxy's own.

    Args:
        peer: the address at the other end of the connection.
        header: value of X-Forwarded-For; what was sent in several lines joined by commas.
        networks: the trusted proxies.
    """
    address = peer
    for part in reversed(header.split(",")):
        if not trusted(address, networks):
            return address
        text = part.strip()
        try:
            address = str(ipaddress.ip_address(text))
        except ValueError:
            return address  # `unknown`, or nonsense: whoever wrote it is the last that is known
    return address


def read_header(data: bytes) -> tuple[str | None, int] | None:
    """Read a header of the PROXY protocol, version 1 or 2, from the first bytes of a connection.

    Args:
        data: what has come so far.

    Returns:
        The client's address and the header's length; no address where the proxy speaks for itself (a health check) or
        does not know; None while the header is not whole.

    Raises:
        RequestError: 400, it is none.
    """
    if data.startswith(SIGNATURE[: len(data)]):
        return _read_binary(data)
    if not data.startswith(b"PROXY "[: len(data)]):
        raise RequestError(400, "a header of the PROXY protocol is missing")
    end = data.find(b"\r\n", 0, LINE_BYTES_MAX)
    if end < 0:
        if len(data) >= LINE_BYTES_MAX:
            raise RequestError(400, "the PROXY header has no end")
        return None
    found = _LINE.fullmatch(data[:end])
    if found is None:
        raise RequestError(400, "the PROXY header cannot be read")
    family, source, destination, *ports = found.groups()
    if family is None:
        return None, end + 2
    addresses = [_address(text.decode(), int(family)) for text in (source, destination)]
    if any(int(port) > 65535 for port in ports):
        raise RequestError(400, "the PROXY header has a port that there is not")
    return addresses[0], end + 2


def _address(text: str, version: int) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise RequestError(400, "the PROXY header has an address that there is not") from None
    if address.version != version:
        raise RequestError(400, "the PROXY header has an address of another family")
    return str(address)


def _read_binary(data: bytes) -> tuple[str | None, int] | None:
    if len(data) < 16:
        return None
    command, family, length = struct.unpack_from("!BBH", data, 12)
    if command not in (_LOCAL, _PROXY):
        raise RequestError(400, "the PROXY header is of another version, or another command")
    if 16 + length > BINARY_BYTES_MAX:
        raise RequestError(400, f"the PROXY header is longer than {BINARY_BYTES_MAX} bytes")
    if len(data) < 16 + length:
        return None
    if command == _LOCAL or family not in (_TCP4, _TCP6):
        return None, 16 + length
    size = 4 if family == _TCP4 else 16
    if length < 2 * size + 4:
        raise RequestError(400, "the PROXY header is too short for its addresses")
    return str(ipaddress.ip_address(data[16 : 16 + size])), 16 + length
