"""The addresses that a server serves: bind a listener to each, and log them.

Owns the division of the listeners among workers. Never accepts a connection.
"""

from __future__ import annotations

import logging
import socket

from relay.config.model import Config
from relay.process.listeners import listen
from relay.process.systemd import Service
from relay.workers.processes import share

_logger = logging.getLogger("relay.server")


def bind(config: Config, service: Service, count: int) -> tuple[list[list[socket.socket]], socket.socket | None]:
    """Open the clients' listeners, so that a wrong address is reported at once.

    Args:
        config: checked settings.
        service: the service manager. Its listeners replace those of the settings.
        count: the number of processes that accept clients.

    Returns:
        The listeners of each process, and the Unix socket that the service manager has opened, if any.

    Raises:
        ConfigError: an address is in use or cannot be used.
    """
    given, given_unix = service.listeners()
    if given or count == 1:
        return [given or [listen(address, config) for address in config.listen]] * count, given_unix
    for address in config.listen:
        listen(address, config).close()  # Fails if the address is in use, even by a socket that would share it.
    return share(lambda address: listen(address, config, shared=True), config.listen, count), given_unix


def log_addresses(config: Config, listeners: list[socket.socket]) -> None:
    """Log the URL of each listener."""
    for address in config.listen:
        if address.startswith(":"):
            _logger.info("%s is every IPv4 address; [::]%s is every IPv4 and IPv6 address", address, address)
    scheme = "https" if config.tls_cert else "http"
    for listener in listeners:
        host, port = listener.getsockname()[:2]
        _logger.info("serving at %s://%s:%d/", scheme, f"[{host}]" if ":" in host else host, port)
