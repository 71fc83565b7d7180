"""The list of topics that GET /topics returns, and the state of one topic.

A list is a page: the first names after a given one, in the order of code points. With workers, each process makes
its page and the hub combines them. The page of the whole server contains only topics of these pages.

Owns the structure of the answer, and the search for a page. Never counts anything itself.
"""

from __future__ import annotations

import heapq
from asyncio import AbstractEventLoop
from collections.abc import Callable, Generator, Iterable
from itertools import islice

import msgspec

from relay.core.hub import Hub

LIMIT = 100
"""Number of topics on a page if the request names none."""

LIMIT_MAX = 1000
"""Maximum number of topics on a page."""

NAMES_A_STEP = 8192
"""Number of names that one step examines, in about a millisecond."""


class TopicsQuery(msgspec.Struct, frozen=True):
    """The topics that a request asks for.

    Args:
        topic: only this topic; empty for a page.
        after: the page begins after this name.
        limit: maximum number of topics, from 1 to `LIMIT_MAX`.
    """

    topic: str = ""
    after: str = ""
    limit: int = LIMIT


class TopicState(msgspec.Struct):
    """One topic: its retained events, the id and the Unix time of the newest of them, and its open streams."""

    topic: str
    events: int = 0
    bytes: int = 0
    newest_id: str | None = None
    newest_time: float | None = None
    subscribers: int = 0


class TopicsPage(msgspec.Struct):
    """A page of topics. `next` is the value of `after` for the next page; None on the last one."""

    topics: list[TopicState] = []
    next: str | None = None


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(TopicsPage).decode


def search(
    hub: Hub, query: TopicsQuery, ahead_s: float, loop: AbstractEventLoop, done: Callable[[TopicsPage], None]
) -> Callable[[], None]:
    """Search for the topics of this process between the other work of the event loop.

    Args:
        hub: as for `find`.
        query: as for `find`.
        ahead_s: as for `find`.
        loop: runs the steps.
        done: called once with the page.

    Returns:
        a function that cancels the search.
    """
    steps = find(hub, query, ahead_s)
    loop.call_soon(_step, steps, loop, done)
    return steps.close


def _step(
    steps: Generator[TopicsPage | None, None, None], loop: AbstractEventLoop, done: Callable[[TopicsPage], None]
) -> None:
    """Make one step, unless the search is cancelled. A closure would refer to itself, and so keep the names."""
    for page in steps:
        if page is None:
            loop.call_soon(_step, steps, loop, done)
        else:
            done(page)
        return


def find(hub: Hub, query: TopicsQuery, ahead_s: float) -> Generator[TopicsPage | None, None, None]:
    """Search for the topics of this process. Yield None after each step, then the page.

    Args:
        hub: the hub of this process.
        query: the topics to find.
        ahead_s: wall-clock time minus the hub's time.
    """
    if query.topic:
        yield _page(hub, [query.topic], query.limit, ahead_s)
        return
    found: list[str] = []
    names = iter(list(hub.log.topics))
    while step := list(islice(names, NAMES_A_STEP)):
        # One more than the limit shows whether there is another page.
        found = heapq.nsmallest(query.limit + 1, (*found, *(name for name in step if name > query.after)))
        yield None
    yield _page(hub, found, query.limit, ahead_s)


def _page(hub: Hub, names: list[str], limit: int, ahead_s: float) -> TopicsPage:
    states = [_state(hub, name, ahead_s) for name in names[:limit] if name in hub.log.topics]
    return TopicsPage(states, names[limit - 1] if len(names) > limit else None)


def _state(hub: Hub, name: str, ahead_s: float) -> TopicState:
    log = hub.log
    topic = log.topics[name]
    state = TopicState(name, subscribers=sum(audience.streams for audience in hub.audiences.of_topic(name)))
    if topic.retained:
        newest = topic.sequences[-1]
        state.events, state.bytes, _ = topic.lag(log.tail)
        state.newest_id, state.newest_time = log.id(newest), round(log.time_s(newest) + ahead_s, 3)
    return state


def combine(parts: Iterable[TopicsPage], limit: int) -> TopicsPage:
    """Combine the pages of several processes. The first part is that of the hub, which has the history.

    Args:
        parts: the pages, each of the same query.
        limit: the limit of the query.
    """
    topics: dict[str, TopicState] = {}
    more = False
    for part in parts:
        more = more or part.next is not None
        for state in part.topics:
            known = topics.setdefault(state.topic, state)
            if known is not state:
                known.subscribers += state.subscribers
    names = sorted(topics)
    more = more or len(names) > limit
    following = names[limit - 1] if more and len(names) >= limit else None
    return TopicsPage([topics[name] for name in names[:limit]], following)
