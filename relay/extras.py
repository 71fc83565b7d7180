"""The optional dependencies: the check that one is installed, and the advice on how to install it.

Owns the wording of that advice. Never imports an optional dependency.
"""

from __future__ import annotations

import importlib.util

from relay.errors import ConfigError, RelayError


def missing_extra(name: str) -> str:
    """Return how to install an extra. pip then keeps the installed version of relay and adds the libraries."""
    return f"run pip install 'relay-sse[{name}]'"


_MODULES = {
    "kafka": ("confluent_kafka",),
    "mqtt": ("paho",),
    "nats": ("nats", "nkeys"),
    "postgres": ("asyncpg",),
    "redis": ("redis", "hiredis"),
}
"""The modules that an extra for brokers and sources installs."""


def need_extra(extra: str, setting: str) -> None:
    """Check that the libraries of a broker or a source are installed.

    Args:
        extra: the extra of relay that installs them.
        setting: the setting that needs them.

    Raises:
        ConfigError: one of them is not installed.
    """
    for module in _MODULES[extra]:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{setting}: needs the library {module}, which is not installed; {missing_extra(extra)}")


def need_httpx(extra: str) -> None:
    """Check that httpx is installed.

    Callers import httpx only after this check, so that a relay that makes no HTTP requests runs without it.

    Args:
        extra: the extra of relay that installs httpx for this use: `client` or `auth`.

    Raises:
        RelayError: httpx is not installed.
    """
    if importlib.util.find_spec("httpx") is None:
        raise RelayError(f"HTTP requests need httpx, which is not installed; {missing_extra(extra)}")
