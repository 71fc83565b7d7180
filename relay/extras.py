"""The optional dependencies: the check that one is installed, and the advice on how to install it.

Owns the wording of that advice. Never imports an optional dependency.
"""

from __future__ import annotations

import importlib.util

from relay.errors import ConfigError, RelayError


def missing_extra(name: str) -> str:
    """Return how to install an extra. pip then keeps the installed version of relay and adds the libraries."""
    return f"run pip install 'relay-sse[{name}]'"


def need_extra(module: str, extra: str, setting: str) -> None:
    """Check that the library of a setting is installed.

    Args:
        module: the module of the library.
        extra: the extra of relay that installs it.
        setting: the setting that needs it.

    Raises:
        ConfigError: it is not installed.
    """
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
