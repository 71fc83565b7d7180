"""Parses the networks in settings.

Owns their notation (CIDR). Never decides whether an address is trusted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED_BITS = 96  # of the prefix ::ffff:0:0 (RFC 4291 section 2.5.5.2)


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Parse addresses and networks: `10.0.0.0/8`, `::1`.

    Raises:
        ValueError: a text is neither. The error names it.
    """
    return tuple(map(_network, texts))


def _network(text: str) -> Network:
    """Parse a network. An IPv4-mapped one becomes IPv4, because relay compares such addresses as IPv4."""
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network
