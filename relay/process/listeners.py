"""The clients' listeners: TCP sockets whose connections inherit the limits of a stream.

Owns the options of the sockets. Never accepts a connection.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from math import inf

from relay.config.formats import parse_address
from relay.config.model import Config
from relay.errors import ConfigError

DEFER_ACCEPT_S = 1
"""A connection without input is accepted after this time only. Others are accepted with their input, so that most
streams open at once (`relay.front.openings`)."""
KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 15
KEEPALIVE_PROBES = 4
"""Keepalive without heartbeats: a stream ends after this many lost probes."""


@dataclass(frozen=True, slots=True)
class ListenerGroup:
    """The listeners of one process.

    Args:
        public: those at the addresses of `listen`, or from the service manager.
        admin: that at `admin-listen`, if there is one.
    """

    public: list[socket.socket]
    admin: list[socket.socket]

    @property
    def all(self) -> list[socket.socket]:
        """All listeners, those of the public first."""
        return [*self.public, *self.admin]


def listen(address: str, config: Config, *, shared: bool = False) -> socket.socket:
    """Open a listener, and tune it.

    Args:
        address: HOST:PORT, of `listen` or `admin-listen`.
        config: the settings.
        shared: whether other listeners of the same user may use the address too (SO_REUSEPORT).

    Raises:
        ConfigError: the address is not one of this machine, or is in use.
    """
    host, port = parse_address(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"listen {address}: {error.strerror}") from None
    try:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host in ("", "::") else 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        tune(listener, config)
        listener.bind(where)
    except OSError as error:
        listener.close()
        raise ConfigError(f"listen {address}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


def tune(listener: socket.socket, config: Config) -> None:
    """Set the options that accepted connections inherit, and that limit a stream in the kernel.

    Heartbeats find dead clients: an unacknowledged one closes the stream after `client_timeout_s`. Without heartbeats,
    the kernel's keepalive probes do. It is off otherwise, because the kernel sends the probes of streams that opened
    within the same seconds in one burst. The burst overflows the queue of the network device, and TCP_USER_TIMEOUT
    closes a stream that is idle for longer than it after a single lost probe: of 1,000,000 idle streams on the loopback
    device, 860,000 closed.
    """
    tcp = socket.IPPROTO_TCP
    options = [
        (socket.SOL_SOCKET, socket.SO_SNDBUF, config.client_buffer),
        (socket.SOL_SOCKET, socket.SO_RCVBUF, config.client_buffer),
        (tcp, socket.TCP_NODELAY, 1),
        (tcp, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT_S),
        (tcp, socket.TCP_NOTSENT_LOWAT, config.client_buffer),
    ]
    if config.client_timeout_s:
        options.append((tcp, socket.TCP_USER_TIMEOUT, round(config.client_timeout_s * 1000)))
    if not config.heartbeat_s:
        # TCP_USER_TIMEOUT replaces KEEPALIVE_PROBES. The probes must fit into it.
        limit_s = config.client_timeout_s or inf
        options += [
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (tcp, socket.TCP_KEEPIDLE, max(1, int(min(KEEPALIVE_IDLE_S, limit_s / 3)))),
            (tcp, socket.TCP_KEEPINTVL, max(1, int(min(KEEPALIVE_INTERVAL_S, limit_s / 6)))),
            (tcp, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
        ]
    for level, option, value in options:
        listener.setsockopt(level, option, value)
