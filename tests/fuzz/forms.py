"""Forms of an event: any data gives the bytes of a second implementation, in NDJSON and in the envelope."""

from __future__ import annotations

from relay.event import Event
from tests.core.forms.naive import check as check_event

WORDS = (
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b'{"a":', b'"\\ud800"', b'"\\ud83d\\ude00"', b"\\", b"\\u0000", b"\0"),
    *(b"1e999", b"-0", b"0.1", b"12345678901234567890", b"null", b"true", b"NaN", b" ", b"\n", b"\r", b"\t", b"data: "),
    *(b"\xe2\x80\xa8", b"\xe2\x80\xa9", b"\xc2\x85", b"\xef\xbb\xbf", b"\xff"),
)


def check(data: bytes) -> None:
    """Check one input."""
    check_event(Event(data.decode(errors="replace")), "t")
