"""Tests of relay.store.file: writes survive a crash, and an untrustworthy file raises an error that names it."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from relay.core.forms.framing import wrap
from relay.core.log import Entry
from relay.errors import ConfigError
from relay.store.file import APPLICATION_ID, Key, Store, Trim, WriteBatch


def entry(sequence: int, **other: str) -> Entry:
    return Entry(sequence, float(sequence), other.get("topic", "a"), other.get("id"), other.get("key"), b"data: x\n\n")


def batch(*sequences: int, keys: list[Key] | None = None, newest_s: float = 0.0) -> WriteBatch:
    return WriteBatch([entry(sequence) for sequence in sequences], keys or [], 1000.0, newest_s)


def sequences(store: Store) -> list[list[int]]:
    return [[each.sequence for each in row] for _, row in store.entries()]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "relay.db")


def filled(path: str) -> Store:
    store = Store(path)
    store.write(batch(1, 2), None)
    store.write(batch(3), None)
    store.write(batch(4, 5, 6), None)
    return store


def crash(path: str) -> str:
    """Return a copy in the state after a crash: the write-ahead log is not checkpointed."""
    copied = path + ".copy"
    for part in ("", "-wal"):
        shutil.copy(path + part, copied + part)
    return copied


def test_a_new_file_is_complete_private_and_leaves_no_other_file(path: str) -> None:
    store = Store(path)
    assert store.is_new
    assert (len(store.epoch), store.tail, sequences(store)) == (8, 1, [])
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    store.close()
    assert os.listdir(os.path.dirname(path)) == ["relay.db"]


def test_entries_are_read_back_completely_in_order_with_their_times(path: str) -> None:
    store, epoch = Store(path), ""
    entries = [
        Entry(1, 1.5, "a", None, None, wrap(b"data: 1\n\n")),
        Entry(2, 2.5, "a.b", "own", None, wrap(b"data: \xc3\xa9\n\n")),
        Entry(3, 2.5, "ü", None, "key", wrap(b"\x00")),
    ]
    store.write(WriteBatch(entries, [("k", "own")], 1000.0, 1002.5), None)
    epoch = store.epoch
    store.close()
    store = Store(path)
    assert not store.is_new
    assert store.epoch == epoch
    assert list(store.entries()) == [(1000.0, entries)]
    assert list(store.dedup_keys()) == [(1002.5, [("k", "own")])]
    store.close()


def test_a_file_of_format_1_is_read_and_continued(path: str) -> None:
    """The previous version stored frames without chunks."""
    store = Store(path)
    frames = [b"data: 1\n\n", b"event: d\nid: 2\ndata: a\ndata: b\n\n"]
    plain = [Entry(1, 1.0, "a", None, None, frames[0]), Entry(2, 1.0, "a", "2", None, frames[1])]
    store.write(WriteBatch(plain, [], 0.0, 1.0), None)
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 1")
    store = Store(path)
    store.write(WriteBatch([Entry(3, 2.0, "a", None, None, wrap(b"data: 3\n\n"))], [], 0.0, 2.0), None)
    store.close()
    store = Store(path)
    stored = [entry.frame for _, row in store.entries() for entry in row]
    assert stored == [wrap(frame) for frame in (*frames, b"data: 3\n\n")]
    store.close()


def test_written_entries_survive_a_crash(path: str) -> None:
    store = filled(path)
    copied = Store(crash(path))
    assert sequences(copied) == [[1, 2], [3], [4, 5, 6]]
    copied.close()
    store.close()


def test_evicted_entries_are_deleted_row_by_row_and_the_head_is_kept(path: str) -> None:
    store = filled(path)
    store.write(batch(), Trim(tail=5, evicted_s=77.0, keys_since_s=0.0))
    assert sequences(store) == [[4, 5, 6]]
    store.write(batch(), Trim(tail=7, evicted_s=78.0, keys_since_s=0.0))
    store.close()
    store = Store(path)
    assert (sequences(store), store.tail, store.evicted_s) == ([], 7, 78.0)
    store.close()


def test_dedup_keys_expire_by_their_own_time(path: str) -> None:
    store = Store(path)
    store.write(batch(1, keys=[("a", "e-1")], newest_s=100.0), None)
    store.write(batch(2, keys=[("b", "e-2")], newest_s=200.0), None)
    store.write(batch(), Trim(tail=3, evicted_s=0.0, keys_since_s=150.0))
    assert [row for _, row in store.dedup_keys()] == [[("b", "e-2")]]
    store.close()


def test_a_write_to_a_full_disk_changes_nothing_and_succeeds_when_there_is_space(path: str) -> None:
    store = filled(path)
    store._db.execute("PRAGMA max_page_count = 12")
    large = WriteBatch([Entry(7, 0.0, "a", None, None, bytes(100_000))], [("k", "e-7")], 0.0, 0.0)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.write(large, None)
    assert sequences(store) == [[1, 2], [3], [4, 5, 6]]
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.write(large, None)
    assert sequences(store)[-1] == [7]
    assert [row for _, row in store.dedup_keys()] == [[("k", "e-7")]]
    store.close()


def test_a_file_in_use_is_rejected(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.store.file.LOCK_S", 0.0)
    store = Store(path)
    with pytest.raises(ConfigError, match=r"^data: .*relay\.db: another process uses it$"):
        Store(path)
    store.write(batch(1), None)
    store.close()


def test_the_error_for_a_missing_folder_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data: .*: there is no directory .*/nowhere; create it"):
        Store(str(tmp_path / "nowhere" / "relay.db"))


def test_the_error_for_an_unwritable_file_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(str(tmp_path / "relay.db")).close()
    for locked in (tmp_path, tmp_path / "relay.db"):
        # Root can write to any file, so the test replaces the system's answer.
        monkeypatch.setattr(os, "access", lambda path, mode, locked=locked: str(path) != str(locked))
        with pytest.raises(ConfigError, match=rf"^data: .*: user \d+, .* cannot write to {re.escape(str(locked))}; "):
            Store(str(tmp_path / "relay.db"))


def test_a_file_of_another_program_is_rejected_and_unchanged(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"Dear diary, today I was given to a relay as its data.\n" * 100)
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    other = tmp_path / "other"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE mine (a)")
    db.commit()
    db.close()
    newer = tmp_path / "newer"
    Store(str(newer)).close()
    db = sqlite3.connect(newer)
    db.execute("PRAGMA user_version = 99")
    db.close()
    said = {
        text: "file is not a database",
        empty: "is empty",
        other: "is not a file of relay",
        newer: "has format 99; this version of relay reads 1 to 3",
        Path("/dev/null"): "is not a regular file",
        tmp_path: r"is a directory; give the path of a file \(it is created if missing\), such as .*/relay\.db$",
    }
    for each, reason in said.items():
        before = each.read_bytes() if each.is_file() else b""
        with pytest.raises(ConfigError, match=reason) as caught:
            Store(str(each))
        assert str(each) in str(caught.value)
        if each in (text, empty):
            assert each.read_bytes() == before


def test_a_missing_write_ahead_log_or_file_is_an_error(path: str) -> None:
    store = filled(path)
    copied = crash(path)
    store.close()
    os.rename(f"{copied}-wal", f"{copied}.aside")
    with pytest.raises(ConfigError, match=r"-wal is missing"):
        Store(copied)
    os.rename(f"{copied}.aside", f"{copied}-wal")
    os.rename(copied, f"{copied}.aside")
    with pytest.raises(ConfigError, match=r"copy is missing, but .*-wal exists"):
        Store(copied)
    os.rename(f"{copied}.aside", copied)
    store = Store(copied)
    assert sequences(store) == [[1, 2], [3], [4, 5, 6]]
    store.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries WHERE last = 3",
        "DELETE FROM entries WHERE last = 2",
        "UPDATE entries SET packed = zeroblob(length(packed)) WHERE last = 6",
        "UPDATE entries SET last = 9 WHERE last = 6",
        "DELETE FROM meta WHERE name = 'tail'",
        "UPDATE seen SET crc = crc + 1",
        "UPDATE meta SET value = 99 WHERE name = 'tail'",
        "DROP TABLE seen",
    ],
)
def test_damage_that_sqlite_does_not_detect_is_detected(path: str, statement: str) -> None:
    store = filled(path)
    store.write(WriteBatch([entry(7)], [("k", "e-7")], 0.0, 0.0), None)
    store.close()
    db = sqlite3.connect(path)
    db.execute(statement)
    db.commit()
    db.close()
    with pytest.raises(ConfigError, match=f"^data: {path}.*(damaged|no such table)"):
        read(path)


def read(path: str) -> tuple[str, list[tuple[float, list[Entry]]], list[tuple[float, list[Key]]]]:
    store = Store(path)
    try:
        return store.epoch, list(store.entries()), list(store.dedup_keys())
    finally:
        store.close()


def test_a_damaged_file_is_an_error_or_reads_correctly(path: str) -> None:
    draw = random.Random(1)
    store = Store(path)
    for number in range(1, 400, 4):
        store.write(batch(*range(number, number + 4), keys=[(f"k{number}", f"e-{number}")]), None)
    store.close()
    whole = Path(path).read_bytes()
    assert int.from_bytes(whole[68:72]) == APPLICATION_ID
    expected = read(path)
    whole = Path(path).read_bytes()
    harmless = 0
    for _ in range(300):
        damaged = bytearray(whole)
        if draw.random() < 0.2:
            del damaged[draw.randrange(1, len(damaged)) :]
        else:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        Path(path).write_bytes(damaged)
        for part in ("-wal", "-shm", "-journal"):
            Path(path + part).unlink(missing_ok=True)
        with contextlib.suppress(ConfigError):
            assert read(path) == expected
            harmless += 1  # mostly free space
    assert harmless < 200
