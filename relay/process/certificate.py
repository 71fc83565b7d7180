"""The certificate of a server: a PEM file and its key become a TLS context.

Owns the choice of protocol versions and the messages for unusable files. Never opens a connection.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from relay.errors import ConfigError


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
