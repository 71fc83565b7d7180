"""The structure of /stats.

Owns the fields and their order. The server and the total of its workers use these structs; `relay top` reads the
JSON without them. `make reference` writes the JSON Schema of the structs, with their docstrings, to
`docs/reference/stats.schema.json`. Never collects a value. A field that is UNSET is absent from the JSON.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType


class LogStats(Struct):
    """The retained events. `head` is the sequence of the next event, `tail` that of the oldest retained event."""

    head: int
    tail: int
    events: int
    bytes: int
    bytes_max: int


class DedupStats(Struct):
    """The remembered dedup keys, and the events that were left out as repeats."""

    keys: int
    hits: int


class StoreStats(Struct):
    """The events that wait for the disk, and the reason why none can be published; empty if they can."""

    pending: int
    refusal: str


class TopicStats(Struct):
    """One topic."""

    topic: str
    subscribers: int
    retained: int


class SlowStream(Struct):
    """One of the streams that lag most."""

    address: str
    topics: list[str]
    policy: str
    lag_events: int
    lag_bytes: int
    lag_s: float


class UpstreamStats(Struct):
    """The upstream. Only an event stream has the fields after `breaks`."""

    linked: bool
    breaks: int
    events: int | UnsetType = UNSET
    repeats: int | UnsetType = UNSET
    refused: int | UnsetType = UNSET
    error: str | UnsetType = UNSET
    ended: str | UnsetType = UNSET


class EdgeStats(Struct):
    """One edge on another machine."""

    name: str
    lag_events: int
    lapped: int


class WorkerStats(Struct):
    """One worker. Only a worker that answered has the fields after `link_lag_events`."""

    worker: int
    ready: bool
    answered: bool
    link_lag_events: int
    uptime_s: float | UnsetType = UNSET
    streams: int | UnsetType = UNSET
    lagging: int | UnsetType = UNSET
    deliveries: int | UnsetType = UNSET
    bytes: int | UnsetType = UNSET
    writes: int | UnsetType = UNSET
    short_writes: int | UnsetType = UNSET
    encodes: int | UnsetType = UNSET


class ServerStats(Struct):
    """The body of /stats. The last four fields depend on the mode of the server."""

    version: str
    engine: str
    uptime_s: float
    input_errors: int
    gc_objects: int
    held: dict[str, int]
    ready: bool
    streams: int
    lagging: int
    events: int
    encodes: int
    deliveries: int
    bytes: int
    writes: int
    short_writes: int
    log: LogStats
    dedup: DedupStats
    store: StoreStats | None
    policy_actions: dict[str, int]
    closes: dict[str, int]
    resumes: dict[str, int]
    topics_total: int
    topics: list[TopicStats]
    slowest: list[SlowStream]
    upstream: UpstreamStats | UnsetType = UNSET
    edges: list[EdgeStats] | UnsetType = UNSET
    worker_restarts: int | UnsetType = UNSET
    workers: list[WorkerStats] | UnsetType = UNSET


def to_json(stats: ServerStats) -> bytes:
    """Encode the body of /stats as JSON, followed by a line feed."""
    return msgspec.json.encode(stats) + b"\n"


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of /stats."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(ServerStats)}
