"""The parts that the consumer and the producer of Kafka share: options, errors, and a thread for blocking calls.

Owns the options of librdkafka. Never sends or receives an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException

from relay.brokers.credentials import TlsFiles
from relay.config.broker_address import KafkaAddress
from relay.errors import BrokerError

T = TypeVar("T")


class KafkaOptions:
    """The options of all clients of one process.

    Args:
        address: the servers and the topic.
        password: returns the password; called for each client.
        tls: files for TLS.
        sasl: mechanism of SASL, such as `scram-sha-512`; ignored without a user.
    """

    def __init__(self, address: KafkaAddress, password: Callable[[], str], tls: TlsFiles, sasl: str) -> None:
        self._address = address
        self._password = password
        self._tls = tls.options("ssl.ca.location", "ssl.certificate.location", "ssl.key.location")
        self._sasl = sasl.upper()
        self._error = ""  # the last error that librdkafka reported

    def build(self) -> dict[str, Any]:
        """Return the options of a client."""
        address = self._address
        options: dict[str, Any] = {
            "bootstrap.servers": ",".join(f"{host}:{port}" for host, port in address.hosts),
            "client.id": "relay",
            "log_level": 0,  # librdkafka writes to standard error; `error_cb` receives the errors too
            "error_cb": self._on_error,
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 5000,
            "security.protocol": ("SASL_" if address.user else "") + ("SSL" if address.tls else "PLAINTEXT"),
            **self._tls,
        }
        if address.user:
            options |= {
                "sasl.mechanism": self._sasl,
                "sasl.username": address.user,
                "sasl.password": address.password or self._password(),
            }
        return options

    def describe(self, text: str) -> str:
        """Return a text and the last error that the client library reported."""
        return f"{text}: {self._error}" if self._error else text

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise BrokerError for each error of the client library within the context."""
        try:
            yield
        except KafkaException as error:
            cause = error.args[0] if error.args else error
            text = cause.str() if isinstance(cause, KafkaError) else str(cause)
            raise BrokerError(self.describe(text)) from None

    def _on_error(self, error: KafkaError) -> None:
        self._error = error.str()


class KafkaThread:
    """A thread for the calls of one client.

    Args:
        name: name of the thread.
        options: describe errors.
    """

    def __init__(self, name: str, options: KafkaOptions) -> None:
        self._options = options
        self._thread = ThreadPoolExecutor(1, name)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the thread.

        Raises:
            BrokerError: the client library reports an error.
        """
        with self._options.errors():
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """Wait for the last call and end the thread."""
        self._thread.shutdown()
