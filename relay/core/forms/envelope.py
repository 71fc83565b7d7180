"""The form `envelope`: an event stream whose data names the topic.

A subscriber to a pattern cannot tell which topic an event of the plain event stream belongs to. In the envelope, the
data of each event is one line of JSON, `{"topic": …, "data": …}`; `data` is written as in NDJSON. Events of relay
itself, for example gaps, belong to no topic and have only `data`. All other fields, blocks without data and comments
are unchanged, so ids, event types and resuming work as in the plain event stream.

Owns this format. Never parses JSON (`relay.core.forms.ndjson`).
"""

from __future__ import annotations

from relay.core.forms.ndjson import Fields, data_json, dumps


class Envelope:
    """The event stream in which each event's data is wrapped with its topic."""

    name = "envelope"
    media_types: tuple[str, ...] = ("text/event-stream",)

    def entry(self, frame: bytes, topic: str) -> bytes:
        """Return the frame with its data wrapped."""
        return _wrapped(frame, {"topic": topic})

    def notice(self, frame: bytes) -> bytes:
        """Return the frame with its data wrapped, without a topic."""
        return _wrapped(frame, {})


def _wrapped(frame: bytes, members: dict[str, object]) -> bytes:
    fields = Fields(frame)
    if fields.data is None:
        return frame
    members["data"] = data_json(fields.data)
    return b"%bdata: %b\n\n" % (fields.before_data, dumps(members))
