"""Compare the compiled encoder with its Python counterpart, and measure how often a payload is copied.

Owns these two measurements. The implementations run in turns of a few milliseconds. The result is the median of the
ratios of neighbouring turns, because slow periods of a shared machine last seconds and slow both implementations
alike. When they ran one after the other in separate processes, the same encoders gave ratios from 8 to 21.
"""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

from bench.samples import SAMPLES
from loadtest.rig.harness import MeasureError
from relay._native import codec
from relay.event import Event
from relay.sse import encode

ROUND_S = 0.005
ROUNDS = 60
PAYLOAD = 1_000_000
BYTES_MAX = 2 * PAYLOAD
ID = "0123456789abcdef-12345"

Figures = dict[str, float]
Encode = Callable[..., bytes]


def _twins() -> dict[str, Encode]:
    """Return both encoders, the compiled one first, independent of the implementation in use.

    Raises:
        MeasureError: the compiled implementation is not built.
    """
    try:
        from relay import _speedups
    except ImportError as error:
        raise MeasureError(f"the compiled encoder is not built: {error}") from None
    return {"speedups": _speedups.encode_event, "native": codec.encode_event}


def _time_ns(call: Callable[[], object], calls: int) -> float:
    """Return the nanoseconds of one call."""
    began = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - began) / calls


def _calls(call: Callable[[], object]) -> int:
    """Return the number of calls in a round."""
    calls = 1
    while _time_ns(call, calls) * calls < ROUND_S * 1e9:
        calls *= 2
    return calls


def _in_turns(twins: dict[str, Encode], call: Callable[[], object]) -> dict[str, list[float]]:
    """Return the nanoseconds of a call of `encode` with each implementation, for each round."""
    calls: dict[str, int] = {}
    rounds: dict[str, list[float]] = {name: [] for name in twins}
    for name, twin in twins.items():
        with patch("relay.sse.encode_event", twin):
            calls[name] = _calls(call)
    for _ in range(ROUNDS):
        for name, twin in twins.items():
            with patch("relay.sse.encode_event", twin):
                rounds[name].append(_time_ns(call, calls[name]))
    return rounds


def speed() -> Figures:
    """Measure how many times faster the compiled implementation is.

    Returns:
        `ratio` for a 150-byte event and `ratio_…` for each sample, with the nanoseconds of both.

    Raises:
        MeasureError: the compiled implementation is not built.
    """
    twins = _twins()
    figures: Figures = {}
    for name, data in SAMPLES.items():
        rounds = _in_turns(twins, partial(encode, Event(data=data, topic="default"), ID, BYTES_MAX))
        pairs = zip(rounds["speedups"], rounds["native"], strict=True)
        figures[f"ratio_{name}"] = statistics.median(plain / quick for quick, plain in pairs)
        figures |= {f"{twin}_{name}_ns": min(took) for twin, took in rounds.items()}
    return {"ratio": figures["ratio_small"], **figures}


def copies() -> Figures:
    """Measure how often the compiled implementation copies a large payload.

    Returns:
        `copies`, the peak memory allocated during encoding, in frames; and `copy_time`, the time of encoding divided
        by the time of one plain copy. `copy_time` reveals copies in reused memory. The plain copy includes its own
        allocation; the encoder also searches for line ends.

    Raises:
        MeasureError: the compiled implementation is not built.
    """
    event = Event(data="x" * PAYLOAD, topic="default")
    call = partial(encode, event, ID, BYTES_MAX)
    with patch("relay.sse.encode_event", _twins()["speedups"]):
        call()
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        frame = call()
        allocated = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        copy = partial(bytearray, frame)
        encodes, bytearrays = _calls(call), _calls(copy)
        pairs = [(_time_ns(call, encodes), _time_ns(copy, bytearrays)) for _ in range(ROUNDS)]
    return {
        "copies": allocated / len(frame),
        "copy_time": statistics.median(encoding / copying for encoding, copying in pairs),
    }
