"""The setting `validate`: rules for the data of events, by topic pattern.

Owns the syntax of a rule. Never reads a schema, and never checks an event (`relay.sources.validation`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from relay.config.formats import parse_size
from relay.config.values import check_pattern
from relay.errors import ConfigError

_RULE = re.compile(r"(.+?)=(size|schema) +(\S.*)")


@dataclass(frozen=True, slots=True)
class DataRule:
    """One rule for the topics of a pattern.

    Args:
        pattern: topic or pattern.
        size_max: largest data in bytes; None for a rule with a schema.
        schema: path of a JSON Schema; empty for a rule with a size.
    """

    pattern: str
    size_max: int | None
    schema: str


def parse_rule(text: str) -> DataRule:
    """Parse one `validate`.

    Args:
        text: such as `logs.**=size 4KiB` or `orders.*=schema /etc/relay/order.json`.

    Raises:
        ConfigError: the text is malformed.
    """
    parts = _RULE.fullmatch(text)
    if parts is None:
        raise ConfigError(f"validate: {text!r} is neither PATTERN=size SIZE nor PATTERN=schema PATH")
    pattern, kind, value = parts.groups()
    check_pattern("validate", pattern)
    if kind == "schema":
        return DataRule(pattern, None, value)
    try:
        return DataRule(pattern, parse_size(value), "")
    except ValueError as error:
        raise ConfigError(f"validate: {pattern}: {error}") from None
