"""Encode the fields of an event into bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest

from bench.micro.conftest import LABELS, Measure, load_twins
from bench.samples import SAMPLES
from relay._native.codec import Decoder

ID = "0123456789abcdef-12345"
BYTES_MAX = 1 << 20

_LINE_END = re.compile(r"\r\n|\r|\n")

Encode = Callable[[str], bytes]


def _relay(name: str) -> tuple[str, Encode]:
    twins = load_twins(name)
    encode = twins.codec.encode_event
    return twins.label, lambda data: encode(data, None, ID, None, BYTES_MAX)


def _sse_starlette() -> tuple[str, Encode]:
    event = pytest.importorskip("sse_starlette", reason="sse-starlette is not installed").ServerSentEvent
    return "sse-starlette", lambda data: event(data, id=ID).encode()


def _strings() -> tuple[str, Encode]:
    """Encode as better-sse does in JavaScript: append each field to a string, without a space after the colon."""

    def encode(data: str) -> bytes:
        text = "id:" + _LINE_END.sub("", ID) + "\n"
        for line in _LINE_END.split(data):
            text += "data:" + line + "\n"
        return (text + "\n").encode()

    return "string building", encode


ENCODERS: dict[str, Callable[[], tuple[str, Encode]]] = {
    **{name: partial(_relay, name) for name in LABELS},
    "sse-starlette": _sse_starlette,
    "strings": _strings,
}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_encode(encoder: str, sample: str, measure: Measure) -> None:
    by, encode = ENCODERS[encoder]()
    data = SAMPLES[sample]
    frame = measure("encode", sample, by, lambda: encode(data))
    assert [(event.data, event.id) for event in Decoder().feed(frame)] == [(data, ID)]
