"""The values of `history-for`."""

from __future__ import annotations

import re

import pytest

from relay.config.check import check
from relay.config.model import Config
from relay.config.topic_retention import TopicLimits, parse_history
from relay.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "pattern", "limits"),
    [
        ("prices.*=events 1", "prices.*", TopicLimits(1)),
        ("audit.**=age 7d", "audit.**", TopicLimits(0, 604_800.0)),
        ("chat=events 100  age 1h30m", "chat", TopicLimits(100, 5400.0)),
        ("chat=age 0.5 events 2", "chat", TopicLimits(2, 0.5)),
        ("a=b=events 3", "a=b", TopicLimits(3)),
    ],
)
def test_a_pattern_has_a_limit_of_events_or_of_age_or_both(text: str, pattern: str, limits: TopicLimits) -> None:
    assert parse_history(text) == (pattern, limits)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prices.*", "'prices.*' is not PATTERN=LIMIT VALUE"),
        ("prices.*=", "is not PATTERN=LIMIT VALUE"),
        ("prices.*=events", "is not PATTERN=LIMIT VALUE"),
        ("prices.*=event 1", "'event' is not one of events, age; did you mean events?"),
        ("prices.*=bytes 1", "'bytes' is not one of events, age"),
        ("prices.*=events 1 events 2", "gives events twice"),
        ("prices.*=events 0", "events must be more than 0, not 0"),
        ("prices.*=age 0s", "age must be more than 0, not 0s"),
        ("prices.*=events many", "events: 'many' is not a whole number"),
        ("prices.*=age x", "age: 'x' is not a time"),
        ("prices.x*=events 1", "'prices.x*': `*` and `**` must stand alone"),
        ("=events 1", "'': is empty"),
    ],
)
def test_a_malformed_value_is_rejected_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match="^history-for: .*" + re.escape(reason)):
        check(Config(history_for=(text,)))
