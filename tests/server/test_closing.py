"""The parts of a server close in an order that loses nothing: the inputs first, the data file after its users."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.running import relay

RUN = (sys.executable, "-m", "tests.server.closing")


def closed(folder: Path, *arguments: str, upgrades: int = 0) -> list[str]:
    """Run a server with a data file and a Unix socket. Return its parts in the order in which they closed."""
    settings = ("--data", str(folder / "relay.db"), "--unix", str(folder / "relay.sock"), *arguments)
    with relay(*settings, before=RUN) as server:
        server.publish("x")
        for _ in range(upgrades):
            server.upgrade()
        server.stop()
    return [message.removeprefix("closing ") for message in server.messages("closing ")]


@pytest.mark.parametrize(
    ("arguments", "upgrades"), [((), 0), (("--workers", "2"), 0), ((), 1)], ids=["alone", "hub", "takeover"]
)
def test_sources_close_before_membership_and_front_and_the_journal_closes_last(
    arguments: tuple[str, ...], upgrades: int, tmp_path: Path
) -> None:
    order = closed(tmp_path, *arguments, upgrades=upgrades)
    assert len(order) == len(set(order))
    place = {name: order.index(name) for name in order}
    # Membership and front answer publishers. No input may arrive after they have closed.
    assert place["Sources"] < min(place["Membership"], place["Front"])
    # A part that publishes, and a part that answers for a published event, uses the journal.
    assert [name for name in order if name != "Pulse"][-1] == "Journal"
    assert {"Sources", "Signals", "Membership", "Front", "Credentials", "Journal", "Pulse"} <= set(order)
    assert ("Acceptor" in order) == ("--workers" not in arguments)
