"""Build the plan of a scenario, that is, its phases, its streams and its feed, from its name and a few numbers.

Contains pure values. Every locust process builds the same plan from the same options. Never starts a process and never
judges a result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from relay.topic import TermTree

TOPIC = "load"
BLOCK_STREAMS_MAX = 10_000
"""Streams of one swarm process: the number that shares one source address, and half of the usual descriptor limit."""

TOPICS = 10_000
GROUPS = 100


@dataclass(frozen=True, slots=True)
class LoadPhase:
    """A period of a run.

    Args:
        name: `storm` drops all streams at its start, `read-on` lets slow streams read, `settle` waits for all events.
        seconds: duration.
        rate: events per second.
    """

    name: str
    seconds: float
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Streams that one swarm process holds.

    Args:
        streams: number of streams.
        path: request target.
        topics, first, slow, stalled, reconnect, life_s, receive_buffer: as in `loadtest.rig.swarm.Swarm`.
        healthy: no gap event is allowed, and every event must have arrived at the end.
    """

    streams: int
    path: str = f"/events?topic={TOPIC}"
    topics: int = 0
    first: int = 0
    slow: int = 0
    stalled: int = 0
    reconnect: bool = True
    life_s: float = 0.0
    receive_buffer: int = 0
    healthy: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """The numbers of a scenario that can be set.

    Args:
        streams: streams of the swarm, in total.
        users: real streams; each is a locust user.
        slow_users: real streams that read slowly or not at all, and catch up at the end.
        rate: events per second, outside bursts and quiet phases.
        seconds: length of the feed.
        block: maximum number of streams of one swarm process.
        ramp_s: time to open all streams; settle_s: for the last events to arrive; read_on_s: for slow streams to
            catch up.
    """

    streams: int
    users: int
    rate: float
    seconds: float
    slow_users: int = 0
    block: int = BLOCK_STREAMS_MAX
    ramp_s: float = 5.0
    settle_s: float = 4.0
    read_on_s: float = 8.0


def one_topic(_number: int) -> str:
    """Return the one topic to which every event is published."""
    return TOPIC


