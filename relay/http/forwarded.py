"""The address of a client behind a proxy: `X-Forwarded-For` and the PROXY protocol, sans-IO.

Owns both formats and the check that the sender is a trusted proxy. Never reads an address from any other sender,
because a client that could choose its address would evade every limit per address.
"""

from __future__ import annotations

import ipaddress
import re
import struct

from relay.config.networks import Network
from relay.errors import RequestError

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""First bytes of a header of version 2 (PROXY protocol, section 2.2)."""
LINE_BYTES_MAX = 107
"""Longest header of version 1, including its CRLF (section 2.1)."""
BINARY_BYTES_MAX = 16 + 16 * 1024
"""Longest accepted header of version 2. Addresses take at most 36 bytes. The rest are extensions, such as the client's
certificate; relay skips them."""

_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [ -~]*)?|TCP([46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) ([0-9]{1,5}) ([0-9]{1,5}))"
)
# A port may be obfuscated (RFC 7239 section 6.3) or empty (RFC 3986 section 3.2.3); relay ignores it. A bare IPv6
# address has no port.
_ITEM = re.compile(
    r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<ipv4>[0-9.]+))(?::[0-9A-Za-z._-]*)?|(?P<bare>[0-9A-Fa-f:.]+(?:%\S+)?)"
)
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21


def trusted(address: str, networks: tuple[Network, ...]) -> bool:
    """Return whether an address belongs to a trusted proxy; False if the text is not an address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)


def client_address(peer: str, header: str, networks: tuple[Network, ...]) -> str:
    """Return the address of the client that sent a request.

    Each proxy appends the address of its own client. So the search starts at the right, and continues while the
    address belongs to a trusted proxy. The first other address is the client's. A malformed item (`unknown`, an
    obfuscated identifier, an empty item) ends the search at the last known proxy. The search never skips such an
    item, because a client could have written the items to its left.

    Args:
        peer: the address at the other end of the connection.
        header: value of X-Forwarded-For; several fields are joined by commas. Items may have a port, brackets, quotes
            and an IPv6 zone.
        networks: the trusted proxies.
    """
    address = peer
    for item in reversed(header.split(",")):
        if not trusted(address, networks):
            return address
        found = _read_item(item)
        if found is None:
            return address
        address = found
    return address


def _read_item(item: str) -> str | None:
    """Return the address in one item of X-Forwarded-For; None if the item is malformed."""
    text = item.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    found = _ITEM.fullmatch(text)
    if found is None:
        return None
    try:
        return _plain(ipaddress.ip_address((found["ipv6"] or found["ipv4"] or found["bare"]).partition("%")[0]))
    except ValueError:
        return None


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Format an address; an IPv4-mapped IPv6 address is formatted as IPv4, because the client is the same."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def read_header(data: bytes) -> tuple[str | None, int] | None:
    """Read a header of the PROXY protocol, version 1 or 2, from the first bytes of a connection.

    Args:
        data: the bytes received so far.

    Returns:
        The address of the client and the length of the header; None if the header is incomplete. The address is None
        if the proxy connects for itself (a health check) or does not know the client.

    Raises:
        RequestError: 400 if the data is not a valid header.
    """
    if data.startswith(SIGNATURE[: len(data)]):
        return _read_binary(data)
    if not data.startswith(b"PROXY "[: len(data)]):
        raise RequestError(400, "the PROXY header is missing")
    end = data.find(b"\r\n", 0, LINE_BYTES_MAX)
    if end < 0:
        if len(data) >= LINE_BYTES_MAX:
            raise RequestError(400, f"the PROXY header has no CRLF within {LINE_BYTES_MAX} bytes")
        return None
    found = _LINE.fullmatch(data[:end])
    if found is None:
        raise RequestError(400, "the PROXY header is malformed")
    family, source, destination, *ports = found.groups()
    if family is None:
        return None, end + 2
    addresses = [_address(text.decode(), int(family)) for text in (source, destination)]
    if any(int(port) > 65535 for port in ports):
        raise RequestError(400, "the PROXY header has a port above 65535")
    return addresses[0], end + 2


def _address(text: str, version: int) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise RequestError(400, "the PROXY header has a malformed address") from None
    if address.version != version:
        raise RequestError(400, "the PROXY header has an address that does not match its family")
    return _plain(address)


def _read_binary(data: bytes) -> tuple[str | None, int] | None:
    if len(data) < 16:
        return None
    command, family, length = struct.unpack_from("!BBH", data, 12)
    if command not in (_LOCAL, _PROXY):
        raise RequestError(400, "the PROXY header has an unknown version or command")
    if 16 + length > BINARY_BYTES_MAX:
        raise RequestError(400, f"the PROXY header is longer than {BINARY_BYTES_MAX} bytes")
    if len(data) < 16 + length:
        return None
    if command == _LOCAL or family not in (_TCP4, _TCP6):
        return None, 16 + length
    size = 4 if family == _TCP4 else 16
    if length < 2 * size + 4:
        raise RequestError(400, "the PROXY header is too short for its addresses")
    return _plain(ipaddress.ip_address(data[16 : 16 + size])), 16 + length
