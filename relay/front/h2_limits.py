"""The limits of one HTTP/2 connection: frames without progress, the size of heads, and the settings of the server.

Owns the budget of a connection. Never closes a connection: it returns the limit that a frame exceeds.

Theory of operation. The budget is a token bucket. These frames cost one token each: SETTINGS, PING, PRIORITY,
RST_STREAM, CONTINUATION, GOAWAY, unknown frames, DATA without content and without END_STREAM, and WINDOW_UPDATE. A
rejected request costs one too. A client opens windows as it receives data, so each DATA frame sent allows WINDOW_UPDATE
frames without cost: one of the stream and one of the connection for each KiB begun. A DATA frame that a small window
has truncated allows none, because a client can use small windows to cause many frames with little content
(CVE-2019-9511).
"""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings

from relay.config.model import Config
from relay.front.rate import Rates
from relay.http.h2_frames import END_STREAM, Frame, FrameKind
from relay.limits import Limit

FRAMES_PER_S = 100
"""Refill of the budget of frames without progress. A browser sends a few of them for each stream."""
FRAMES_BURST_S = 10
"""Size of the budget, in seconds of its refill: a page may close hundreds of streams at once."""
UPDATES_MAX = 10_000
"""Maximum number of WINDOW_UPDATE frames without cost: those for a window of 5 MB. Browsers have larger windows, and
open them in larger steps."""
UPDATE_BYTES_MIN = 1024
"""Smallest step in which clients open a window; Go's client uses 4 KiB. A DATA frame that a window truncates to fewer
bytes allows no WINDOW_UPDATE."""


class Http2Limits:
    """The limits of one connection.

    Args:
        head_bytes_max: largest head of a request, encoded, in all its frames.
    """

    __slots__ = ("_block_bytes", "_budget", "_head_bytes_max", "_updates")

    def __init__(self, head_bytes_max: int) -> None:
        self._head_bytes_max = head_bytes_max
        self._budget = Rates(FRAMES_PER_S, FRAMES_BURST_S)
        self._updates = 0
        self._block_bytes = 0

    def exceeded(self, frame: Frame, now_s: float) -> Limit | None:
        """Count a received frame, and return the limit that it exceeds."""
        if frame.kind in (FrameKind.HEADERS, FrameKind.CONTINUATION):
            self._block_bytes = frame.length + (self._block_bytes if frame.kind == FrameKind.CONTINUATION else 0)
            if self._block_bytes > self._head_bytes_max:
                return Limit.HEAD_BYTES_MAX
        if frame.kind == FrameKind.HEADERS:
            return None
        if frame.kind == FrameKind.DATA and (frame.length or frame.flags & END_STREAM):
            return None
        if frame.kind == FrameKind.WINDOW_UPDATE and self._updates:
            self._updates -= 1
            return None
        return self.spend(now_s)

    def spend(self, now_s: float) -> Limit | None:
        """Take one token, and return the limit if there is none."""
        return Limit.H2_FRAMES if self._budget.take("", 1, now_s) else None

    def sent(self, size: int, *, cut: bool) -> None:
        """Count a DATA frame sent.

        Args:
            size: bytes of its content.
            cut: whether a window or the largest frame has truncated the content.
        """
        if not cut or size >= UPDATE_BYTES_MIN:
            self._updates = min(self._updates + 2 * (1 + size // UPDATE_BYTES_MIN), UPDATES_MAX)


def begin(config: Config) -> H2Connection:
    """Return the state of a connection, with the server's settings queued."""
    # Invalid fields reset their stream (`relay.http.h2_exchange`). The library would close the whole connection.
    connection = H2Connection(H2Configuration(client_side=False, validate_inbound_headers=False))
    settings = {
        SettingCodes.MAX_CONCURRENT_STREAMS: config.h2_streams_max,
        SettingCodes.MAX_HEADER_LIST_SIZE: config.head_bytes_max,
    }
    connection.local_settings = Settings(client=False, initial_values=settings)
    connection.initiate_connection()
    # relay refuses only the request over the limit, and the client may retry. The library would close the connection.
    settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 2 * config.h2_streams_max + 1
    connection.local_settings = Settings(client=False, initial_values=settings)
    # The front responds 431 to a head between the two limits. A larger head closes the connection.
    connection.decoder.max_header_list_size = 2 * config.head_bytes_max
    return connection
