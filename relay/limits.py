"""The limits that `relay_limited_total` counts.

Owns their names. A limit with a setting has the name of the setting. `docs/reference/limits.md` documents each of them.
Never enforces a limit. The names have a separate module, because both the HTTP parsers and the core use them.
"""

from __future__ import annotations

from enum import StrEnum


class Limit(StrEnum):
    """The name of a limit, which is the value of the label `limit`. The order is that of the metric's samples."""

    ACCEPT_RATE = "accept-rate"
    """Connections accepted per second."""
    HALF_OPEN_MAX = "half-open-max"
    """Connections without a complete request head."""
    DESCRIPTORS = "descriptors"
    """File descriptors of the process (`ulimit -Hn`); no setting."""
    HEAD_BYTES_MAX = "head-bytes-max"
    """Bytes of a request head."""
    HEAD_TIMEOUT = "head-timeout"
    """Time to send a request head."""
    BODY_BYTES_MAX = "body-bytes-max"
    """Bytes of a request body."""
    BODY_RATIO = "body-ratio"
    """Decoded bytes for each byte of a compressed body; no setting."""
    BODY_TIME = "body-time"
    """Time to send a request body; no setting."""
    LINE_TIMEOUT = "line-timeout"
    """Time without a line in an upload, an open publish request."""
    ANSWER_TIME = "answer-time"
    """Time to read the response; no setting."""
    BATCH_EVENTS_MAX = "batch-events-max"
    """Events of one publish request."""
    PUBLISH_RATE = "publish-rate"
    """Events per second of one token or subject."""
    SIGNAL_RATE = "signal-rate"
    """Signals per second of one token or subject."""
    TICKETS = "tickets"
    """Valid tickets; no setting."""
    H2_STREAMS_MAX = "h2-streams-max"
    """Concurrent requests of one HTTP/2 connection."""
    H2_FRAMES = "h2-frames"
    """HTTP/2 frames without progress, of one connection; no setting."""
    STREAMS_MAX = "streams-max"
    """Open streams."""
    STREAMS_PER_ADDRESS_MAX = "streams-per-address-max"
    """Open streams of one address."""
    STREAMS_PER_SUBJECT_MAX = "streams-per-subject-max"
    """Open streams of one JWT subject."""
    STREAMS_PER_TOPIC_MAX = "streams-per-topic-max"
    """Open streams of one topic or pattern."""
    TOPICS_PER_STREAM_MAX = "topics-per-stream-max"
    """Topics and patterns of one stream."""
    PATTERNS_PER_STREAM_MAX = "patterns-per-stream-max"
    """Patterns of one stream."""
