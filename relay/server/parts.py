"""The open parts of one server, shared by the modules that start, control and drain it.

Owns nothing. Never opens or closes a part: `relay.server.server` does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from relay.auth.credentials import Credentials
from relay.config.load import worker_count
from relay.config.model import Config
from relay.core.hub import Hub
from relay.front.acceptor import Acceptor
from relay.front.front import Front
from relay.front.tls import Tls
from relay.process.listeners import ListenerGroup
from relay.process.systemd import Service
from relay.sources.group import Sources
from relay.store.journal import Journal
from relay.workers.membership import Membership

if TYPE_CHECKING:
    from relay.cluster.cluster import Cluster


@dataclass(slots=True, eq=False)
class Parts:
    """The open parts of one server.

    Args:
        config: checked settings.
        hub: the log and the streams.
        service: the connection to the service manager.
        loop: the running loop.
        stop: set when the server must drain and exit.
        own_token: the publish token of this run, used if the settings name none.
        credentials: tokens and keys.
        front: the clients' connections.
        membership: the workers, or the link to the hub.
        tls: the certificate; None without TLS.
        is_edge: whether this process is a worker, which follows the log of a hub.
        listeners: the listeners of each process that accepts clients.
        journal: the writer of the data file; None without a file.
        sources: the inputs other than HTTP; None in a worker.
        acceptor: None until clients are accepted, and if only the workers accept them.
        cluster: the follower and the publisher of a cluster; None without a cluster.
    """

    config: Config
    hub: Hub
    service: Service
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event
    own_token: str
    credentials: Credentials
    front: Front
    membership: Membership
    tls: Tls | None
    is_edge: bool
    listeners: list[ListenerGroup] = field(default_factory=list)
    journal: Journal | None = None
    sources: Sources | None = None
    acceptor: Acceptor | None = None
    cluster: Cluster | None = None

    @property
    def status(self) -> str:
        """Return the status line for the service manager."""
        return f"STATUS=serving {self.hub.engine.open} streams"

    @property
    def is_linked(self) -> bool:
        """Whether this server belongs to a group of processes or follows another server; it cannot be upgraded."""
        return self.is_edge or is_linked(self.config)


def leads(config: Config) -> bool:
    """Return whether the settings ask for workers."""
    return worker_count(config) > 1


def is_linked(config: Config) -> bool:
    """Return whether the settings ask for workers, an upstream, a cluster or a source that reads a feed."""
    return leads(config) or bool(config.upstream or config.cluster or config.source)
