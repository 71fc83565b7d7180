"""The store: the log's entries and the dedup keys in one SQLite file, so that they outlive the process.

Theory of operation. The file is in WAL mode, held by one process, and every transaction is synced to the disk before it
counts (`synchronous=FULL`). What one write brings is one row, packed: few statements, since Python's lock changes hands
at each, and a million entries are read back in seconds. A row has a checksum, over the epoch and the time too, and the
rows follow each other without a hole; so damage that SQLite does not see is seen here.

A file that cannot be trusted is an error that names it, never a new beginning: what is no database, what is another
program's, what is cut, flipped or has a hole, and a file whose write-ahead log was taken away.

Owns the file and its form. Every call waits for the disk, so none belongs on the event loop; knows nothing of the hub.
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

from relay.core.log import Entry
from relay.errors import ConfigError

APPLICATION_ID = 0x72656C79
"""`rely`, in the file's header: what tells it from another program's."""

FORMAT = 1

Key = tuple[str, str]
"""A dedup key, and the id that its event was published under."""

LOCK_S = 2.0
"""How long another process may take to let go of the file."""

PAGES_A_CHECKPOINT = 4096
"""Pages of the write-ahead log, 16 MiB, before they are written to their places."""

_SCHEMA = """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
    CREATE TABLE entries (last INTEGER PRIMARY KEY, time_s REAL NOT NULL, crc INTEGER NOT NULL,
        packed BLOB NOT NULL) STRICT;
    CREATE TABLE seen (row INTEGER PRIMARY KEY, time_s REAL NOT NULL, crc INTEGER NOT NULL,
        packed BLOB NOT NULL) STRICT;
