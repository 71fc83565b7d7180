"""The promise as a hypothesis state machine, which shrinks a failing run to a short one.

A subscriber sees every event of its topics, in order, exactly once, or receives a gap event for what it missed.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from relay.config.model import Config
from tests.sim.seeds import SEEDS
from tests.sim.test_promise import POLICIES, TERMS, TOPICS
from tests.sim.world import World

CLIENTS = st.integers(0, 2)


class Promise(RuleBasedStateMachine):
    """Three clients with any terms and policies, and a server with small limits."""

    @initialize(
        policy=st.sampled_from(POLICIES[1:]),
        history_bytes=st.sampled_from([2_000, 100_000]),
        history_events=st.sampled_from([0, 10]),
        lag_bytes=st.sampled_from([0, 300]),
        lag_events=st.sampled_from([2, 20]),
        soft_events=st.sampled_from([0, 2]),
        clients=st.lists(
            st.tuples(st.sampled_from(TERMS), st.sampled_from(POLICIES), st.sampled_from([1, 60, 5000])),
            min_size=3,
            max_size=3,
        ),
    )
    def begin(
        self,
        policy: str,
        history_bytes: int,
        history_events: int,
        lag_bytes: int,
        lag_events: int,
        soft_events: int,
        clients: list[tuple[tuple[str, ...], str | None, int]],
    ) -> None:
        """Make the world and its clients."""
        self.world = World(
            Config(
                policy=policy,
                history_bytes=history_bytes,
                history_events=history_events,
                event_bytes_max=1000,
                lag_bytes=lag_bytes,
                lag_events=lag_events,
                lag_soft_events=soft_events,
                lag_soft_for_s=1.0,
                heartbeat_s=2.0,
                heartbeat_as="event",
            )
        )
        for terms, chosen, room in clients:
            self.world.connect(self.world.client(terms, chosen, room))

    @rule(topic=st.sampled_from(TOPICS), size=st.integers(0, 800), key=st.sampled_from([None, "k"]), count=CLIENTS)
    def publish(self, topic: str, size: int, key: str | None, count: int) -> None:
        """Publish one to three events."""
        for _ in range(count + 1):
            self.world.publish(topic, size, key)

    @rule()
    def step(self) -> None:
        """Run one slice of the server."""
        self.world.step()

    @rule(client=CLIENTS, count=st.integers(1, 3000))
    def read(self, client: int, count: int) -> None:
        """Let a client read up to any byte."""
        self.world.read(self.world.clients[client], count)

    @rule(client=CLIENTS)
    def cut(self, client: int) -> None:
        """Cut a client's connection."""
        self.world.cut(self.world.clients[client])

    @rule(client=CLIENTS, since_s=st.sampled_from([None, 2.0, float("inf")]), newest=st.booleans())
    def connect(self, client: int, since_s: float | None, newest: bool) -> None:
        """Reconnect a client."""
        if self.world.clients[client].pipe is None:
            self.world.step()
            self.world.connect(self.world.clients[client], since_s, newest=newest)

    @rule(seconds=st.sampled_from([0.01, 0.5, 3.0, 20.0]))
    def pass_time(self, seconds: float) -> None:
        """Advance the clock."""
        self.world.pass_time(seconds)

    def teardown(self) -> None:
        """Let all clients read to the end; check that each event was delivered or reported as missed."""
        if hasattr(self, "world"):
            self.world.settle()


TestPromise = Promise.TestCase
TestPromise.settings = settings(max_examples=SEEDS // 2, stateful_step_count=60, deadline=None)
