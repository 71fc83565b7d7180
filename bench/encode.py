"""The encoder: the Cython twin beside the Python twin, and how often a payload is copied.

Owns these two measurements. The twins run in turns, a few milliseconds each, and what counts is the median of the
ratios of neighbouring turns: a shared machine has slow spells of seconds, which then slow both down alike. Run one
after the other in processes of their own, the same encoders gave ratios from 8 to 21.
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
    """The quick one first, whichever of them this process has chosen.

    Raises:
        MeasureError: it is not built.
    """
    try:
        from relay import _speedups
    except ImportError as error:
        raise MeasureError(f"there is no compiled encoder to measure: {error}") from None
    return {"speedups": _speedups.encode_event, "native": codec.encode_event}


def _time_ns(call: Callable[[], object], calls: int) -> float:
    """Nanoseconds of one call."""
    began = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - began) / calls


def _calls(call: Callable[[], object]) -> int:
    """How many calls make a round."""
    calls = 1
    while _time_ns(call, calls) * calls < ROUND_S * 1e9:
        calls *= 2
    return calls


def _in_turns(twins: dict[str, Encode], call: Callable[[], object]) -> dict[str, list[float]]:
    """Nanoseconds of a call of `encode` with each twin, for each of the rounds."""
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
    """How many times quicker the Cython twin is.

    Returns:
        `ratio` for a 150-byte event and `ratio_…` for each sample, with the nanoseconds of both.

    Raises:
        MeasureError: the Cython twin is not built.
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
    """How often the Cython twin copies a large payload.

    Returns:
        `copies`, the memory allocated at the peak of encoding, in frames; and, as a check that no copy hides
        in memory that is used again, `copy_time`, the time of encoding in times of one plain copy (which has
        its own allocation; the encoder has also to look for line ends).

    Raises:
        MeasureError: the Cython twin is not built.
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
