"""Ids: the rules for the ids of publishers, and the spellings in which clients send an id back.

Theory of operation. A client sends back the last id in a header or in the query. On the way, browsers write UTF-8,
fetch and Node write Latin-1, proxies trim white space, and forms write a space as `+`. Printable ASCII without a space
at either end survives all of that, so only such ids are accepted. Files of earlier versions and upstreams may hold
other ids. Therefore a last id is read into all texts that its bytes may represent. An impossible id counts as unknown
and is not an error, because an `EventSource` that receives 400 never reconnects.

Owns these rules, as pure functions.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from relay.errors import EventError, RequestError

ID_CHARACTERS_MAX = 1024
"""Longest id of a publisher. It must fit into a request head and into gap events."""

LAST_ID_NAMES = ("lastEventId", "lastEventID", "Last-Event-ID", "last_event_id", "evs_last_event_id")
"""Query names of the last id: of EventSource polyfills, of Mercure now and formerly, and of amvtek's polyfill."""

SINCE = (
    "earliest, latest, last, a duration (30s, 5m, 1h30m), a date-time (2026-01-31T12:00:00Z), Unix time (9 to 11 "
    "digits are seconds, 12 to 14 milliseconds), or the id of a retained event of these topics"
)
"""The accepted values of `since`, for error messages."""

_TEXT = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_DEFAULT = re.compile(r"[0-9a-f]{8}-[0-9]+")


def survives(id: str) -> bool:
    """Return whether every client can send this id back unchanged."""
    return len(id) <= ID_CHARACTERS_MAX and _TEXT.fullmatch(id) is not None


def check_id(id: str) -> None:
    """Check an id that a publisher chose.

    Raises:
        EventError: a client could not send it back, or it has the form of a default id, of any epoch.
    """
    if len(id) > ID_CHARACTERS_MAX:
        raise EventError("id", f"has {len(id)} characters; at most {ID_CHARACTERS_MAX} are allowed")
    if not survives(id):
        raise EventError(
            "id", "must be printable ASCII (U+0020 to U+007E), not empty, and without a space at either end"
        )
    if _DEFAULT.fullmatch(id):
        raise EventError("id", "has the form of the ids that relay assigns (8 hexadecimal digits, `-`, a number)")


def default_sequence(ids: Sequence[str], epoch: str) -> int | None:
    """Return the sequence in a default id of an epoch; None for other ids.

    Args:
        ids: the readings of a last id.
        epoch: the epoch.
    """
    for id in ids:
        first, _, digits = id.rpartition("-")
        if first == epoch and digits.isascii() and digits.isdigit() and len(digits) <= 20:
            return int(digits) if digits[0] != "0" or digits == "0" else None
    return None


def may_keep(id: str, epoch: str) -> bool:
    """Return whether an event of another server may keep its id in the log of this epoch."""
    return survives(id) and not id.startswith(f"{epoch}-")


def readings(value: bytes) -> tuple[str, ...]:
    """Return the ids that the bytes of a header value may represent; none for an empty value.

    A text that is longer than every valid id is cut, but stays longer than every valid id.
    """
    texts = [value.decode("latin-1")]
    if not value.isascii():
        with contextlib.suppress(UnicodeDecodeError):  # then it is only Latin-1
            texts.append(value.decode())
    return tuple(text[: ID_CHARACTERS_MAX + 1] for text in texts if text)


def query_readings(value: str) -> tuple[str, ...]:
    """Return the ids that a raw query value may represent: `+` is a space in a form, and a plus elsewhere."""
    plus, space = unquote_to_bytes(value), unquote_to_bytes(value.replace("+", " "))
    return tuple(dict.fromkeys((*readings(plus), *readings(space))))


def unknown_since(ids: tuple[str, ...]) -> RequestError:
    """Return the error for a `since` that is neither a time nor a known id."""
    return RequestError(400, f"since: {ids[-1][:50]!a} is not known; give {SINCE}")
