"""Publish an event to each of k audiences and flush it to their streams."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.local_hub import NOW_S, LocalHub
from bench.micro.conftest import Measure, Twins
from bench.samples import SAMPLES
from relay._native.codec import Decoder
from relay.event import Event


@pytest.mark.parametrize("audiences", [1, 10, 100])
def test_publish_to_flush(audiences: int, twins: Twins, make_rig: Callable[..., LocalHub], measure: Measure) -> None:
    rig = make_rig(history_events=10_000)
    data = SAMPLES["small"]
    events = [Event(data=data, topic=f"topic.{number}") for number in range(audiences)]
    for event in events:
        rig.subscribe(str(event.topic))
    rig.flush()

    def publish() -> None:
        for event in events:
            rig.hub.publish_one(event, NOW_S)
        rig.flush()

    case = f"{audiences:,} audience{'s' * (audiences > 1)} of a stream each"
    measure("publish to flush", case, twins.label, publish, units=audiences, setup=rig.read)
    assert [[event.data for event in Decoder().feed(body)] for body in rig.read()] == [[data]] * audiences
