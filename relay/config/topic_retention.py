"""Retention by topic: the values of `history-for`.

Owns their format. Never applies a limit (`relay.core.expiry` does).
"""

from __future__ import annotations

from typing import NamedTuple

from relay.config.model import SETTINGS
from relay.config.values import check_pattern, hint, read
from relay.errors import ConfigError

_LIMITS = {"events": "history-events", "age": "history-age"}


class TopicLimits(NamedTuple):
    """The limits of one topic; 0 for no limit."""

    events_max: int = 0
    age_s_max: float = 0.0


def parse_history(text: str) -> tuple[str, TopicLimits]:
    """Parse one `history-for`: PATTERN=LIMIT VALUE, and perhaps a second limit.

    Args:
        text: such as `prices.*=events 1` or `audit.**=events 1000 age 7d`.

    Returns:
        The pattern and the limits of each topic that it matches.

    Raises:
        ConfigError: the text is malformed, or a limit is unknown, repeated or 0.
    """
    pattern, equals, rest = text.rpartition("=")
    words = rest.split()
    if not equals or not words or len(words) % 2:
        raise ConfigError(f"history-for: {text!r} is not PATTERN=LIMIT VALUE, such as 'prices.*=events 1'")
    check_pattern("history-for", pattern)
    found: dict[str, float] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name not in _LIMITS:
            raise ConfigError(f"history-for: {name!r} is not one of {', '.join(_LIMITS)}{hint(name, _LIMITS)}")
        if name in found:
            raise ConfigError(f"history-for: {text!r} gives {name} twice; remove one")
        found[name] = read(f"history-for: {name}", SETTINGS[_LIMITS[name]], value)
        if not found[name]:
            raise ConfigError(f"history-for: {name} must be more than 0, not {value}")
    return pattern, TopicLimits(int(found.get("events", 0)), found.get("age", 0.0))
