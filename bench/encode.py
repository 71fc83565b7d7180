"""The encoder: the Cython twin beside the Python twin, and how often a payload is copied.

Owns these two measurements. Each twin runs in a process of its own, since which one runs is chosen at import.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

from bench.harness import MeasureError

ROUND_S = 0.1
ROUNDS = 5
CHILD_S = 60
PAYLOAD = 1_000_000
BYTES_MAX = 2 * PAYLOAD

Figures = dict[str, float]

SAMPLES = {
    "small": '{"n":12345,"t":123456789012345,"p":"' + "x" * 113 + '"}',
    "lines": "\n".join(["a line of a log, about forty bytes long"] * 20),
    "64k": "x" * 65536,
    "unicode": "Grüße, 世界, мир 🎉 " * 8,
}


def _best_ns(call: Callable[[], object]) -> float:
    """Nanoseconds of one call: the best of several rounds, since whatever else runs can only add to it."""
    calls = 1
    while True:
        began = time.perf_counter_ns()
        for _ in range(calls):
            call()
        took = time.perf_counter_ns() - began
        if took > ROUND_S * 1e9 / 4:
            break
        calls *= 2
    best = took / calls
    for _ in range(ROUNDS):
        began = time.perf_counter_ns()
        for _ in range(calls):
            call()
        best = min(best, (time.perf_counter_ns() - began) / calls)
    return best


def _this_engine() -> Figures:
    """Time every sample, and weigh one large frame, with the twin that this process has chosen."""
    from relay.event import Event
    from relay.sse import encode

    figures: Figures = {}
    for name, data in SAMPLES.items():
        event = Event(data=data, topic="default")
        figures[f"{name}_ns"] = _best_ns(partial(encode, event, "0123456789abcdef-12345", BYTES_MAX))
    event = Event(data="x" * PAYLOAD, topic="default")
    encode(event, "0-1", BYTES_MAX)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    frame = encode(event, "0-1", BYTES_MAX)
    figures["allocated"] = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    figures["frame"] = len(frame)
    figures["encode_large_ns"] = _best_ns(partial(encode, event, "0-1", BYTES_MAX))
    figures["copy_large_ns"] = _best_ns(partial(bytearray, frame))
    return figures


def _engine(name: str) -> Figures:
    """The figures of one twin, from a process of its own.

    Raises:
        MeasureError: that process failed, as it does where the twin is not built.
    """
    environment = {**os.environ, "RELAY_ENGINE": name}
    command = [sys.executable, "-m", "bench.encode"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CHILD_S, check=False)
    if made.returncode != 0:
        raise MeasureError(f"engine {name}: {made.stderr.strip()[-2000:]}")
    figures: Figures = json.loads(made.stdout)
    return figures


def speed() -> Figures:
    """How many times quicker the Cython twin is.

    Returns:
        `ratio` for a 150-byte event and `ratio_…` for each sample, with the nanoseconds of both.
    """
    quick, plain = _engine("speedups"), _engine("native")
    ratios = {f"ratio_{name}": plain[f"{name}_ns"] / quick[f"{name}_ns"] for name in SAMPLES}
    figures = {"ratio": ratios["ratio_small"], **ratios}
    for twin, of in (("speedups", quick), ("native", plain)):
        figures |= {f"{twin}_{name}_ns": of[f"{name}_ns"] for name in SAMPLES}
    return figures


def copies() -> Figures:
    """How often the Cython twin copies a large payload.

    Returns:
        `copies`, the memory allocated at the peak of encoding, in frames; and, as a check that no copy hides
        in memory that is used again, `copy_time`, the time of encoding in times of one plain copy (which has
        its own allocation; the encoder has also to look for line ends).
    """
    figures = _engine("speedups")
    return {
        "copies": figures["allocated"] / figures["frame"],
        "copy_time": figures["encode_large_ns"] / figures["copy_large_ns"],
    }


if __name__ == "__main__":
    print(json.dumps(_this_engine()))
