"""The certificate of a server: a PEM file and its key become a TLS context.

Owns the choice of protocol versions, the messages for unusable files, and the expiry. Never opens a connection.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from relay.errors import ConfigError

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_VERSION, _GENERALIZED_TIME = 0xA0, 0x18


def read_context(certificate: str, key: str, *, http2: bool = False) -> ssl.SSLContext:
    """Read a certificate and its key.

    Args:
        certificate: path of a PEM file: the server's certificate first, then the intermediate ones.
        key: path of a PEM file with the unencrypted private key; empty if `certificate` contains it.
        http2: whether to offer HTTP/2 to clients, before HTTP/1.1.

    Raises:
        ConfigError: a file cannot be read, or the key does not match the certificate.
    """
    for path, setting in ((certificate, "tls-cert"), (key, "tls-key")):
        if path:
            try:
                Path(path).read_bytes()
            except OSError as error:
                raise ConfigError(f"{setting}: {path}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    try:
        # Without a password argument, OpenSSL would prompt for one at the terminal.
        context.load_cert_chain(certificate, key or None, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None)
        if reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"tls-key: the key in {key or certificate} is not that of the certificate") from None
        what = "is not a PEM certificate and an unencrypted PEM key that belong together"
        raise ConfigError(f"tls-cert: {' with '.join(filter(None, (certificate, key)))} {what}") from None
    return context


def read_expiry_s(path: str) -> float | None:
    """Return the Unix time at which the first of the certificates in a PEM file expires; None if it has none.

    Python's ssl module does not show the validity of a server's own certificate.
    """
    blocks = _PEM.findall(Path(path).read_text("latin-1"))
    return min((expiry_s(ssl.PEM_cert_to_DER_cert(block)) for block in blocks), default=None)


def expiry_s(certificate: bytes) -> float:
    """Return the Unix time at which a certificate expires (RFC 5280 section 4.1).

    Args:
        certificate: the certificate as DER.

    Raises:
        ValueError: these bytes are not a certificate.
    """
    try:
        (_, signed), *_ = _elements(certificate)
        (_, to_be_signed), *_ = _elements(signed)
        # A version is optional; then follow the serial number, the algorithm, the issuer and the validity.
        fields = [content for tag, content in _elements(to_be_signed) if tag != _VERSION]
        _, (tag, text) = _elements(fields[3])
        digits = text.decode()
        if tag != _GENERALIZED_TIME:
            digits = ("20" if digits < "5" else "19") + digits
        return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except IndexError:
        raise ValueError("the certificate is truncated") from None


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element of DER (X.690 section 8.1)."""
    place = 0
    while place < len(data):
        tag, size = data[place], data[place + 1]
        place += 2
        if size >= 0x80:  # The lower bits are the number of bytes of the size.
            size, place = int.from_bytes(data[place : place + size - 0x80]), place + size - 0x80
        yield tag, data[place : place + size]
        place += size
