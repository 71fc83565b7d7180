"""The number of streams that fit: raise the limit of open descriptors, and derive the number from it.

Owns the reserve for descriptors that are not streams, and the estimate of a stream's memory. Never opens a descriptor.
"""

from __future__ import annotations

import logging
import resource

from relay.config.load import worker_count
from relay.config.model import Config
from relay.errors import ConfigError
from relay.front.tls import DESCRIPTORS_A_STREAM
from relay.process.memory import available_bytes

DESCRIPTORS_RESERVED = 128
"""Descriptors reserved for listeners, feeders, ordinary requests and handshakes. A handshake needs two."""

DESCRIPTORS_MIN = 256
"""With fewer descriptors the server would refuse nearly every client, so it refuses to start."""

STREAM_BYTES = 6 * 1024
"""Memory of a stream that reads, of which the kernel uses 5 KiB (`make capacity`)."""

TLS_BYTES = 26 * 1024
"""Memory that TLS adds to a stream (`make bench-http2`)."""

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


def stream_bytes(config: Config) -> int:
    """Return an estimate of the memory of an idle stream, with that of the kernel."""
    return STREAM_BYTES + (TLS_BYTES if config.tls_cert else 0)


def log_room(config: Config, descriptors: int, streams: int) -> None:
    """Log how many streams fit.

    Args:
        config: checked settings.
        descriptors: the limit of open descriptors of each process.
        streams: number of streams that the descriptors and `streams-max` permit.
    """
    each, free = stream_bytes(config), available_bytes()
    memory = "memory unknown"
    if free is not None:
        # The history is empty at the start and will use its share, in the hub and in each worker.
        workers = worker_count(config)
        history = config.history_bytes * (workers + 1 if workers > 1 else 1)
        fit = max(0, free - history) // each
        memory = f"memory for about {fit} ({free // 2**20} MiB available, {each // 1024} KiB per stream)"
    _logger.info("room for %d streams (%d descriptors per process; ulimit -Hn); %s", streams, descriptors, memory)
