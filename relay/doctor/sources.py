"""The check of the sources of the settings: can relay log in, and does the server have what relay is to read?

Owns the findings. Never reads a message, and never changes anything at a server, so that it can run beside a relay.
"""

from __future__ import annotations

import asyncio

from relay.config.model import Config
from relay.config.source_address import SourceAddress, parse_source
from relay.doctor.finding import Finding, fault, ok
from relay.errors import BrokerError
from relay.sources.feeds import make_feed

_REMEDY = (
    "check the address, the login (password-file), TLS and the firewall, and that the stream, topic or table exists"
)


async def check_sources(config: Config) -> list[Finding]:
    """Check all sources at the same time.

    Args:
        config: the settings of the server.

    Raises:
        ConfigError: a library is missing, or a file cannot be read.
    """
    if not config.source:
        return [ok("source", "not used: source is not set")]
    return await asyncio.gather(*map(_check, map(parse_source, config.source)))


async def _check(address: SourceAddress) -> Finding:
    try:
        await make_feed(address).check()
    except BrokerError as error:
        return fault("source", f"cannot read {address.shown}: {error}", _REMEDY)
    return ok("source", f"{address.shown} is reachable")
