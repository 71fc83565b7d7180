"""Sizes, times, addresses, modes and groups are parsed from their usual notation, and written so that they parse."""

from __future__ import annotations

import grp
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.declaration import NUMBER_MAX
from relay.config.formats import (
    duration_text,
    parse_address,
    parse_duration,
    parse_group,
    parse_mode,
    parse_size,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1048576),
        ("0", 0),
        ("64KiB", 65536),
        ("64K", 65536),
        ("64kb", 65536),
        ("64M", 64 * 1024**2),
        ("1.5M", 1572864),
        ("2 GiB", 2 * 1024**3),
        ("100B", 100),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1e6", "64MM", "64 parsecs", "٣", "1_000", "9" * 30, "inf"])
def test_an_invalid_size_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|too large"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15s", 15),
        ("500ms", 0.5),
        ("2m", 120),
        ("1h", 3600),
        ("15", 15),
        ("0.25", 0.25),
        ("1h30m", 5400),
        ("7d", 604800),
        ("0", 0),
    ],
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1y", "1.5.5s", "nan", "inf", "9" * 400 + "h", "20000d", "1s2", "٣s"]
)
def test_an_invalid_time_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|ten years"):
        parse_duration(text)


@given(st.integers(0, NUMBER_MAX))
def test_a_written_size_parses_to_the_same_value(size: int) -> None:
    assert parse_size(size_text(size)) == size


@given(st.integers(0, 10**9))
def test_a_written_time_parses_to_the_same_value(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(duration_text(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:8080", ("::1", 8080)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("localhost:0", ("localhost", 0)),
        (":8080", ("", 8080)),
    ],
)
def test_an_address_is_read(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "8080", "::1:8080", "host", "host:", "host:65536", "host:x", "[::1]", "a/b:1", "a b:1"]
)
def test_an_invalid_address_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("600", 0o600), ("0o777", 0o777)])
def test_a_mode_is_read_as_octal(text: str, mode: int) -> None:
    assert parse_mode(text) == mode


def test_a_group_is_read_by_name_or_number() -> None:
    own = os.getgid()
    assert parse_group(str(own)) == parse_group(grp.getgrgid(own).gr_name) == own
    assert parse_group("") == -1
