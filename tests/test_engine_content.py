"""The engine counts the content of compressed streams, and sends shared output only to streams that can read it."""

from __future__ import annotations

import os
from zlib import crc32

import pytest

from bench.implementations import EngineTypes
from relay._native.engine import Chunk
from tests.engines import FOREVER_S, ROOM, Rig, rig, twin

__all__ = ["rig", "twin"]

NO_CONTENT = (0, 0)


def checks_of(contents: list[bytes]) -> list[tuple[int, int]]:
    """Return the CRC-32 and the size of each content."""
    return [(crc32(content), len(content)) for content in contents]


def check_of(content: bytes) -> tuple[int, int]:
    """Return what the engine must have counted for this content."""
    return crc32(content), len(content)


def compressed(rig: Rig, contents: list[bytes], first: int = 1) -> Chunk:
    """Return a chunk whose frames stand for some content, which is longer."""
    frames = [b"<%d>" % number for number in range(len(contents))]
    return rig.twin.chunk(frames, list(range(first, first + len(frames))), first + len(frames), checks_of(contents))


def open_live(rig: Rig, cursor: int = 1, *, joins: bool = True) -> int:
    """Open a live stream of a compressed form."""
    handle = rig.open(cursor, joins=joins)
    assert rig.engine.write(handle, None, 0.0)
    rig.read(handle)
    rig.engine.live(handle, cursor)
    rig.engine.join(handle, rig.members)
    return handle


def broadcast(rig: Rig, chunk: Chunk, shared: Chunk, key_cursor: int) -> None:
    """Send a flush with the output of a shared compressor."""
    rig.engine.combine([])
    rig.engine.broadcast(rig.members, 0, chunk, False, 0.0, FOREVER_S, shared, key_cursor)


def shared_of(rig: Rig, contents: list[bytes], first: int = 1, output: bytes = b"shared") -> Chunk:
    """Return the output of a compressor for these contents."""
    content = b"".join(contents)
    cursor = first + len(contents)
    return rig.twin.chunk([output], [first], cursor, [check_of(content)], len(contents))


def test_a_chunk_needs_a_check_for_each_frame(twin: EngineTypes) -> None:
    with pytest.raises(ValueError, match="check"):
        twin.chunk([b"a", b"b"], [1, 2], 3, [(0, 0)])


def test_the_content_of_all_parts_is_counted(rig: Rig) -> None:
    contents = [os.urandom(size) for size in (0, 1, 150, 150, 70_000, 3)]
    handle = rig.open()
    assert rig.engine.content(handle) == NO_CONTENT
    rig.engine.count_content(handle, b"notice")
    assert rig.engine.write(handle, compressed(rig, contents), 0.0)
    assert rig.engine.content(handle) == check_of(b"notice" + b"".join(contents))
    rig.engine.skip(handle, 9, b"gap")
    rig.engine.count_content(handle, b"gap")
    assert rig.engine.content(handle) == check_of(b"notice" + b"".join(contents) + b"gap")


def test_only_the_content_from_the_cursor_on_is_counted(rig: Rig) -> None:
    contents = [os.urandom(size) for size in (10, 20, 30, 40)]
    handle = rig.open(3)
    assert rig.engine.write(handle, compressed(rig, contents), 0.0)
    assert rig.engine.content(handle) == check_of(b"".join(contents[2:]))


def test_a_half_sent_frame_is_counted_once(rig: Rig) -> None:
    contents = [os.urandom(50) for _ in range(8)]
    frames = [b"x" * 3000 for _ in contents]
    handle = rig.open()
    chunk = rig.twin.chunk(frames, list(range(1, 9)), 9, checks_of(contents))
    assert not rig.engine.write(handle, chunk, 0.0)
    cursor = rig.engine.cursor(handle)
    assert 1 < cursor < 9
    assert rig.engine.content(handle) == check_of(b"".join(contents[: cursor - 1]))
    rig.finish(handle, chunk)
    assert rig.engine.content(handle) == check_of(b"".join(contents))


