"""A row of the file: the checksum rejects any bytes. With a valid checksum, they are entries or a damaged file."""

from __future__ import annotations

import sqlite3
import tempfile
import zlib
from pathlib import Path

import msgspec

from relay.core.log import Entry
from relay.errors import ConfigError
from relay.store.file import Store

WORDS = (
    msgspec.msgpack.encode([Entry(1, 0.0, "a", None, None, b"data: x\n\n")]),
    msgspec.msgpack.encode([Entry(1, 0.0, "a", "id", "k", b""), Entry(2, 0.0, "a", None, None, b"x")]),
    b"\x91",
    b"\x96\x01\x00\xa1a\xc0\xc0\xc4\x01x",
    b"\xc0",
    b"\xff",
)


def check(data: bytes) -> None:
    """Check one input: the last sequence of the row, and the bytes of the row."""
    last, packed = int.from_bytes(data[:1]), data[1:]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = str(Path(folder, "relay.db"))
        store = Store(path)
        crc = zlib.crc32(packed, zlib.crc32(f"{store.epoch} {0.0!r}".encode()))
        store.close()
        for right in (True, False):
            db = sqlite3.connect(path)
            db.execute("REPLACE INTO entries VALUES (?, 0.0, ?, ?)", (last, crc if right else crc ^ 1, packed))
            db.commit()
            db.close()
            store = Store(path)
            try:
                for _, row in store.entries():
                    assert right
                    assert [entry.sequence for entry in row] == list(range(last - len(row) + 1, last + 1))
            except ConfigError as error:
                assert "damaged" in str(error)
            finally:
                store.close()
