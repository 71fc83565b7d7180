"""Decode the bytes of a stream into events."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

from bench.micro.conftest import LABELS, Measure, load_twins
from bench.samples import SAMPLES
from relay._native.codec import encode_event

STREAM_BYTES = 1 << 16
"""Approximate length of the decoded stream; a longer event makes a stream of its own length."""

PIECE_BYTES = 1400
"""Payload of one packet."""

BYTES_MAX = 1 << 20

Decode = Callable[[list[bytes]], list[Any]]


def _relay(name: str) -> tuple[str, Decode]:
    twins = load_twins(name)

    def decode(pieces: list[bytes]) -> list[Any]:
        decoder = twins.codec.decoder(BYTES_MAX)
        return [event for piece in pieces for event in decoder.feed(piece)]

    return twins.label, decode


def _httpx_sse() -> tuple[str, Decode]:
    source = pytest.importorskip("httpx_sse", reason="httpx-sse is not installed").EventSource
    headers = {"Content-Type": "text/event-stream"}

    def decode(pieces: list[bytes]) -> list[Any]:
        return list(source(httpx.Response(200, headers=headers, content=iter(pieces))).iter_sse())

    return "httpx-sse", decode


def _sseclient() -> tuple[str, Decode]:
    client = pytest.importorskip("sseclient", reason="sseclient-py is not installed").SSEClient
    return "sseclient-py", lambda pieces: list(client(pieces).events())


DECODERS: dict[str, Callable[[], tuple[str, Decode]]] = {
    **{name: partial(_relay, name) for name in LABELS},
    "httpx-sse": _httpx_sse,
    "sseclient-py": _sseclient,
}


@pytest.mark.parametrize("cut", [None, PIECE_BYTES], ids=["whole", "pieces"])
@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("decoder", DECODERS)
def test_decode(decoder: str, sample: str, cut: int | None, measure: Measure) -> None:
    by, decode = DECODERS[decoder]()
    data = SAMPLES[sample]
    frame = encode_event(data, None, "e-1", None, BYTES_MAX)
    count = max(1, STREAM_BYTES // len(frame))
    stream = frame * count
    step = cut or len(stream)
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    case = f"{sample}, whole" if cut is None else f"{sample}, pieces of {cut:,} bytes"
    events = measure("decode", case, by, lambda: decode(pieces), units=count)
    assert [(event.data, event.id) for event in events] == [(data, "e-1")] * count
