"""The log of a cluster in Redis or Valkey: a stream, and the script `log.lua`, which appends to it.

Owns the keys, the commands and the two connections. Never logs, never waits to try again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from relay.brokers.credentials import TlsFiles
from relay.brokers.redis_client import RedisClient, RedisScript
from relay.cluster.broker import (
    READ_ENTRIES_MAX,
    BrokerReport,
    EntriesReplacedError,
    LogChangedError,
    LogEntry,
    LogPosition,
    Request,
    Result,
)
from relay.config.broker_address import RedisAddress
from relay.errors import BrokerError, EndedError

READ_ENTRIES_FIRST = 16
"""Entries in the first read; each further read has at most twice as many."""

READ_BYTES = 4 * 1024 * 1024
"""Target size of a read. XREAD has a limit of entries, but none of bytes.

A read requests as many entries as would have this size, if they were as large as those of the read before. It returns
more bytes where large entries follow small ones: at most `READ_ENTRIES_MAX` entries of `event-bytes-max`, and no more
than the broker retains.
"""

_SCRIPT = RedisScript("relay.cluster", "log.lua")


class RedisBroker:
    """The log of one cluster.

    Args:
        address: the server.
        name: the name of the cluster, which is part of all keys.
        node: identifies this process as a publisher: 8 hexadecimal digits.
        dedup_window_s: lifetime of dedup keys.
        password: returns the password; called before each connection.
        tls: files for TLS.
    """

    def __init__(
        self,
        address: RedisAddress,
        name: str,
        node: str,
        dedup_window_s: float,
        password: Callable[[], str],
        tls: TlsFiles,
    ) -> None:
        self._address = address
        self._node = node
        self._window_ms = str(max(1, round(1000 * dedup_window_s)))
        self._password = password
        self._tls = tls
        # All keys share a hash tag, so that one server of a Redis Cluster has all of them.
        prefix = f"{{{name}}}:"
        self._log = prefix + "log"
        self._state = prefix + "state"
        self._keys = (self._log, self._state, prefix + "ended", prefix + "dedup:", f"{prefix}call:{node}")
        self._follower: RedisClient | None = None
        self._publisher: RedisClient | None = None
        self._read_entries = READ_ENTRIES_FIRST

    # The follower

    async def open(self, epoch: str) -> LogPosition:
        """Connect the follower. If the broker has no log, create one with this epoch."""
        await self.close_follower()
        self._follower = RedisClient(self._address, self._password, self._tls)
        self._read_entries = READ_ENTRIES_FIRST
        return _position(await self._follower.run(_SCRIPT, self._keys, "open", epoch))

    async def renew(self, known: str, epoch: str) -> LogPosition:
        """Replace the epoch `known` by `epoch`, unless another node has replaced it before."""
        return _position(await self._following.run(_SCRIPT, self._keys, "renew", known, epoch))

    async def position(self) -> LogPosition:
        """Return epoch, head and mark of the log."""
        epoch, head, stamp = await self._following.call("HMGET", self._state, "epoch", "head", "stamp")
        if epoch is None:
            raise LogChangedError("the broker has no log any more")
        return LogPosition(epoch.decode(), int(head) + 1, stamp)

    async def read(self, after: int, count_max: int, epoch: str, mark: bytes, wait_s: float) -> Sequence[LogEntry]:
        """Return the next entries, in order; wait up to `wait_s` for the first one."""
        count, block_ms = min(count_max, self._read_entries), max(1, round(1000 * wait_s))
        reply = await self._following.call(
            "XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", self._log, f"{after}-0", wait_s=wait_s
        )
        if not reply:
            return ()
        entries = _entries(reply[0][1], after, epoch.encode(), mark)
        size = sum(len(entry.payload) for entry in entries) // len(entries) + 1
        self._read_entries = max(1, min(READ_ENTRIES_MAX, 2 * self._read_entries, READ_BYTES // size))
        return entries

    async def trim(self, before: int) -> None:
        """Remove the nodes of the stream that contain only entries before a sequence."""
        await self._following.call("XTRIM", self._log, "MINID", "~", f"{before}-0")

    async def close_follower(self) -> None:
        """Close the follower's connection."""
        client, self._follower = self._follower, None
        if client is not None:
            await client.close()

    @property
    def _following(self) -> RedisClient:
        assert self._follower is not None, "the follower is not connected"
        return self._follower

    # The publisher

    async def connect(self) -> None:
        """Connect the publisher."""
        await self.close_publisher()
        self._publisher = RedisClient(self._address, self._password, self._tls)
        await self._publisher.call("PING")

    async def publish(self, call: int, requests: Sequence[Request]) -> tuple[str, list[Result]]:
        """Publish requests in order."""
        arguments: list[str | bytes] = []
        for request in requests:
            flags = ""
            for topic, payload, id, dedup, ends in request:
                if ends:
                    flags += "x"
                if dedup is None:
                    arguments += (flags, topic, payload)
                else:
                    arguments += (flags + "d", topic, payload, dedup, id or "")
                flags = "+"
        reply = await self._publishing.run(
            _SCRIPT, self._keys, "publish", secrets.token_hex(4), self._node, str(call), self._window_ms, *arguments
        )
        epoch, *results = reply.decode().split("\n")
        return epoch, [_result(each) for each in results]

    async def head(self) -> int:
        """Return the sequence of the next entry, on the publisher's connection."""
        return int(await self._publishing.call("HGET", self._state, "head") or 0) + 1

    async def inspect(self) -> BrokerReport:
        """Return the version and the settings."""
        found = await self._publishing.call("INFO")
        return BrokerReport(
            f"{found.get('server_name', 'redis')} {found.get('redis_version', 'of unknown version')}",
            {
                "maxmemory-policy": str(found.get("maxmemory_policy", "unknown")),
                "appendonly": "yes" if found.get("aof_enabled") else "no",
                "replicas": str(found.get("connected_slaves", 0)),
            },
        )

    async def close_publisher(self) -> None:
        """Close the publisher's connection."""
        client, self._publisher = self._publisher, None
        if client is not None:
            await client.close()

    async def close(self) -> None:
        """Close all connections."""
        await self.close_follower()
        await self.close_publisher()

    @property
    def _publishing(self) -> RedisClient:
        assert self._publisher is not None, "the publisher is not connected"
        return self._publisher


