"""The address of a relay: an `http://` or `https://` URL, or the path of a Unix socket.

Owns the parsing of addresses, and the TLS context for https. Never connects.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from relay.client.opening import shown
from relay.errors import RelayError
from relay.extras import need_httpx

if TYPE_CHECKING:
    import httpx

PORT_MAX = 65535


def tls_context(ca: str | None) -> ssl.SSLContext:
    """Return a TLS context that trusts the authorities of a PEM file. Without a file, it trusts those of the system.

    Raises:
        OSError: the file cannot be read, or contains no certificate.
    """
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise OSError(0, "the file contains no PEM certificate", ca) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, ca) from None


def endpoint(url: str, path: str) -> httpx.URL:
    """Parse an address. If it has no path, add `path`.

    Raises:
        RelayError: httpx is missing, or the address is neither http nor https.
    """
    need_httpx("client")
    import httpx

    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise RelayError(f"{url!r} is not an address: {error}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise RelayError(f"{shown(address)!r} is not an address such as http://127.0.0.1:8080")
    if address.port is not None and not 0 < address.port <= PORT_MAX:
        raise RelayError(f"{shown(address)}: {address.port} is not a port, which is from 1 to {PORT_MAX}")
    if address.path in ("", "/"):
        address = address.copy_with(path=path)
    return address


def unix_path(target: str) -> str | None:
    """Return the path if the target is a Unix socket (`unix:/path`, `/path` or `./path`), else None."""
    if target.startswith("unix:"):
        path = target.removeprefix("unix:")
        return path.removeprefix("//") if path.startswith("///") else path
    return target if target.startswith(("/", ".")) else None
