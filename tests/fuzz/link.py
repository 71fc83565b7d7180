"""The bytes of a link give messages or a LinkError. Splits change nothing. An entry is encoded to the same bytes."""

from __future__ import annotations

from relay.core.log import Entry
from relay.workers.messages import LinkError, Message, Parser, encode, encode_entry
from tests.fuzz.pieces import cut

BYTES_MAX = 400
WORDS = (
    encode_entry(Entry(1, 0.0, "a", None, None, b"data: x\n\n")),
    encode_entry(Entry(2**64 - 1, -1.5, "b", "id", "", b"\n")),
    b"\x10\0\0\0\0",
    b"\x81\xa4type\xa4Beat",
    b"\x82\xa4type\xa4Beat\xa4head\x01",
    b"\xa4type\xa7Publish\xa6number\x01\xa6events\x91\x80",
    b"\xff\xff\xff\xff",
    b"\xc0",
    b"\0",
)


def parse(pieces: list[bytes]) -> tuple[list[Message | Entry], bool]:
    """Return the messages, and whether the link was closed."""
    parser, messages = Parser(BYTES_MAX), list[Message | Entry]()
    try:
        for piece in pieces:
            messages += parser.feed(piece)
    except LinkError as error:
        assert str(error)
        return messages, True
    return messages, False


def check(data: bytes) -> None:
    """Check one input."""
    pieces = cut(data)
    messages, failed = parse(pieces)
    rest = b"".join(pieces)
    whole, also = parse([rest])
    assert failed == also
    assert failed or messages == whole
    place = 0
    for message in messages:
        size = 5 + int.from_bytes(rest[place : place + 4], "little")
        assert size <= 5 + BYTES_MAX
        if isinstance(message, Entry):
            again = encode_entry(message)
            if again != rest[place : place + size]:
                # Every negative ttl is read as none, but only one is written.
                assert message.ttl_s is None
                assert parse([again]) == ([message], False)
        else:
            assert parse([encode(message)]) == ([message], False) or message != message  # NaN does not equal itself
        place += size