def many_topics(number: int) -> str:
    """Return the topic of event n: `t.<n mod 100>.<n mod 10000>`."""
    return f"t.{number % GROUPS}.{number % TOPICS}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A scenario with its numbers.

    Args:
        phases: the phases, in order.
        blocks: the blocks of the swarm.
        users, slow_users: number of real streams.
        terms_of: returns the terms of the real stream with that number.
        topic_of: returns the topic of the event with that number.
        keys: number of keys; event n has key n mod `keys`. 0 means no keys.
        padding: bytes of each event beside its numbers.
        first: number of the first event that each stream must see; 0 if streams open while events are published.
    """

    phases: list[LoadPhase]
    blocks: list[Block]
    users: int
    slow_users: int = 0
    terms_of: Callable[[int], list[str]] = lambda _place: [TOPIC]
    topic_of: Callable[[int], str] = one_topic
    keys: int = 0
    padding: int = 100
    first: int = 0

    @property
    def seconds(self) -> float:
        """Total length of all phases."""
        return sum(phase.seconds for phase in self.phases)

    def phase_at(self, time_s: float) -> int | None:
        """Return the index of the phase at a time since the start; None after the last phase."""
        for place, phase in enumerate(self.phases):
            time_s -= phase.seconds
            if time_s < 0:
                return place
        return None


def blocks_of(options: LoadOptions, like: Block) -> list[Block]:
    """Divide the streams among swarm processes."""
    whole, rest = divmod(options.streams, options.block)
    sizes = [options.block] * whole + ([rest] if rest else [])
    return [replace(like, streams=size) for size in sizes]


def _fed(options: LoadOptions, *phases: tuple[str, float, float]) -> list[LoadPhase]:
    """Return the ramp, the given phases (name, share of the seconds, factor of the rate) and the settle phase."""
    fed = [LoadPhase(name, share * options.seconds, factor * options.rate) for name, share, factor in phases]
    return [LoadPhase("ramp", options.ramp_s, options.rate), *fed, LoadPhase("settle", options.settle_s, 0.0)]


def steady(options: LoadOptions) -> Plan:
    """Ramp to N streams, then feed at a steady rate."""
    return Plan(
        phases=_fed(options, ("steady", 1.0, 1.0)), blocks=blocks_of(options, Block(streams=0)), users=options.users
    )


def burst(options: LoadOptions) -> Plan:
    """Feed at the usual rate, then at ten times the rate, then at the usual rate."""
    phases = _fed(options, ("quiet", 0.4, 1.0), ("burst", 0.2, 10.0), ("quiet again", 0.4, 1.0))
    return Plan(phases=phases, blocks=blocks_of(options, Block(streams=0)), users=options.users)


def storm(options: LoadOptions) -> Plan:
    """Disconnect all streams during the feed; they reconnect."""
    phases = _fed(options, ("steady", 0.4, 1.0), ("storm", 0.6, 1.0))
    return Plan(phases=phases, blocks=blocks_of(options, Block(streams=0)), users=options.users)


def slow(options: LoadOptions) -> Plan:
    """Let 5 % of the streams read slowly and 1 % not at all; the real slow streams catch up at the end."""
    odd = Block(
        streams=options.streams * 6 // 100,
        slow=options.streams * 5 // 100,
        stalled=options.streams // 100,
        receive_buffer=4096,
        healthy=False,
    )
    healthy = blocks_of(options, Block(streams=0))
    phases = _fed(options, ("steady", 1.0, 1.0))
    phases[-1:-1] = [LoadPhase("read-on", options.read_on_s, options.rate / 4)]
    with_slow = options.slow_users > 0
    return Plan(
        phases=phases,
        blocks=[*healthy, odd] if with_slow and odd.streams else healthy,
        users=options.users,
        slow_users=options.slow_users,
        keys=20,
        padding=600,
    )


def wanted(plan: Plan, place: int) -> Callable[[int], bool]:
    """Return a function that tells whether the real stream of that place must see the event with a given number."""
    terms = plan.terms_of(place)
    # The topics of the numbers repeat with the period TOPICS.
    tree: TermTree[str] = TermTree()
    for term in terms:
        tree.add(term, term)
    rests = {rest for rest in range(TOPICS) if tree.covering(plan.topic_of(rest))}
    if len(rests) == TOPICS:
        return lambda _number: True
    return lambda number: number % TOPICS in rests


def mixed_terms(place: int) -> list[str]:
    """Return the topics and patterns of a real stream; some of them overlap."""
    group, topic = place % GROUPS, place * 37 % TOPICS
    choices = [
        [many_topics(topic), many_topics(topic + 5000), many_topics(topic + 1)],
        [f"t.{group}.*", many_topics(group), many_topics(topic)],
        [f"t.*.{topic}", f"t.{group}.**", "other.**"],
        ["t.**", f"t.{group}.*"],
    ]
    return choices[place % len(choices)]


def topics(options: LoadOptions) -> Plan:
    """Use 10,000 topics: streams of one topic, of a pattern for a group, of a pattern across groups, and of all."""
    first = 1
    tenth = max(1, options.streams // 10)
    of_one = Block(streams=options.streams, path="/events?topic=t.{%100}.{}", topics=TOPICS, first=first)
    of_group = Block(streams=tenth, path="/events?topic=t.{}.*", topics=GROUPS, first=first)
    across = Block(streams=tenth, path="/events?topic=t.*.{}", topics=TOPICS, first=first)
    of_all = Block(streams=max(1, tenth // 100), path="/events?topic=t.**", first=first)
    ramp, *rest = _fed(options, ("steady", 1.0, 1.0))
    return Plan(
        phases=[LoadPhase("ramp", ramp.seconds, 0.0), *rest],
        blocks=[of_one, of_group, across, of_all],
        users=options.users,
        terms_of=mixed_terms,
        topic_of=many_topics,
        first=first,
    )


def churn(options: LoadOptions) -> Plan:
    """Close each stream after about two seconds and open a new one in its place."""
    blocks = blocks_of(options, Block(streams=0, life_s=2.0, reconnect=False))
    return Plan(phases=_fed(options, ("churn", 1.0, 1.0)), blocks=blocks, users=options.users)


def soak(options: LoadOptions) -> Plan:
    """Repeat all kinds of phases: half the streams stay, a third come and go, the rest are slow."""
    stay = Block(streams=options.streams // 2)
    come = Block(streams=options.streams // 3, life_s=5.0, reconnect=False)
    odd_streams = options.streams - stay.streams - come.streams
    odd = Block(
        streams=odd_streams, slow=odd_streams // 2, stalled=odd_streams // 8, receive_buffer=4096, healthy=False
    )
    rounds = max(1, round(options.seconds / 60))
    share = 1 / rounds
    cycle = [
        ("steady", 0.4 * share, 1.0),
        ("storm", 0.2 * share, 1.0),
        ("burst", 0.05 * share, 10.0),
        ("quiet", 0.35 * share, 0.5),
    ]
    return Plan(
        phases=_fed(options, *cycle * rounds),
        blocks=[block for block in (stay, come, odd) if block.streams],
        users=options.users,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A named scenario.

    Args:
        what: description, for people.
        passes: conditions for exit code 0, for people.
        defaults: default numbers.
        build: builds the plan.
        server: settings of the relay under test.
        publish: how events are published.
        policies: policies to test, one run each.
    """

    what: str
    passes: str
    defaults: LoadOptions
    build: Callable[[LoadOptions], Plan]
    server: tuple[str, ...] = ()
    publish: str = "unix"
    policies: tuple[str, ...] = ()


