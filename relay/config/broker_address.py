"""The address of a broker: `--cluster URL`, and the part before `?` of `--source URL`.

Owns the grammar of the address. Never connects, and never writes a password into an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from relay.errors import ConfigError

REDIS_PORT = 6379
SENTINEL_PORT = 26379
KAFKA_PORT = 9092
NATS_PORT = 4222
REDIS_SCHEMES = ("redis", "rediss", "valkey", "valkeys", "redis+sentinel", "rediss+sentinel")
KAFKA_SCHEMES = ("kafka", "kafkas")
NATS_SCHEMES = ("nats", "natss")
FORMS = (
    "redis://HOST:PORT/DB, rediss://HOST:PORT/DB (TLS), valkey://HOST:PORT/DB, redis+sentinel://HOST:PORT,…/NAME/DB, "
    "kafka://HOST:PORT,…/TOPIC, kafkas://HOST:PORT,…/TOPIC (TLS), nats://HOST:PORT,…/STREAM, natss:// (TLS)"
)

_STREAM = re.compile(r"[A-Za-z0-9_-]{1,200}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,240}")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]\s/,@]+))(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The address of a Redis or Valkey server, or of the sentinels that know it.

    Args:
        hosts: names and ports; several only for sentinels.
        tls: whether connections use TLS.
        sentinel: the name under which the sentinels know the server; empty for a direct connection.
        db: the number of the database.
        user: the name of the ACL user; empty for the default user.
        password: the password; empty if the address has none.
    """

    hosts: tuple[tuple[str, int], ...]
    tls: bool
    sentinel: str
    db: int
    user: str
    password: str = field(repr=False)

    @property
    def shown(self) -> str:
        """The address without user and password, for log lines."""
        scheme = ("rediss" if self.tls else "redis") + ("+sentinel" if self.sentinel else "")
        return f"{scheme}://{hosts_text(self.hosts)}/{self.sentinel + '/' if self.sentinel else ''}{self.db}"


def parse_redis(url: str, setting: str = "cluster") -> RedisAddress:
    """Parse the address of a Redis or Valkey server; raises as `parse_broker`."""
    scheme = url.partition("://")[0]
    by_sentinel = scheme.endswith("+sentinel")
    hosts, user, password, path = split_address(url, SENTINEL_PORT if by_sentinel else REDIS_PORT, setting)
    name = path.pop(0) if by_sentinel and path else ""
    if by_sentinel and not name:
        raise ConfigError(
            f"{setting}: the address of sentinels needs the server's name: redis+sentinel://HOST:PORT/NAME"
        )
    if not by_sentinel and len(hosts) > 1:
        raise ConfigError(f"{setting}: only redis+sentinel:// has several hosts")
    db = path.pop(0) if path else "0"
    if path or not db.isascii() or not db.isdigit() or len(db) > 5:
        raise ConfigError(f"{setting}: the path of the address must be the number of a database, such as /0")
    tls = scheme.startswith(("rediss", "valkeys"))
    return RedisAddress(hosts, tls, name, int(db), user, password)


@dataclass(frozen=True, slots=True)
class _LogAddress:
    """The address of a log that has a name in its broker.

    Args:
        hosts: names and ports of some of the servers.
        tls: whether connections use TLS.
        name: the topic or the stream that contains the log.
        user: the name of the user; empty to connect without it.
        password: the password; empty if the address has none.
    """

    scheme: ClassVar[str]
    hosts: tuple[tuple[str, int], ...]
    tls: bool
    name: str
    user: str
    password: str = field(repr=False)

    @property
    def shown(self) -> str:
        """The address without user and password, for log lines."""
        return f"{self.scheme}{'s' if self.tls else ''}://{hosts_text(self.hosts)}/{self.name}"


class KafkaAddress(_LogAddress):
    """The address of a topic in Kafka. The user logs in with SASL."""

    __slots__ = ()
    scheme = "kafka"


class NatsAddress(_LogAddress):
    """The address of a stream in NATS JetStream."""

    __slots__ = ()
    scheme = "nats"


BrokerAddress = RedisAddress | KafkaAddress | NatsAddress


def parse_broker(url: str) -> BrokerAddress:
    """Parse the address of a broker.

    Raises:
        ConfigError: the address is malformed. The text does not contain the address, because of its password.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme in REDIS_SCHEMES:
        return parse_redis(url)
    if separator and scheme in KAFKA_SCHEMES:
        return parse_kafka(url)
    if separator and scheme in NATS_SCHEMES:
        return parse_nats(url)
    raise ConfigError(f"cluster: the address must have one of the forms {FORMS}")


def parse_kafka(url: str, setting: str = "cluster") -> KafkaAddress:
    """Parse the address of a log in Kafka; raises as `parse_broker`."""
    hosts, user, password, path = split_address(url, KAFKA_PORT, setting)
    if len(path) != 1 or not _TOPIC.fullmatch(path[0]):
        raise ConfigError(f"{setting}: the path of the address must be a topic of Kafka: kafka://HOST:PORT/TOPIC")
    return KafkaAddress(hosts, url.startswith("kafkas:"), path[0], user, password)


def parse_nats(url: str, setting: str = "cluster") -> NatsAddress:
    """Parse the address of a log in NATS JetStream; raises as `parse_broker`."""
    hosts, user, password, path = split_address(url, NATS_PORT, setting)
    if len(path) != 1 or not _STREAM.fullmatch(path[0]):
        raise ConfigError(
            f"{setting}: the path of the address must be a stream of JetStream: nats://HOST:PORT/STREAM"
        )
    return NatsAddress(hosts, url.startswith("natss:"), path[0], user, password)


def has_password(url: str) -> bool:
    """Return whether an address contains a password."""
    try:
        return bool(urlsplit(url).password)
    except ValueError:
        return False


def split_address(url: str, port: int, setting: str) -> tuple[tuple[tuple[str, int], ...], str, str, list[str]]:
    """Return the hosts of an address, the user, the password, and the parts of the path; raises as `parse_broker`."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(f"{setting}: the address is malformed") from None
    if parts.query or parts.fragment:
        raise ConfigError(f"{setting}: the address must not have a query or a fragment; use the settings cluster-…")
    login, _, where = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    hosts = tuple(_host(text, port, setting) for text in where.split(","))
    path = [unquote(part) for part in parts.path.strip("/").split("/") if part]
    return hosts, unquote(user), unquote(password), path


def hosts_text(hosts: tuple[tuple[str, int], ...]) -> str:
    """Return hosts and ports as text, separated by commas."""
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts)


def _host(text: str, port: int, setting: str) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None or int(match[3] or port) > 65535 or match[3] == "0":
        raise ConfigError(f"{setting}: a host of the address is not HOST or HOST:PORT, such as 10.0.0.1:6379")
    return match[1] or match[2], int(match[3] or port)