"""


class WriteBatch(NamedTuple):
    """What one write brings.

    Args:
        entries: the next ones, in order; times are those of the process that writes.
        keys: dedup keys of some of them, with the ids that these were published under.
        ahead_s: what the wall's time is ahead of that process'.
        newest_s: the wall's time.
        upstream_position: where to resume at the upstream after these entries; None leaves it as it is.
    """

    entries: Sequence[Entry]
    keys: Sequence[Key]
    ahead_s: float
    newest_s: float
    upstream_position: str | None = None


class Trim(NamedTuple):
    """What the file need not keep any longer; times are the wall's.

    Args:
        tail: sequence of the oldest entry that is retained.
        evicted_s: time of the last entry before it, as far as that is known.
        keys_since_s: dedup keys before this time are of no use.
    """

    tail: int
    evicted_s: float
    keys_since_s: float


_pack = msgspec.msgpack.Encoder().encode
_entries = msgspec.msgpack.Decoder(list[Entry]).decode
_keys = msgspec.msgpack.Decoder(list[Key]).decode
T = TypeVar("T")


class Store:
    """An open file.

    Args:
        path: of the file; made if neither it nor a write-ahead log of it is there.

    Raises:
        ConfigError: it cannot be used; the text names it and says what is wrong.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with self._named():
            self._check_parts()
            self.is_new = not os.path.exists(path)
            if self.is_new:
                _make(path)
            self._db = _connect(path)
            try:
                self._take_hold()
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
        """Make an error that names the file of whatever goes wrong."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            reason = "another process uses it" if "locked" in reason else reason
            raise ConfigError(f"data: {self.path}: {reason}") from None
        except (sqlite3.DatabaseError, msgspec.DecodeError, ValueError, TypeError) as error:
            raise ConfigError(f"data: {self.path}: {_damaged(str(error))}") from None

    def _check_parts(self) -> None:
        """Look at the files before SQLite does, which would begin anew over some of what is wrong with them."""
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
                    f"data: {self.path}: user {os.geteuid()}, whom relay runs as, cannot write to {each}; change its "
                    "owner or its mode, or give another path"
                )
        if not os.path.exists(self.path):
            if os.path.exists(wal):
                raise ConfigError(f"data: {self.path} is missing, but {wal} is there: put it back, or move that away")
        elif not os.path.isfile(self.path):
            raise ConfigError(f"data: {self.path} is not a regular file; give another path (it is created if missing)")
        elif not os.path.getsize(self.path):
            raise ConfigError(f"data: {self.path} is empty, which no file of relay is: restore it, or remove it")
        self._has_wal = os.path.exists(wal)

    def _take_hold(self) -> None:
        db = self._db
        if _pragma(db, "application_id") != APPLICATION_ID:
            raise ConfigError(f"data: {self.path} is another program's file")
        if (form := _pragma(db, "user_version")) != FORMAT:
            raise ConfigError(f"data: {self.path} has format {form}; this relay reads {FORMAT}")
        if self._meta("open") and not self._has_wal:
            raise ConfigError(
                f"data: {self.path}-wal is missing, and with it the newest events: put it back beside the file"
            )
        # Written to its place at once, so that the mark is there whatever becomes of the write-ahead log.
        db.execute("UPDATE meta SET value = 1 WHERE name = 'open'")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _meta(self, name: str) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise ConfigError(f"data: {self.path}: {_damaged(f'it has no {name}')}")
        return row[0]

    def check(self, epoch: str, head: int) -> None:
        """Check that this is the file of a log that has come so far.

        Raises:
            ConfigError: it is not.
        """
        with self._named():
            last = self._db.execute("SELECT max(last) FROM entries").fetchone()[0]
        following = self.tail if last is None else last + 1
        if (self.epoch, following) != (epoch, head):
            raise ConfigError(f"data: {self.path} ends at {self.epoch}-{following}, and the log at {epoch}-{head}")

    def entries(self) -> Iterator[tuple[float, list[Entry]]]:
        """Yield what is retained, in order: rows, with what the wall's time is ahead of their entries'.

        Raises:
            ConfigError: it is damaged.
        """
        following = None
        for last, ahead_s, row in self._rows("SELECT last, time_s, crc, packed FROM entries ORDER BY last", _entries):
            first = row[0].sequence if row else 0
            if not row or row[-1].sequence != last or last - first != len(row) - 1 or first != (following or first):
                raise ConfigError(f"data: {self.path}: {_damaged(f'entries before {last} are missing')}")
            if following is None and first > self.tail:
                raise ConfigError(f"data: {self.path}: {_damaged(f'entries from {self.tail} on are missing')}")
            following = last + 1
            yield ahead_s, row
        if following is not None and following < self.tail:
            raise ConfigError(f"data: {self.path}: {_damaged(f'entries from {following} on are missing')}")

    def dedup_keys(self) -> Iterator[tuple[float, list[Key]]]:
        """Yield the dedup keys, oldest first: rows, with the wall's time of each.

        Raises:
            ConfigError: they are damaged.
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
        """Put a batch on the disk, all or nothing, and let go of what is too old.

        Args:
            batch: maybe empty.
            trim: what to let go of, now and then.

        Raises:
            sqlite3.Error: nothing has changed; the disk is full, or fails.
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
        """Write everything to its place and let go of the file.

        Raises:
            sqlite3.Error: the disk is full, or fails; the write-ahead log keeps what was written.
        """
        try:
            self._db.execute("UPDATE meta SET value = 0 WHERE name = 'open'")
        finally:
            self._db.close()


def _make(path: str) -> None:
    """Make a file that is whole as soon as it has its name; only its owner may read it."""
    beside = f"{path}.{secrets.token_hex(4)}.new"
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        db = _connect(beside)
        db.executescript(
            f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; COMMIT"
        )
        meta = {"epoch": secrets.token_hex(4), "tail": 1, "evicted_s": 0.0, "open": 0}
        db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        db.close()
        os.rename(beside, path)
    except BaseException:
        for each in (beside, f"{beside}-wal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(each)
        raise
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _connect(path: str) -> sqlite3.Connection:
    # Used by one thread at a time, though not always by the same.
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


def _damaged(how: str) -> str:
    return f"it is damaged ({how}): restore a copy of it, or move it away to begin anew"
