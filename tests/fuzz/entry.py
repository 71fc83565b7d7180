"""Any payload of a broker's entry gives an entry or an EventError. An entry that is encoded again gives the same."""

from __future__ import annotations

from relay.cluster.entry import FORM, decode_payload, encode_payload
from relay.errors import EventError
from relay.event_json import parse_event

BYTES_MAX = 300
WORDS = (
    b'{"topic":"a","data":"x"}',
    b'{"topic":"a.b","data":{"c":[1.0,null]},"event":"e","id":"i","retry":5,"key":"k"}',
    b'"topic":',
    b'"data":',
    b'"event":"relay.end"',
    b'"id":"01234567-1"',
    b'"\\ud83d\\ude00"',
    b"\\n",
    b"\xef\xbb\xbf",
    b"\xff",
    b"{",
    b"}",
    b",",
)


def check(data: bytes) -> None:
    """Check one input."""
    try:
        entry = decode_payload(FORM, data, "01234567", 1, 0.0, BYTES_MAX)
    except EventError as error:
        assert str(error)
        return
    assert len(entry.frame) <= BYTES_MAX + 16
    assert decode_payload(FORM, encode_payload(parse_event(data)), "01234567", 1, 0.0, BYTES_MAX) == entry
