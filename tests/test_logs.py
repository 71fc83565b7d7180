"""The log is text for people and JSON for programs; one record is one line."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from relay.logs import set_up


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("relay")
    before = (root.handlers[:], root.level, own.level)
    yield
    root.handlers[:], root.level, own.level = before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_people_on_a_terminal_get_text() -> None:
    stream = Terminal()
    set_up("info", "auto", stream)
    logging.getLogger("relay.hub").warning("lapped %d", 3, extra={"topic": "news"})
    assert stream.getvalue()[8:] == " warning hub: lapped 3 topic=news\n"


def test_others_get_json() -> None:
    stream = io.StringIO()
    set_up("info", "auto", stream)
    logging.getLogger("relay.hub").info("lapped %d", 3, extra={"topic": "news"})
    record = json.loads(stream.getvalue())
    assert record.pop("time").endswith("+00:00")
    assert record == {"level": "INFO", "logger": "relay.hub", "message": "lapped 3", "topic": "news"}


@pytest.mark.parametrize("form", ["text", "json"])
def test_text_of_others_cannot_forge_a_line_or_steer_a_terminal(form: str) -> None:
    stream = Terminal()
    set_up("info", form, stream)
    logging.getLogger("relay.front").info("refused %s", "a\r\n12:00:00 info hub: all is well\x1b[2J")
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


def test_a_traceback_follows_its_line() -> None:
    stream = Terminal()
    set_up("info", "text", stream)
    try:
        raise ValueError("here")
    except ValueError:
        logging.getLogger("relay").exception("closing the connection")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("error   relay: closing the connection")
    assert rest[-1] == "ValueError: here"


def test_the_level_is_that_of_relay_and_libraries_stay_quiet() -> None:
    stream = io.StringIO()
    set_up("debug", "text", stream)
    logging.getLogger("relay.hub").debug("seen")
    logging.getLogger("httpx").info("not seen")
    assert "seen" in stream.getvalue()
    assert "not seen" not in stream.getvalue()


def test_it_is_set_up_once_however_often_it_is_called() -> None:
    stream = io.StringIO()
    set_up("info", "text", stream)
    set_up("info", "text", stream)
    logging.getLogger("relay").info("once")
    assert stream.getvalue().count("once") == 1
