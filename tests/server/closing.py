"""Run relay, and log each part of the server when it closes: `python -m tests.server.closing PYTHON -m relay …`."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

from relay.process import startup

if __name__ == "__main__":
    startup.prepare()

from relay import cli
from relay.auth.credentials import Credentials
from relay.front.acceptor import Acceptor
from relay.front.front import Front
from relay.server.pulse import Pulse
from relay.server.signals import Signals
from relay.sources.group import Sources
from relay.store.journal import Journal
from relay.workers.membership import Membership

PARTS = {
    Acceptor: "abort",
    Sources: "close",
    Signals: "close",
    Membership: "close",
    Front: "abort",
    Credentials: "close",
    Journal: "close",
    Pulse: "stop",
}
"""The parts of a server, with the method that closes each."""

_logger = logging.getLogger("relay.closing")


def logged(name: str, close: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a method that logs the name of its part, and closes the part."""

    @functools.wraps(close)
    def closing(part: Any) -> None:
        _logger.info("closing %s", name)
        close(part)

    return closing


def main() -> None:
    """Run the command line that follows `PYTHON -m relay`."""
    for part, method in PARTS.items():
        setattr(part, method, logged(part.__name__, getattr(part, method)))
    sys.exit(cli.run(sys.argv[4:]))


if __name__ == "__main__":
    main()
