"""The form `json`: one JSON document, for polls.

A poll is a stream that ends with its first events. While it waits, the body has only heartbeats, which are white space.
The document is `{"events": […], "next": …}`. Each event is an object as in NDJSON. `next` is the id to resume from.

Owns this format. Never waits (`relay.core.polls`).
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.core.forms.ndjson import Ndjson, dumps


class Document(Ndjson):
    """One JSON document. Its events are lines of NDJSON."""

    name = "json"
    media_types: tuple[str, ...] = ("application/json",)

    def notice(self, frame: bytes) -> bytes:
        """Return white space, which is valid in front of a document."""
        return b"\n"


def document(lines: Iterable[bytes], following: str) -> bytes:
    """Return a document.

    Args:
        lines: events as lines of NDJSON.
        following: the id to resume from.
    """
    events = b",\n".join(line.rstrip() for line in lines)
    return b'{"events":[%b],%b\n' % (events, dumps({"next": following})[1:])
