"""The process of a worker: `python -m relay.server.worker DESCRIPTOR`. Only a hub starts it.

Owns the start: the worker reads its settings and listeners from the link. Then it runs `relay.server.server`. Never
reads settings from flags, the environment or a file.
"""

from __future__ import annotations

from relay.process import startup

if __name__ == "__main__":
    startup.prepare()  # Before the imports: a signal that arrives during them must not end the process.

import os
import socket
import sys

from relay.errors import ConfigError, RelayError
from relay.process.listeners import ListenerGroup
from relay.process.systemd import Service
from relay.telemetry import logs
from relay.workers.messages import LinkError, Parser, Setup

SETUP_S = 30.0
SETUP_BYTES_MAX = 256 * 1024
READ_BYTES = 64 * 1024


def read_setup(link: socket.socket) -> Setup:
    """Wait for the first message of the hub.

    Raises:
        LinkError: the message does not arrive in time, or is not a Setup.
    """
    parser = Parser(SETUP_BYTES_MAX)
    link.settimeout(SETUP_S)
    try:
        while data := link.recv(READ_BYTES):
            for message in parser.feed(data):
                if isinstance(message, Setup):
                    return message
                raise LinkError("the first message of the hub is not a Setup")
    except OSError as error:
        raise LinkError(f"cannot read the Setup of this worker: {error}") from None
    raise LinkError("the hub closed the link before it sent a Setup")


def main() -> int:
    """Serve until the hub stops this worker or closes the link; return the exit code."""
    try:
        link = socket.socket(fileno=int(sys.argv[1]))
        setup = read_setup(link)
        config = setup.config
        logs.set_up(config.log_level, config.log_format)
        public, admin = (
            [socket.socket(fileno=fd) for fd in fds] for fds in (setup.listeners, setup.admin_listeners)
        )
        for each in (link, *public, *admin):
            each.setblocking(False)
        # Import here, because these load uvloop and the engine.
        from relay.server import server
        from relay.workers.processes import Inherited

        # Only the hub's process talks to the service manager.
        service = Service({}, os.getpid())
        server.run(config, service, Inherited(link, ListenerGroup(public, admin), setup.own_token))
    except ConfigError as error:
        logs.say(f"relay: worker: {error}")
        return 2
    except (RelayError, LookupError, ValueError, OSError) as error:
        logs.say(f"relay: worker (pid {os.getpid()}): {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
