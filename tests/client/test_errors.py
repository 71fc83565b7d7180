"""The table of errors in docs/clients.md equals the docstrings of `relay.client`."""

from __future__ import annotations

import re

import pytest

import relay
from relay.client import Publisher, SyncPublisher, publish, publish_sync, read_gap, subscribe
from relay.errors import RelayError
from tests import ROOT

_SECTION = (ROOT / "docs" / "clients.md").read_text().partition("## Errors of the Python client")[2]
_ERROR = re.compile(r"\b[A-Z][a-z]+Error\b")
ROWS = {call: set(_ERROR.findall(errors)) for call, errors in re.findall(r"^\| (`.*?`.*?) \| (.*) \|$", _SECTION, re.M)}
"""The first column of each row, and the names of the errors in the second one."""
DOCUMENTED = {
    "`publish(…)`, `publish_sync(…)`": (publish, publish_sync),
    "`Publisher(…)`": (Publisher,),
    "`async with Publisher(…)`, `with SyncPublisher(…)`": (Publisher.__aenter__, SyncPublisher.__enter__),
    "`publisher.publish(event)`": (Publisher.publish,),
    "`publisher.send(event)`": (Publisher.send, SyncPublisher.send),
    "`publisher.flush()`, the end of `with`": (Publisher.flush, SyncPublisher.flush),
    "`subscribe(…)`": (subscribe,),
    "`read_gap(event)`": (read_gap,),
}


def raised(documented: object) -> set[str]:
    """Return the errors in the part `Raises` of a docstring."""
    return set(_ERROR.findall(str(documented.__doc__).partition("Raises:")[2]))


@pytest.mark.parametrize("call", DOCUMENTED)
def test_a_call_raises_the_documented_errors(call: str) -> None:
    for each in DOCUMENTED[call]:
        assert ROWS[call] == raised(each)


def test_the_iteration_raises_the_documented_errors() -> None:
    iteration = str(subscribe.__doc__).partition("The iterator raises")[2].partition("Raises:")[0]
    assert ROWS["`async for event in subscription`, `for event in subscription`"] == set(_ERROR.findall(iteration))


def test_the_table_names_each_error_and_relay_exports_it() -> None:
    errors = {name.strip("`") for name in ROWS if _ERROR.fullmatch(name.strip("`"))}
    assert errors == set().union(*map(raised, (*sum(DOCUMENTED.values(), ()), subscribe)))
    calls = set(ROWS) - {f"`{name}`" for name in errors}
    assert calls == {*DOCUMENTED, *(each for each in ROWS if "async for" in each)}
    for name in errors:
        assert issubclass(getattr(relay, name), RelayError)