def test_counting_continues_in_another_process(rig: Rig) -> None:
    handle = rig.open()
    rig.engine.continue_content(handle, *check_of(b"before"))
    rig.engine.count_content(handle, b"after")
    assert rig.engine.content(handle) == check_of(b"beforeafter")


def test_a_stream_without_compression_counts_nothing(rig: Rig) -> None:
    handle = rig.open()
    assert rig.engine.write(handle, rig.chunk([b"a", b"b"]), 0.0)
    assert rig.engine.content(handle) == NO_CONTENT


def test_the_shared_output_goes_to_streams_that_received_the_content_since_the_key_frame(rig: Rig) -> None:
    contents = [b"one", b"two"]
    early, late, foreign = open_live(rig, 1), open_live(rig, 5), open_live(rig, 1, joins=False)
    broadcast(rig, compressed(rig, contents, 5), shared_of(rig, contents, 5), key_cursor=3)
    assert rig.read(early) == b"shared"
    assert rig.read(late) == b"<0><1>"
    assert rig.read(foreign) == b"<0><1>"
    assert rig.engine.unshared == 1, "a stream that never joins does not wait for a key frame"
    assert rig.engine.deliveries == 6
    for handle in (early, late, foreign):
        assert rig.engine.content(handle) == check_of(b"onetwo")
        assert rig.engine.cursor(handle) == 7


def test_a_key_frame_lets_all_live_streams_join(rig: Rig) -> None:
    early, late = open_live(rig, 1), open_live(rig, 5)
    broadcast(rig, compressed(rig, [b"one"], 5), shared_of(rig, [b"one"], 5), key_cursor=5)
    assert rig.read(early) == rig.read(late) == b"shared"


def test_a_stream_within_the_flush_does_not_receive_the_shared_output(rig: Rig) -> None:
    handle = open_live(rig, 6)
    broadcast(rig, compressed(rig, [b"one", b"two"], 5), shared_of(rig, [b"one", b"two"], 5), key_cursor=5)
    assert rig.read(handle) == b"<1>"


def test_a_heartbeat_is_content_that_the_compressor_was_not_fed(rig: Rig) -> None:
    handle = open_live(rig)
    rig.engine.heartbeat([b":\n"], 0, 0.0, 100.0, FOREVER_S, [b":\n"], 5)
    rig.read(handle)
    broadcast(rig, compressed(rig, [b"one"], 5), shared_of(rig, [b"one"], 5), key_cursor=4)
    assert rig.read(handle) == b"<0>"
    assert rig.engine.content(handle) == check_of(b":\none")


def test_a_skip_is_a_gap_in_the_content(rig: Rig) -> None:
    handle = open_live(rig)
    assert rig.engine.fall_behind(handle, 1)
    rig.engine.skip(handle, 5, b"")
    rig.engine.live(handle, 5)
    broadcast(rig, compressed(rig, [b"one"], 5), shared_of(rig, [b"one"], 5), key_cursor=4)
    assert rig.read(handle) == b"<0>"


def test_a_stream_that_caught_up_by_itself_joins_again(rig: Rig) -> None:
    handle = open_live(rig)
    assert rig.engine.fall_behind(handle, 1)
    assert rig.engine.write(handle, compressed(rig, [b"one", b"two"]), 0.0)
    rig.engine.live(handle, 3)
    rig.read(handle)
    broadcast(rig, compressed(rig, [b"three"], 3), shared_of(rig, [b"three"], 3), key_cursor=1)
    assert rig.read(handle) == b"shared"


def test_half_sent_shared_output_is_completed_and_counted(rig: Rig) -> None:
    handle = open_live(rig)
    shared = shared_of(rig, [b"one", b"two"], 1, ROOM)
    broadcast(rig, compressed(rig, [b"one", b"two"]), shared, key_cursor=1)
    assert rig.engine.is_behind(handle)
    assert rig.engine.cursor(handle) == 3
    assert rig.engine.deliveries == 2
    assert rig.engine.content(handle) == check_of(b"onetwo")
    assert rig.finish(handle, None) == ROOM