def _position(reply: list[Any]) -> LogPosition:
    epoch, head, stamp, tail, tail_ms, time_ms, ended = reply
    topics = [topic.decode() for topic in ended]
    return LogPosition(epoch.decode(), int(head) + 1, stamp, int(tail), int(tail_ms), int(time_ms), topics)


def _result(text: str) -> Result:
    if text == "!":
        return EndedError()
    return text[1:] if text.startswith("=") else int(text)


def _entries(rows: list[Any], after: int, epoch: bytes, mark: bytes) -> list[LogEntry]:
    """Check that entries of the stream continue the log after an entry, and return them."""
    entries = []
    stamp, time_ms = b"", 0
    for place, fields in rows:
        after += 1
        if place != b"%d-0" % after:
            raise LogChangedError(f"entry {after} is missing: the broker has {place.decode()} instead")
        if len(fields) == 4:
            form, payload, _, stamp = fields
            continues = stamp == mark
        elif len(fields) == 6:
            form, payload, _, stamp, _, previous = fields
            continues = previous == b"%b %b" % (epoch, mark)
        else:
            raise BrokerError(f"entry {after} was not written by relay's script")
        if epoch and not continues:
            raise EntriesReplacedError(f"entry {after} does not continue the log")
        if stamp != mark or not time_ms:
            time_ms = int(stamp.partition(b"-")[0])
        mark = stamp
        entries.append(LogEntry(after, time_ms, form, payload, mark))
    return entries
