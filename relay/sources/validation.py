"""Validation: checks the data of each event against the rules of its topic.

Owns the rules in the form in which they are checked, and the JSON Schemas. `jsonschema-rs` implements JSON Schema; it
is imported only if a rule has a schema. Never publishes an event, and never loads a schema from the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import orjson

from relay.config.data_rules import DataRule, parse_rule
from relay.core.writer import RESERVED
from relay.errors import ConfigError, EventError
from relay.event import Event
from relay.extras import missing_extra
from relay.topic import TermTree

TOPICS_CACHED = 10_000
"""Topics whose rules are kept. Beyond this number, the rules of a topic are found for each event."""
REASON_CHARACTERS_MAX = 200
"""Longest reason of a rejection; it may quote data."""

_Check = Callable[[object], None]

_encode = msgspec.json.Encoder().encode


class Validation:
    """The rules of one server.

    Args:
        texts: the values of `validate`.

    Raises:
        ConfigError: a rule is malformed, a schema cannot be read or is not valid, or jsonschema-rs is not installed.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._tree: TermTree[_Check] = TermTree()
        for text in texts:
            rule = parse_rule(text)
            self._tree.add(rule.pattern, _check_of(rule))
        self._found: dict[str, list[_Check]] = {}

    def check(self, event: Event) -> None:
        """Check an event that can be encoded. Events of relay's own types are exempt.

        Raises:
            EventError: the data does not follow a rule; the reason states the path of the fault.
        """
        topic = str(event.topic)
        checks = self._found.get(topic)
        if checks is None:
            checks = self._tree.covering(topic)
            if len(self._found) < TOPICS_CACHED:
                self._found[topic] = checks
        if not checks or (event.event is not None and event.event.startswith(RESERVED)):
            return
        for check in checks:
            check(event.data)


def _check_of(rule: DataRule) -> _Check:
    if rule.size_max is None:
        return _schema_check(rule)
    size_max = rule.size_max

    def check(data: object) -> None:
        size = len(_text(data))
        if size > size_max:
            raise EventError("data", f"is {size} bytes; the rule of {rule.pattern} allows {size_max}")

    return check


def _schema_check(rule: DataRule) -> _Check:
    validator = _compile(rule)

    def check(data: object) -> None:
        try:
            value = data if isinstance(data, str) else orjson.loads(_text(data) or b"null")
            fault = next(validator.iter_errors(value), None)
        except ValueError as error:  # The libraries reject numbers such as 1e400, and deep nesting.
            reason = str(error)[:REASON_CHARACTERS_MAX]
            raise EventError("data", f"cannot be checked with the schema of {rule.pattern}: {reason}") from None
        if fault is not None:
            path = "".join(f"/{_escaped(str(part))}" for part in fault.instance_path)
            reason = f"{path or 'the value'}: {fault.message}"[:REASON_CHARACTERS_MAX]
            raise EventError("data", f"does not match the schema of {rule.pattern}: {reason}")

    return check


def _compile(rule: DataRule) -> Any:
    """Read and compile the schema of a rule."""
    where = f"validate: {rule.pattern}: {rule.schema}"
    try:
        import jsonschema_rs
    except ImportError:
        raise ConfigError(f"validate: a schema needs jsonschema-rs; {missing_extra('validation')}") from None
    try:
        with open(rule.schema, "rb") as file:
            schema = orjson.loads(file.read())
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
    try:
        return jsonschema_rs.validator_for(schema, validate_formats=True, offline=True)
    except (ValueError, jsonschema_rs.ReferencingError) as error:  # a ValidationError is a ValueError
        raise ConfigError(f"{where} is not a valid JSON Schema: {str(error).splitlines()[0]}") from None


def _text(data: object) -> bytes:
    """Return data as the bytes that are sent."""
    if isinstance(data, str):
        return data.encode(errors="replace")
    if data is msgspec.UNSET:
        return b""
    return bytes(data) if isinstance(data, msgspec.Raw) else _encode(data)


def _escaped(part: str) -> str:
    """Return a part of a JSON Pointer (RFC 6901 section 3)."""
    return part.replace("~", "~0").replace("/", "~1")
