"""Encoded events are decoded unchanged at every split, and the twins of the codec never differ."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from bench.implementations import Codec
from relay import sse
from relay.errors import EventError
from relay.event import Event
from tests.properties.strategies import ANY_FIELDS, EVENTS, PARTS, STREAMS, pieces

MIB = 1024 * 1024


def as_dispatched(event: Event) -> Event:
    """Return the event as a decoder returns it: every line end is an LF."""
    return Event(re.sub(r"\r\n?", "\n", event.data), event.event, event.id, event.retry)


def outcomes(codec: Codec, parts: list[bytes], bytes_max: int) -> list[Any]:
    """Return the result of each call, and the state of the decoder after it."""
    decoder = codec.decoder(bytes_max)
    found: list[Any] = []
    for part in [*parts, b""]:
        try:
            found.append(decoder.feed(part))
        except EventError as error:
            found.append(str(error))
        found.append((decoder.last_event_id, decoder.retry_ms))
    return found


@given(event=EVENTS)
def test_an_event_is_unchanged_after_encoding_and_decoding(codec: Codec, event: Event) -> None:
    frame = codec.encode_event(event.data, event.event, event.id, event.retry, MIB)
    assert codec.decoder().feed(frame) == [as_dispatched(event)]
    assert sse.encode(event, None, MIB) == frame


@given(data=st.data(), events=st.lists(EVENTS, max_size=5))
def test_events_are_decoded_at_every_split_of_their_frames(
    codec: Codec, data: st.DataObject, events: list[Event]
) -> None:
    stream = b"".join(codec.encode_event(one.data, one.event, one.id, one.retry, MIB) for one in events)
    decoder = codec.decoder()
    found = []
    for part in data.draw(pieces(st.just(stream))):
        found += decoder.feed(part)
    assert found == [as_dispatched(event) for event in events]
    ids = [event.id for event in events if event.id is not None]
    assert decoder.last_event_id == (ids[-1] if ids else "")


@given(stream=STREAMS)
def test_decoded_events_are_unchanged_after_another_round(codec: Codec, stream: bytes) -> None:
    for event in codec.decoder().feed(stream):
        frame = codec.encode_event(event.data, event.event, event.id, event.retry, MIB)
        assert codec.decoder().feed(frame) == [event]


@given(parts=pieces(STREAMS), bytes_max=st.integers(0, 60) | st.just(MIB))
def test_a_split_of_a_stream_changes_nothing(codec: Codec, parts: list[bytes], bytes_max: int) -> None:
    def events(parts: list[bytes]) -> tuple[list[Any], Any, bool]:
        found = outcomes(codec, parts, bytes_max)
        calls = found[::2]
        given = [event for call in calls if isinstance(call, list) for event in call]
        return given, found[-1], any(isinstance(call, str) for call in calls)

    whole = b"".join(parts)
    assert events(parts) == events([whole])
    assert events([whole[place : place + 1] for place in range(len(whole))]) == events([whole])


@given(parts=pieces(STREAMS) | st.lists(PARTS | st.binary(), max_size=40), bytes_max=st.integers(0, 60) | st.just(MIB))
@example(parts=[b"\n"], bytes_max=0)
def test_the_twins_decode_alike(twins: tuple[Codec, Codec], parts: list[bytes], bytes_max: int) -> None:
    native, speedups = twins
    assert outcomes(native, parts, bytes_max) == outcomes(speedups, parts, bytes_max)


@given(fields=ANY_FIELDS)
def test_the_twins_encode_alike(twins: tuple[Codec, Codec], fields: tuple[Any, ...]) -> None:
    def outcome(codec: Codec) -> bytes | str:
        try:
            return codec.encode_event(*fields)
        except EventError as error:
            return str(error)

    native, speedups = twins
    assert outcome(native) == outcome(speedups)
