"""Each gap and its missed events are counted by reason: relay.core.gaps."""

from __future__ import annotations

from relay.config.model import Config
from relay.core.gaps import GapReason
from tests.sim.conftest import native_engine
from tests.sim.world import World

__all__ = ["native_engine"]


def test_a_resume_counts_its_gap() -> None:
    world = World(Config(history_events=3))
    for _ in range(10):
        world.publish("a", 10)
    gaps = world.hub.catchup.gaps
    for last_id, reason in (("sim-2", GapReason.HISTORY), ("foreign-2", GapReason.UNKNOWN)):
        client = world.client(("a",), None, 1 << 20)
        client.last_id = last_id
        world.connect(client)
        assert (gaps.sent[reason], gaps.missed[reason]) == (1, 0)
    client = world.client(("a",), None, 1 << 20)
    client.last_id = "sim-9"
    world.connect(client)
    assert gaps.sent.total() == 2
