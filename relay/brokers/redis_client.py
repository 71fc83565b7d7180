"""A connection to Redis or Valkey: login, TLS, sentinels, time limits and errors.

Owns the options of a connection. Never knows the keys of a log or of a source. Only this module and the modules
`redis_…` of other packages import redis-py.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.resources
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from relay.brokers import ANSWER_S
from relay.brokers.credentials import TlsFiles
from relay.config.broker_address import RedisAddress
from relay.errors import BrokerError

_SOCKET_READ_BYTES = 256 * 1024


class RedisScript:
    """A Lua script.

    Args:
        package: the package that contains the file.
        file: the name of the file.
    """

    def __init__(self, package: str, file: str) -> None:
        self.text = importlib.resources.files(package).joinpath(file).read_bytes()
        self.sha1 = hashlib.sha1(self.text).hexdigest()  # noqa: S324 (Redis names scripts by their SHA-1)


class RedisClient:
    """One connection. After an error it must be closed.

    Args:
        address: the server.
        password: returns the password; called now.
        tls: files for TLS.
    """

    def __init__(self, address: RedisAddress, password: Callable[[], str], tls: TlsFiles) -> None:
        files = tls.options("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
        tls_options = {"ssl": True, **files} if address.tls else {}
        options: dict[str, Any] = {
            "db": address.db,
            "username": address.user or None,
            "password": address.password or password() or None,
            "socket_timeout": None,  # `call` limits the time
            "socket_connect_timeout": ANSWER_S,
            "socket_keepalive": True,
            "socket_read_size": _SOCKET_READ_BYTES,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            **tls_options,
        }
        self._sentinel: Sentinel | None = None
        if address.sentinel:
            for_sentinels = {"socket_timeout": ANSWER_S, "protocol": 2, **tls_options}
            self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
                address.hosts, sentinel_kwargs=for_sentinels, **options
            )
            self._redis: Redis = self._sentinel.master_for(address.sentinel)
        else:
            [(host, port)] = address.hosts
            self._redis = Redis(host=host, port=port, single_connection_client=True, **options)
        for command in ("XREAD", "XREADGROUP", "XAUTOCLAIM"):
            self._redis.set_response_callback(command, _unchanged)  # redis-py would build a dictionary for each entry

    async def call(self, *command: str | bytes | int, wait_s: float = 0.0) -> Any:
        """Send a command and return the reply.

        Raises:
            BrokerError: the server cannot be reached, does not answer in time or returns an error.
        """
        try:
            async with asyncio.timeout(wait_s + ANSWER_S):
                return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]
        except NoScriptError:
            raise
        except TimeoutError:
            raise BrokerError(f"no answer within {wait_s + ANSWER_S:g} s") from None
        except (RedisError, OSError) as error:
            raise BrokerError(reason(error)) from None

    async def run(self, script: RedisScript, keys: Sequence[str], *arguments: str | bytes) -> Any:
        """Run a script and return its reply.

        Raises:
            BrokerError: as `call`.
        """
        rest = (len(keys), *keys, *arguments)
        try:
            return await self.call("EVALSHA", script.sha1, *rest)
        except NoScriptError:
            return await self.call("EVAL", script.text, *rest)

    def pubsub(self) -> PubSub:
        """Return a subscriber of PUB/SUB, which has a connection of its own."""
        return self._redis.pubsub()

    async def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(RedisError, OSError):
            await self._redis.aclose(close_connection_pool=True)
            for each in self._sentinel.sentinels if self._sentinel is not None else ():
                await each.aclose(close_connection_pool=True)


def _unchanged(response: Any, **_: Any) -> Any:
    return response


def reason(error: Exception) -> str:
    """Return the text of an error on one line. It contains names of hosts and users, but no password."""
    # A server that does not know AUTH repeats the arguments of the command.
    text = " ".join(str(error).partition(", with args beginning with")[0].split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
