"""Parses the networks in settings.

Owns their notation (CIDR). Never decides whether an address is trusted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Parse addresses and networks: `10.0.0.0/8`, `::1`.

    Raises:
        ValueError: a text is neither. The error names it.
    """
    return tuple(ipaddress.ip_network(text) for text in texts)
