"""The settings of the protocols below a request: TLS, HTTP/2 and the headers of proxies.

Owns the name, default, type, bounds and help of each. Never checks one setting against another
(`relay.config.check`).
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.declaration import setting


@dataclass(frozen=True, kw_only=True)
class ProtocolSettings:
    """TLS, HTTP/2 and proxies."""

    __slots__ = ()

    tls_cert: str = setting(
        "",
        "PEM file of the certificate and its intermediate certificates; with it, all addresses use TLS 1.2 or "
        "later. relay reads it again on SIGHUP.",
        "text",
        "PATH",
    )
    tls_key: str = setting(
        "",
        "PEM file of the certificate's private key, without a password. Not needed if the file of tls-cert "
        "contains the key.",
        "text",
        "PATH",
    )
    http2: str = setting(
        "on",
        "Speak HTTP/2 too: over TLS with the clients that offer it, and without TLS with those that begin with it. "
        "`on` because a browser opens at most six HTTP/1.1 connections to a host, in all its tabs together.",
        "on|off",
    )
    h2_streams_max: int = setting(
        256,
        "Concurrent requests of one HTTP/2 connection. More are refused. 256 is above the 100 that clients assume, "
        "and bounds the memory of one connection.",
        "number",
        least=1,
        most=2**31 - 1,
    )
    trusted_proxy: tuple[str, ...] = setting(
        (),
        "Address or network of a proxy whose X-Forwarded-For relay uses for limits by address. None by default, "
        "because any client can send this header.",
        "text",
        "NETWORK",
    )
    proxy_protocol: bool = setting(
        False,
        "Expect a PROXY protocol header, version 1 or 2, at the beginning of each connection from a trusted proxy. "
        "Off by default, because a proxy sends it only if configured to.",
        "switch",
    )
