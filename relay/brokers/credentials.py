"""Credentials for brokers: the file of a password, and the files for TLS.

Owns the reading of these files. Never stores a password.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from relay.errors import BrokerError


def read_password(path: str, setting: str) -> str:
    """Return the password in a file; empty without a file. Call this before each connection.

    Args:
        path: the path of the file; empty for no password.
        setting: the setting that names the file, for errors.

    Raises:
        BrokerError: the file cannot be read.
    """
    if not path:
        return ""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BrokerError(f"{setting}: cannot read {path}: {reason}") from None


class TlsFiles(NamedTuple):
    """The files for TLS.

    Args:
        ca: file of the certificate authorities; empty for those of the system.
        cert: file of the certificate that relay shows; empty for none.
        key: file of its private key; empty if the file of the certificate contains the key.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""

    def options(self, ca: str, cert: str, key: str) -> dict[str, str]:
        """Return the files that are given, under the names of a client library."""
        return {name: path for name, path in zip((ca, cert, key), self, strict=True) if path}

    def context(self) -> ssl.SSLContext:
        """Return a context that checks the certificate of the broker.

        Raises:
            BrokerError: a file cannot be read.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
        except OSError as error:
            raise BrokerError(f"cannot read the files for TLS: {error}") from None
        return context
