"""Networks in settings: CIDR notation becomes values.

Owns this notation. Never decides who is trusted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Read addresses and networks: `10.0.0.0/8`, `::1`.

    Raises:
        ValueError: one is neither; the text names it.
    """
    return tuple(ipaddress.ip_network(text) for text in texts)
