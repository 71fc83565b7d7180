"""A worker's process: `python -m relay.server.worker DESCRIPTOR`, started by a hub's process and by nobody else.

Owns its beginning: it is told over its link what it is. The rest is a server like any other (`relay.server.server`).
"""

from __future__ import annotations

from relay.process import startup

if __name__ == "__main__":
    startup.prepare()  # Before the imports: a signal that arrives meanwhile must not end the process.

import os
import socket
import sys

from relay.errors import ConfigError, RelayError
from relay.process.systemd import Service
from relay.telemetry import logs
from relay.workers.messages import HELLO_BYTES_MAX, LinkError, Parser, Setup

SETUP_S = 30.0
READ_BYTES = 64 * 1024


def read_setup(link: socket.socket) -> Setup:
    """Wait for the first message of the hub.

    Raises:
        LinkError: it does not come, or is another.
    """
    parser = Parser(16 * HELLO_BYTES_MAX)
    link.settimeout(SETUP_S)
    try:
        while data := link.recv(READ_BYTES):
            for message in parser.feed(data):
                if isinstance(message, Setup):
                    return message
                raise LinkError("the first message is no Setup")
    except OSError as error:
        raise LinkError(f"the hub does not say what this worker is: {error}") from None
    raise LinkError("the hub is gone already")


def main() -> int:
    """Serve until the hub says so, or is gone; return the exit code."""
    try:
        link = socket.socket(fileno=int(sys.argv[1]))
        setup = read_setup(link)
        config = setup.config
        logs.set_up(config.log_level, config.log_format)
        listeners = [socket.socket(fileno=fd) for fd in setup.listeners]
        for each in (link, *listeners):
            each.setblocking(False)
        # Only now: these import uvloop and the engine.
        from relay.server import server
        from relay.workers.processes import Inherited

        # The service manager's business is the hub's process'.
        service = Service({}, os.getpid())
        server.run(config, service, Inherited(setup.number, link, listeners, setup.own_token))
    except ConfigError as error:
        logs.say(f"relay: worker: {error}")
        return 2
    except (RelayError, LookupError, ValueError, OSError) as error:
        logs.say(f"relay: worker (pid {os.getpid()}): {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
