"""The addresses that a server serves: bind a listener to each, and log them.

Owns the division of the listeners among workers. Never accepts a connection.
"""

from __future__ import annotations

import logging
import socket

from relay.config.model import Config
from relay.process.listeners import ListenerGroup, listen
from relay.process.systemd import Service
from relay.workers.processes import share

_logger = logging.getLogger("relay.server")


def bind(config: Config, service: Service, count: int) -> tuple[list[ListenerGroup], socket.socket | None]:
    """Open the clients' listeners, so that a wrong address is reported at once.

    Args:
        config: checked settings.
        service: the service manager. Its listeners replace those of `listen`.
        count: the number of processes that accept clients.

    Returns:
        The listeners of each process, and the Unix socket that the service manager has opened, if any.

    Raises:
        ConfigError: an address is in use or cannot be used.
    """
    given, given_unix = service.listeners()
    public = [given] * count if given else _share(config.listen, config, count)
    admin = _share((config.admin_listen,) if config.admin_listen else (), config, count)
    return [ListenerGroup(*each) for each in zip(public, admin, strict=True)], given_unix


def _share(addresses: tuple[str, ...], config: Config, count: int) -> list[list[socket.socket]]:
    """Open the listeners of each process at some addresses."""
    if count == 1:
        return [[listen(address, config) for address in addresses]]
    for address in addresses:
        listen(address, config).close()  # Fails if the address is in use, even by a socket that would share it.
    return share(lambda address: listen(address, config, shared=True), addresses, count)


def log_addresses(config: Config, listeners: ListenerGroup) -> None:
    """Log the URL of each listener."""
    for address in config.listen:
        if address.startswith(":"):
            _logger.info("%s is every IPv4 address; [::]%s is every IPv4 and IPv6 address", address, address)
    scheme = "https" if config.tls_cert else "http"
    for text, sockets in (("admin pages at", listeners.admin), ("serving at", listeners.public)):
        for listener in sockets:
            host, port = listener.getsockname()[:2]
            _logger.info("%s %s://%s:%d/", text, scheme, f"[{host}]" if ":" in host else host, port)
