"""The structure of /stats.

Owns the fields and their order. The server, the total of its workers and `relay top` use these structs. Each field has
a default, so that a program of one version reads the statistics of another: it ignores fields that it does not know.
`make reference` writes the JSON Schema of the structs, with their docstrings, to `docs/reference/stats.schema.json`.
Never collects a value. A field that is UNSET is absent from the JSON.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType


class LogStats(Struct, frozen=True):
    """The retained events. `head` is the sequence of the next event, `tail` that of the oldest retained event.

    `expired` is the number of events that were evicted by their `ttl` or by `history-for`.
    """

    head: int = 0
    tail: int = 0
    events: int = 0
    bytes: int = 0
    bytes_max: int = 0
    expired: int = 0


class DedupStats(Struct, frozen=True):
    """The remembered dedup keys, and the events that were left out as repeats."""

    keys: int = 0
    hits: int = 0


class StoreStats(Struct):
    """The events that wait for the disk, and the reason why none can be published; empty if they can."""

    pending: int = 0
    refusal: str = ""


class TopicStats(Struct):
    """One topic. `events` counts its events since relay has known the topic; it starts again after relay forgot it."""

    topic: str = ""
    subscribers: int = 0
    retained: int = 0
    events: int = 0


class SlowStream(Struct):
    """One of the streams that lag most."""

    address: str = ""
    topics: list[str] = []
    policy: str = ""
    lag_events: int = 0
    lag_bytes: int = 0
    lag_s: float = 0.0


class UpstreamStats(Struct):
    """The upstream."""

    linked: bool = False
    breaks: int = 0
    events: int = 0
    repeats: int = 0
    refused: int = 0
    error: str = ""
    ended: str = ""


class SourceStats(Struct):
    """A source that reads a feed. `source` is its address without credentials.

    `events` counts published messages, and repeats that were left out. `error` is empty while the source is connected.
    `ended` is the reason why the source has stopped.
    """

    source: str = ""
    connected: bool = False
    breaks: int = 0
    events: int = 0
    errors: int = 0
    lost: int = 0
    error: str = ""
    ended: str = ""


class ClusterStats(Struct):
    """The cluster. `broker` is its address without credentials; `error` is empty while the follower is connected."""

    broker: str = ""
    connected: bool = False
    current: bool = False
    lag_events: int = 0
    reconnects: int = 0
    lapped: int = 0
    renewals: int = 0
    published: int = 0
    repeats: int = 0
    pending: int = 0
    error: str = ""


class WorkerStats(Struct):
    """One worker. Only a worker that answered has the fields after `link_lag_events`."""

    worker: int = 0
    ready: bool = False
    answered: bool = False
    link_lag_events: int = 0
    uptime_s: float | UnsetType = UNSET
    streams: int | UnsetType = UNSET
    lagging: int | UnsetType = UNSET
    deliveries: int | UnsetType = UNSET
    bytes: int | UnsetType = UNSET
    writes: int | UnsetType = UNSET
    short_writes: int | UnsetType = UNSET
    encodes: int | UnsetType = UNSET


class ServerStats(Struct):
    """The body of /stats. The last five fields depend on the mode of the server."""

    version: str = ""
    engine: str = ""
    uptime_s: float = 0.0
    input_errors: int = 0
    gc_objects: int = 0
    held: dict[str, int] = {}
    ready: bool = False
    streams: int = 0
    forms: dict[str, int] = {}
    lagging: int = 0
    events: int = 0
    encodes: int = 0
    deliveries: int = 0
    bytes: int = 0
    writes: int = 0
    short_writes: int = 0
    log: LogStats = LogStats()
    dedup: DedupStats = DedupStats()
    store: StoreStats | None = None
    policy_actions: dict[str, int] = {}
    closes: dict[str, int] = {}
    resumes: dict[str, int] = {}
    topics_total: int = 0
    topics: list[TopicStats] = []
    slowest: list[SlowStream] = []
    sources: list[SourceStats] | UnsetType = UNSET
    cluster: ClusterStats | UnsetType = UNSET
    upstream: UpstreamStats | UnsetType = UNSET
    worker_restarts: int | UnsetType = UNSET
    workers: list[WorkerStats] | UnsetType = UNSET


def to_json(stats: ServerStats) -> bytes:
    """Encode the body of /stats as JSON, followed by a line feed."""
    return msgspec.json.encode(stats) + b"\n"


def from_json(data: bytes) -> ServerStats:
    """Decode the body of /stats. An unknown field is ignored, and an absent field has its default.

    Raises:
        msgspec.MsgspecError: the data is not JSON, or a field has the wrong type.
    """
    return msgspec.json.decode(data, type=ServerStats)


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of /stats. It requires the fields that a server always sends."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(ServerStats)}
    for each in document["$defs"].values():
        # A reader's defaults are not part of the schema. The schema of a field that may be UNSET has no default.
        each["required"] = [
            name for name, field in each["properties"].items() if field.pop("default", UNSET) is not UNSET
        ]
    return document
