"""A naive implementation of NDJSON and the envelope: it uses the `json` module, and the event instead of its frame."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from relay.core.forms.envelope import Envelope
from relay.core.forms.ndjson import Ndjson
from relay.event import Event
from relay.sse import encode

MIB = 1 << 20
DEPTH_MAX = 1024


def naive_line(members: dict[str, Any]) -> str:
    """Return one line of JSON; `data` has JSON text already."""
    texts = [
        f'"{name}":{value if name == "data" else json.dumps(value, ensure_ascii=False)}'
        for name, value in members.items()
        if value is not None
    ]
    line = "{" + ",".join(texts) + "}"
    return re.sub("[\x85\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", line)


def naive_data(data: str) -> str:
    """Return the data as JSON text."""
    data = re.sub(r"\r\n?", "\n", data)
    return data.replace("\n", " ") if is_embedded(data) else json.dumps(data, ensure_ascii=False)


def is_embedded(data: str) -> bool:
    """Return whether the data is an object or array that all parsers accept."""
    if data[:1] not in ("{", "["):
        return False
    depth = deepest = 0
    for character in re.sub(r'"(\\.|[^"\\])*"', "", data):
        depth += (character in "{[") - (character in "}]")
        deepest = max(deepest, depth)
    if deepest > 600:  # of the special texts; this implementation is recursive
        return deepest <= DEPTH_MAX and depth == 0
    try:
        value = json.loads(data, parse_constant=refused, parse_float=finite, parse_int=finite)
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


def refused(name: str) -> float:
    raise ValueError(name)


def finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(digits)
    return number


def naive_ndjson(event: Event, topic: str | None) -> bytes:
    members = {"id": event.id, "event": event.event, "retry": event.retry, "topic": topic}
    return (naive_line(members | {"data": naive_data(event.data)}) + "\n").encode()


def naive_envelope(event: Event, topic: str | None) -> bytes:
    fields = {"event": event.event, "id": event.id, "retry": event.retry}
    lines = [f"{name}: {value}\n" for name, value in fields.items() if value is not None]
    return ("".join(lines) + f"data: {naive_line({'topic': topic, 'data': naive_data(event.data)})}\n\n").encode()


def check(event: Event, topic: str) -> None:
    """Check one event in both forms, and as a notice."""
    frame = encode(event, None, 16 * MIB)
    assert Ndjson().entry(frame, topic) == naive_ndjson(event, topic)
    assert Ndjson().notice(frame) == naive_ndjson(event, None)
    assert Envelope().entry(frame, topic) == naive_envelope(event, topic)
    assert Envelope().notice(frame) == naive_envelope(event, None)