SCENARIOS = {
    "steady": Scenario(
        what="ramp to N streams, steady feed over the Unix socket",
        passes="no gap, no duplicate, nothing out of order or missing at the end; p99 printed",
        defaults=LoadOptions(streams=2000, users=50, rate=50, seconds=45),
        build=steady,
    ),
    "burst": Scenario(
        what="quiet, then 10 times the rate for a fifth of the time, then quiet",
        passes="the same, and no stream lags at the end",
        defaults=LoadOptions(streams=2000, users=10, rate=50, seconds=30),
        build=burst,
    ),
    "storm": Scenario(
        what="all N break off at once and come back with Last-Event-ID",
        passes="the same, over the storm; accept rate and time to recover printed",
        defaults=LoadOptions(streams=10_000, users=50, rate=20, seconds=30),
        build=storm,
        server=("--backlog", "4096"),
    ),
    "slow": Scenario(
        what="5 % read slowly, 1 % stop reading; one run for each policy, and one without slow ones",
        passes="p99 of the healthy within 1.2 times of the run without; server memory bounded; each slow real stream "
        "got exactly what its policy promises, event by event",
        defaults=LoadOptions(
            streams=1000, users=10, slow_users=6, rate=200, seconds=10, ramp_s=3.0, settle_s=3.0, read_on_s=6.0
        ),
        build=slow,
        server=("--history-bytes", "16MiB", "--lag-events", "400", "--block-timeout", "500ms"),
        policies=("drop-oldest", "drop-newest", "conflate", "disconnect", "block"),
    ),
    "topics": Scenario(
        what="10,000 topics; N streams of one each, N/5 of patterns, and real ones with mixed terms",
        passes="no event on a wrong stream, none missing",
        defaults=LoadOptions(streams=10_000, users=24, rate=600, seconds=40),
        build=topics,
    ),
    "churn": Scenario(
        what="streams live for 1 to 3 s, thousands come and go",
        passes="no gap or duplicate; the server's descriptors and memory are back where they began",
        defaults=LoadOptions(streams=4000, users=10, rate=20, seconds=30),
        build=churn,
        server=("--history-bytes", "1MiB"),
    ),
    "soak": Scenario(
        what="everything mixed for --minutes: streams that stay, come and go, are slow; bursts, storms, all entrances",
        passes="no stream that reads misses anything; slope of the server's memory about zero",
        defaults=LoadOptions(streams=1200, users=10, rate=50, seconds=120),
        build=soak,
        server=("--history-bytes", "4MiB"),
        publish="mixed",
    ),
}
