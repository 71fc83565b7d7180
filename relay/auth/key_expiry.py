"""The expiry of keys: some issuers state it in a JWK. relay reports it, and does not reject an expired key.

Owns the fields that state it. Never reads a key (`relay.auth.keys`).
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable
from typing import Any

from relay.process.certificate import expiry_s


def last_expiry_s(entries: Iterable[dict[str, Any]]) -> float | None:
    """Return the Unix time at which the last key of a set expires; None if a key states no expiry.

    Args:
        entries: the usable keys of the set as JWKs. A key expires with its member `exp` (OpenID Federation 1.0), or
            with its certificate `x5c` (RFC 7517 section 4.7).
    """
    times = [_expiry_s(entry) for entry in entries]
    known = [time_s for time_s in times if time_s is not None]
    return max(known, default=None) if len(known) == len(times) else None


def _expiry_s(entry: dict[str, Any]) -> float | None:
    time_s, chain = entry.get("exp"), entry.get("x5c")
    if isinstance(time_s, int | float):
        try:
            return float(time_s)
        except OverflowError:
            return None  # The number is too large for a time; the key itself is usable.
    if isinstance(chain, list) and chain and isinstance(chain[0], str):
        try:
            return expiry_s(b64decode(chain[0]))
        except ValueError:
            return None  # A damaged certificate states no expiry; the key itself is usable.
    return None
