"""The limit of open descriptors: raise it, and derive the number of streams from it.

Owns the reserve for descriptors that are not streams. Never opens a descriptor.
"""

from __future__ import annotations

import logging
import resource

from relay.config.model import Config
from relay.errors import ConfigError
from relay.front.tls import DESCRIPTORS_A_STREAM

DESCRIPTORS_RESERVED = 128
"""Descriptors reserved for listeners, feeders, ordinary requests and handshakes. A handshake needs two."""

DESCRIPTORS_MIN = 256
"""With fewer descriptors the server would refuse nearly every client, so it refuses to start."""

_logger = logging.getLogger("relay.server")


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open descriptors to the hard limit, and return it.

    Raises:
        ConfigError: the hard limit is below `DESCRIPTORS_MIN`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _logger.info("raised the descriptor limit from %d to %d", soft, hard)
    if hard < DESCRIPTORS_MIN:
        raise ConfigError(f"descriptors: the hard limit is {hard}, and {DESCRIPTORS_MIN} are needed (ulimit -Hn)")
    return hard


def streams_available(config: Config, descriptors: int) -> int:
    """Return the maximum number of streams of one process.

    Args:
        config: checked settings.
        descriptors: the process's limit of open descriptors.

    Raises:
        ConfigError: `streams-max` is larger.
    """
    available = descriptors - DESCRIPTORS_RESERVED
    if config.tls_cert:
        available //= DESCRIPTORS_A_STREAM
    if config.streams_max > available:
        raise ConfigError(f"streams-max: {config.streams_max} streams need more than {descriptors} descriptors")
    return available
