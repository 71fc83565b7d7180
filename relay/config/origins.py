"""Origins and host names: their spelling in browsers, and the check whether the settings allow them.

Owns the spelling (WHATWG URL, RFC 6454 section 6.2) and the wildcards of `cors-origin` and `allowed-host`. Never
decides the content of a response.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

ANY = "*"
_SHAPE = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[^/?#\\]*@)?(?P<host>\[[^][]*\]|[^][:/?#@\\]*)(?::(?P<port>[0-9]*|\*))?"
    r"(?:[/?#\\].*)?",
    re.IGNORECASE | re.DOTALL,
)
_PORTS = {"http": "80", "https": "443"}
_SOCKETS = {"ws": "http", "wss": "https"}
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LABELS = r"(?:[a-z0-9_-]{1,63}\.)+"
_IDNA_2003_ONLY = frozenset("ßς\u200c\u200d")
"""Characters that Python encodes by IDNA 2003, but browsers by IDNA 2008."""


def spell_origin(text: str) -> str:
    """Convert an origin, or the address of one of its pages, to the spelling of browsers in the Origin field.

    Args:
        text: an origin or address. `*.` before the host means any subdomain, and `:*` after it any port.

    Raises:
        ValueError: no browser sends such an origin. The error gives the reason.
    """
    if text.lower() == "null":
        raise ValueError("every sandboxed page and every local file sends `null`, so it identifies no origin")
    match = _SHAPE.fullmatch(text.strip() if "://" in text else f"https://{text.strip()}")
    if match is None:
        raise ValueError("this is not a single origin")
    scheme = match["scheme"].lower()
    scheme = _SOCKETS.get(scheme, scheme)
    if scheme == "file":
        raise ValueError("local files send `null`, which identifies no origin")
    host = spell_host(match["host"])
    port = match["port"] or ""
    if port and port != ANY:
        if len(port) > 10 or int(port) > 65535:
            raise ValueError(f"{port} is not a port")
        port = str(int(port))
    return f"{scheme}://{host}" + (f":{port}" if port and port != _PORTS.get(scheme) else "")


def spell_host(text: str) -> str:
    """Convert a host to the spelling that browsers use: lower case, ASCII, addresses in their short form.

    Args:
        text: a name, an IPv4 address or an IPv6 address in brackets; a name may begin with `*.`.

    Raises:
        ValueError: the text is not a host. The error gives the reason.
    """
    if text.startswith("["):
        if "%" in text:
            raise ValueError("browsers do not support addresses with a zone")
        return f"[{ipaddress.IPv6Address(text[1:-1]).compressed}]"
    wildcard, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    if "*" in name:
        raise ValueError("`*` can replace only the labels on the left of a name (*.example.com), or the port")
    if not _IDNA_2003_ONLY.isdisjoint(name):
        raise ValueError("write the host in ASCII (xn--…)")
    try:
        name = name.encode("idna").decode().lower()
    except UnicodeError:
        raise ValueError(f"{text!r} is not a host") from None
    labels = name.removesuffix(".").split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{text!r} is not a host")
    if not _NUMBER.fullmatch(labels[-1]):
        return wildcard + name
    try:
        address = socket.inet_ntoa(socket.inet_aton(name.removesuffix(".")))
    except OSError:
        raise ValueError(f"{text!r} is not an IPv4 address") from None
    if wildcard:
        raise ValueError("an address has no subdomains")
    return address


def check_origin(text: str) -> None:
    """Check an item of `cors-origin`.

    Raises:
        ValueError: no browser sends this origin. The error shows the correct spelling.
    """
    if text == ANY:
        return
    try:
        spelled = spell_origin(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r}: {error}; write an origin such as https://example.com, https://*.example.com or "
            "http://localhost:*, or `*` for any; location.origin in the browser's console shows the origin of a page"
        ) from None
    if spelled != text:
        raise ValueError(f"no browser sends {text!r}; write {spelled}")


def check_host(text: str) -> None:
    """Check an item of `allowed-host`.

    Raises:
        ValueError: the item never matches. The error shows the correct spelling.
    """
    name = text.strip()
    if name.count(":") > 1 and not name.startswith("["):
        name = f"[{name}]"
    try:
        spelled = spell_origin(name).partition("://")[2]
        spelled = re.sub(r":(?:[0-9]+|\*)$", "", spelled).removesuffix(".")
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}; write a host such as example.com, *.example.com or [::1]") from None
    if spelled != text:
        raise ValueError(f"{text!r} never matches; write {spelled} (any port matches)")


class Allowed:
    """A set of origins or of hosts, with wildcards.

    Args:
        items: checked items of `cors-origin` or `allowed-host`.
    """

    def __init__(self, items: Iterable[str]) -> None:
        items = tuple(items)
        self.any = ANY in items
        self.listing = any(item != ANY for item in items)
        self._exact = frozenset(item for item in items if ANY not in item)
        patterns = [_pattern(item) for item in items if ANY in item and item != ANY]
        self._patterns = re.compile("|".join(patterns)) if patterns else None

    def lists(self, text: str) -> bool:
        """Return whether an origin or host equals an item or matches a wildcard. The item `*` is ignored here."""
        return text in self._exact or (self._patterns is not None and self._patterns.fullmatch(text) is not None)


def _pattern(item: str) -> str:
    """Return the regular expression of an item with wildcards."""
    host, any_port = (item[:-2], True) if item.endswith(":*") else (item, False)
    pattern = re.escape(host).replace(r"\*\.", _LABELS)
    return pattern + ("(?::[0-9]{1,5})?" if any_port else "")
