"""The store: one SQLite file with the log's entries and the dedup keys, which survive the process.

Theory of operation. The file is in WAL mode and locked by one process. Every transaction is synced to the disk before
it commits (`synchronous=FULL`). Each write packs its entries into one row. This needs few statements (each one releases
Python's lock), and a million entries are read back in seconds. The checksum of a row also covers the epoch and the
time, and the sequences of the rows are contiguous. So relay detects damage that SQLite does not detect.

relay never replaces a file that it cannot trust with a new one. It raises an error that names the file if the file is
not a database, belongs to another program, is truncated or corrupt, lacks entries, or has lost its write-ahead log.

Owns the file and its format. Every call blocks on the disk; never call it on the event loop. Never uses the hub.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from relay.core.forms.framing import CHUNK_BYTES_MAX, wrap
from relay.core.log import Entry
from relay.errors import ConfigError

APPLICATION_ID = 0x72656C79
"""`rely` in the file's header; distinguishes the file from the files of other programs."""

FORMAT = 3
"""The current format. relay also reads format 2, whose entries have no `ttl`, and format 1, whose entries are frames
without chunks. A file may have entries of several formats."""

Key = tuple[str, str]
"""A dedup key and the id of its event."""

LOCK_S = 2.0
"""Time to wait for another process to release the file."""

PAGES_A_CHECKPOINT = 4096
"""Pages of the write-ahead log (16 MiB) before a checkpoint copies them into the database."""

_SCHEMA = """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
    CREATE TABLE entries (last INTEGER PRIMARY KEY, time_s REAL NOT NULL, crc INTEGER NOT NULL,
        packed BLOB NOT NULL) STRICT;
    CREATE TABLE seen (row INTEGER PRIMARY KEY, time_s REAL NOT NULL, crc INTEGER NOT NULL,
        packed BLOB NOT NULL) STRICT;
"""


class WriteBatch(NamedTuple):
    """The content of one write.

    Args:
        entries: the next entries, in order; their times are on the clock of the writing process.
        keys: dedup keys of some of the entries, with their ids.
        ahead_s: wall-clock time minus the time of that process's clock.
        newest_s: the current wall-clock time.
        upstream_position: position to resume from at the upstream after these entries; None keeps the stored one.
    """

    entries: Sequence[Entry]
    keys: Sequence[Key]
    ahead_s: float
    newest_s: float
    upstream_position: str | None = None


class Trim(NamedTuple):
    """The limits below which the file drops its content; times are wall-clock times.

    Args:
        tail: sequence of the oldest retained entry.
        evicted_s: upper bound of the time of the last entry before `tail`.
        keys_since_s: older dedup keys are dropped.
    """

    tail: int
    evicted_s: float
    keys_since_s: float


_pack = msgspec.msgpack.Encoder().encode
_entries = msgspec.msgpack.Decoder(list[Entry]).decode
_keys = msgspec.msgpack.Decoder(list[Key]).decode
T = TypeVar("T")


