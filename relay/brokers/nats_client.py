"""Connections to NATS: login, time limits and errors.

Owns the options of a connection. Never sends or receives an event. Only the modules `nats_…` import nats-py.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Callable
from typing import Any

import nats
import nkeys
from nats.aio.client import Client, RawCredentials

from relay.brokers import ANSWER_S
from relay.brokers.credentials import TlsFiles
from relay.config.broker_address import NatsAddress
from relay.errors import BrokerError

_JWT = "-----BEGIN NATS USER JWT-----\n"
_SEED = "-----BEGIN USER NKEY SEED-----\n(.+)\n"


class NatsConnector:
    """Connects to the servers of one address.

    Args:
        address: the servers.
        password: returns the password of the address's user, or the contents of a credentials file if the address has
            no user; called before each connection.
        tls: files for TLS.
    """

    def __init__(
        self, address: NatsAddress, password: Callable[[], str], tls: TlsFiles
    ) -> None:
        self._address = address
        self._password = password
        self._tls = tls

    async def connect(
        self, closed: asyncio.Event | None = None, on_error: Callable[[Exception], None] | None = None
    ) -> Client:
        """Return a new connection.

        Args:
            closed: is set when the connection is lost or closed.
            on_error: called with errors that no call raises, such as messages that were dropped.

        Raises:
            BrokerError: no server can be reached, or the login is rejected.
        """
        address, client = self._address, Client()
        failures: deque[Exception] = deque(maxlen=1)

        async def note(error: Exception) -> None:
            failures.append(error)
            if on_error is not None:
                on_error(error)

        async def on_closed() -> None:
            if closed is not None:
                closed.set()

        async with errors():
            options = {"tls": self._tls.context() if address.tls else None, **self._login()}
            try:
                await client.connect(
                    servers=[f"{'tls' if address.tls else 'nats'}://{host}:{port}" for host, port in address.hosts],
                    name="relay",
                    allow_reconnect=False,
                    connect_timeout=int(ANSWER_S),
                    max_reconnect_attempts=1,  # also the attempts to connect to each server
                    reconnect_time_wait=0,
                    ping_interval=2,
                    max_outstanding_pings=2,
                    error_cb=note,
                    closed_cb=on_closed,
                    **options,
                )
            except nats.errors.NoServersError as error:
                await close(client)
                raise (failures[-1] if failures else error) from None
            except BaseException:
                await close(client)
                raise
        return client

    def _login(self) -> dict[str, Any]:
        """Return the options for the login."""
        address = self._address
        if address.user:
            return {"user": address.user, "password": address.password or self._password()}
        credentials = self._password()
        if not credentials:
            return {}
        # Check the file here, because nats-py does not return from reading one without a token.
        seed = re.search(_SEED, credentials)
        try:
            if _JWT not in credentials or seed is None:
                raise ValueError
            nkeys.from_seed(bytearray(seed[1], "ascii")).wipe()
        except (nkeys.NkeysError, ValueError):
            raise BrokerError(
                "the password file has no valid credentials of NATS, and the address names no user"
            ) from None
        return {"user_credentials": RawCredentials(credentials)}


async def close(client: Client | None) -> None:
    """Close a connection, also a broken one."""
    if client is not None:
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await client.close()


@contextlib.asynccontextmanager
async def errors() -> Any:
    """Turn the library's errors into BrokerError, with a limit for the whole operation."""
    try:
        async with asyncio.timeout(2 * ANSWER_S):
            yield
    except (nats.errors.Error, OSError, TimeoutError) as error:
        text = " ".join(str(error).split())[:300]
        raise BrokerError(f"{type(error).__name__}: {text}" if text else type(error).__name__) from None