class Store:
    """An open store.

    Args:
        path: path of the file, which is created if neither it nor its write-ahead log exists.

    Raises:
        ConfigError: the file cannot be used; the message names it and states the reason.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with self._named():
            self._check_parts()
            self.is_new = not os.path.exists(path)
            if self.is_new:
                _create(path)
            self._db = _connect(path)
            try:
                self._claim()
            except BaseException:
                self._db.close()
                raise
            self.epoch = str(self._meta("epoch"))
            self.tail = int(self._meta("tail"))
            self.evicted_s = float(self._meta("evicted_s"))
            row = self._db.execute("SELECT value FROM meta WHERE name = 'upstream_position'").fetchone()
            self.upstream_position = None if row is None else str(row[0])

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Turn errors of the disk and of SQLite into a ConfigError that names the file."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            reason = "another process uses it" if "locked" in reason else reason
            raise ConfigError(f"data: {self.path}: {reason}") from None
        except (sqlite3.DatabaseError, msgspec.DecodeError, ValueError, TypeError) as error:
            raise ConfigError(f"data: {self.path}: {_damaged(str(error))}") from None

    def _check_parts(self) -> None:
        """Check the files before SQLite opens them; in some of these cases SQLite would start an empty database."""
        wal, folder = self.path + "-wal", os.path.dirname(os.path.abspath(self.path))
        if os.path.isdir(self.path) or self.path.endswith("/"):
            raise ConfigError(
                f"data: {self.path} is a directory; give the path of a file (it is created if missing), such as "
                + os.path.join(self.path, "relay.db")
            )
        if not os.path.isdir(folder):
            raise ConfigError(f"data: {self.path}: there is no directory {folder}; create it, or give another path")
        for each in (folder, self.path):
            if os.path.exists(each) and not os.access(each, os.W_OK):
                raise ConfigError(
                    f"data: {self.path}: user {os.geteuid()}, as which relay runs, cannot write to {each}; change its "
                    "owner or its mode, or give another path"
                )
        if not os.path.exists(self.path):
            if os.path.exists(wal):
                raise ConfigError(
                    f"data: {self.path} is missing, but {wal} exists; restore the file, or move that away"
                )
        elif not os.path.isfile(self.path):
            raise ConfigError(f"data: {self.path} is not a regular file; give another path (it is created if missing)")
        elif not os.path.getsize(self.path):
            raise ConfigError(f"data: {self.path} is empty, so it is not a file of relay; restore or remove it")
        self._has_wal = os.path.exists(wal)

    def _claim(self) -> None:
        db = self._db
        if _pragma(db, "application_id") != APPLICATION_ID:
            raise ConfigError(f"data: {self.path} is not a file of relay, but of another program; give another path")
        if (file_format := _pragma(db, "user_version")) not in range(1, FORMAT + 1):
            raise ConfigError(f"data: {self.path} has format {file_format}; this version of relay reads 1 to {FORMAT}")
        if self._meta("open") and not self._has_wal:
            raise ConfigError(
                f"data: {self.path}-wal is missing, and the newest events with it; restore it beside the file"
            )
        # The checkpoint puts the mark into the database itself, so that it survives the loss of the write-ahead log.
        db.execute("UPDATE meta SET value = 1 WHERE name = 'open'")
        db.execute(f"PRAGMA user_version = {FORMAT}")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _meta(self, name: str) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise ConfigError(f"data: {self.path}: {_damaged(f'{name} is missing')}")
        return row[0]

    def check(self, epoch: str, head: int) -> None:
        """Check that the file and a log with this epoch and head have the same end.

        Raises:
            ConfigError: the file ends elsewhere.
        """
        with self._named():
            last = self._db.execute("SELECT max(last) FROM entries").fetchone()[0]
        following = self.tail if last is None else last + 1
        if (self.epoch, following) != (epoch, head):
            raise ConfigError(f"data: {self.path} ends at {self.epoch}-{following}, but the log ends at {epoch}-{head}")

    def entries(self) -> Iterator[tuple[float, list[Entry]]]:
        """Yield the retained entries row by row, in order.

        The number of each row is the wall-clock time minus the time on the clock of its entries.

        Raises:
            ConfigError: the file is damaged.
        """
        following = None
        for last, ahead_s, row in self._rows("SELECT last, time_s, crc, packed FROM entries ORDER BY last", _entries):
            first = row[0].sequence if row else 0
            if not row or row[-1].sequence != last or last - first != len(row) - 1 or first != (following or first):
                raise ConfigError(f"data: {self.path}: {_damaged(f'entries before {last} are missing')}")
            if following is None and first > self.tail:
                raise ConfigError(f"data: {self.path}: {_damaged(f'entries from {self.tail} on are missing')}")
            following = last + 1
            yield ahead_s, row if _is_chunk(row[0].frame) else [each._replace(frame=wrap(each.frame)) for each in row]
        if following is not None and following < self.tail:
            raise ConfigError(f"data: {self.path}: {_damaged(f'entries from {following} on are missing')}")

    def dedup_keys(self) -> Iterator[tuple[float, list[Key]]]:
        """Yield the dedup keys row by row, oldest first, each row with its wall-clock time.

        Raises:
            ConfigError: the file is damaged.
        """
        for _, time_s, row in self._rows("SELECT row, time_s, crc, packed FROM seen ORDER BY row", _keys):
            yield time_s, row

    def _rows(self, query: str, unpack: Callable[[bytes], list[T]]) -> Iterator[tuple[int, float, list[T]]]:
        with self._named():
            for number, time_s, crc, packed in self._db.execute(query):
                if self._checksum(time_s, packed) != crc:
                    raise ConfigError(f"data: {self.path}: {_damaged(f'row {number} does not match its checksum')}")
                yield number, time_s, unpack(packed)

    def _checksum(self, time_s: float, packed: bytes) -> int:
        return zlib.crc32(packed, zlib.crc32(f"{self.epoch} {time_s!r}".encode()))

    def write(self, batch: WriteBatch, trim: Trim | None) -> None:
        """Write a batch and drop old content, in one transaction.

        Args:
            batch: may be empty.
            trim: limits of the content to drop; None drops nothing.

        Raises:
            sqlite3.Error: the disk is full or fails; the file is unchanged.
        """
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            if batch.entries:
                packed = _pack(batch.entries)
                row = (batch.entries[-1].sequence, batch.ahead_s, self._checksum(batch.ahead_s, packed), packed)
                db.execute("INSERT INTO entries (last, time_s, crc, packed) VALUES (?, ?, ?, ?)", row)
            if batch.keys:
                packed = _pack(batch.keys)
                seen = (batch.newest_s, self._checksum(batch.newest_s, packed), packed)
                db.execute("INSERT INTO seen (time_s, crc, packed) VALUES (?, ?, ?)", seen)
            if batch.upstream_position is not None:
                position = ("upstream_position", batch.upstream_position)
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", position)
            if trim is not None:
                db.execute("DELETE FROM entries WHERE last < ?", (trim.tail,))
                db.execute("DELETE FROM seen WHERE time_s < ?", (trim.keys_since_s,))
                db.execute("UPDATE meta SET value = ? WHERE name = 'tail'", (trim.tail,))
                db.execute("UPDATE meta SET value = ? WHERE name = 'evicted_s'", (trim.evicted_s,))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        if trim is not None:
            self.tail, self.evicted_s = trim.tail, trim.evicted_s

    def close(self) -> None:
        """Checkpoint the write-ahead log and close the file.

        Raises:
            sqlite3.Error: the disk is full or fails; the write-ahead log keeps all committed writes.
        """
        try:
            self._db.execute("UPDATE meta SET value = 0 WHERE name = 'open'")
        finally:
            self._db.close()


def _is_chunk(stored: bytes) -> bool:
    """Return whether an entry is a frame in a chunk. A frame itself has no CR."""
    return b"\r" in stored[:CHUNK_BYTES_MAX]


def _create(path: str) -> None:
    """Create the file completely under another name, then rename it; only its owner may read it."""
    temporary = f"{path}.{secrets.token_hex(4)}.new"
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        db = _connect(temporary)
        db.executescript(
            f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; COMMIT"
        )
        meta = {"epoch": secrets.token_hex(4), "tail": 1, "evicted_s": 0.0, "open": 0}
        db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        db.close()
        os.rename(temporary, path)
    except BaseException:
        for each in (temporary, f"{temporary}-wal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(each)
        raise
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _connect(path: str) -> sqlite3.Connection:
    # One thread at a time uses the connection, but not always the same thread.
    db = sqlite3.connect(path, timeout=LOCK_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {PAGES_A_CHECKPOINT}")
        db.execute(f"PRAGMA journal_size_limit = {2 * PAGES_A_CHECKPOINT * 4096}")
    except BaseException:
        db.close()
        raise
    return db


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _damaged(reason: str) -> str:
    return f"the file is damaged ({reason}); restore a copy of it, or move it away to start with an empty history"
