"""The address of a feed that relay reads: `--source URL?OPTION=VALUE&…`.

Owns the schemes, their options and the text that logs and /stats show. Never connects, and never writes a password into
an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote, unquote

from relay.config.broker_address import (
    KAFKA_SCHEMES,
    NATS_SCHEMES,
    REDIS_SCHEMES,
    BrokerAddress,
    hosts_text,
    parse_kafka,
    parse_nats,
    parse_redis,
    split_address,
)
from relay.config.values import hint
from relay.errors import ConfigError

_SETTING = "source"
_MAPPING = ("topic", "event", "key", "dedup", "format", "data")
_LOGIN = ("password-file", "tls-ca", "tls-cert", "tls-key")
_CHOICES = {
    "format": ("text", "event"),
    "start": ("earliest", "latest"),
    "sasl": ("scram-sha-512", "scram-sha-256", "plain"),
    "tls": ("on", "off"),
}
"""The values of options that have a fixed set of values."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The address of an MQTT broker or a PostgreSQL server.

    Args:
        hosts: names and ports; for PostgreSQL, the name may be the folder of a Unix socket.
        tls: whether connections use TLS.
        database: the name of the database; empty for MQTT.
        user: the name of the user; empty to connect without it.
        password: the password; empty if the address has none.
    """

    hosts: tuple[tuple[str, int], ...]
    tls: bool
    database: str
    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SourceAddress:
    """One source.

    Args:
        kind: what relay reads: `redis-stream`, `redis-channel`, `kafka-topic`, `nats-stream`, `nats-subject`, `mqtt`,
            `postgres-table` or `postgres-channel`.
        server: the server and its credentials.
        options: the options by name.
        shown: the address without credentials, for logs, metrics and /stats.
    """

    kind: str
    server: BrokerAddress | ServerAddress
    options: Mapping[str, str] = field(repr=False)
    shown: str

    def option(self, name: str, default: str = "") -> str:
        """Return the value of an option."""
        return self.options.get(name, default)


class _Scheme(NamedTuple):
    """A form of addresses: the options that select what relay reads, and further options."""

    kinds: Mapping[str, str]
    options: tuple[str, ...]


_REDIS = _Scheme({"stream": "redis-stream", "channel": "redis-channel"}, ("group", "consumer", "start"))
_KAFKA = _Scheme({}, ("group", "start", "sasl"))
_NATS = _Scheme({"subject": "nats-subject"}, ("group", "start"))
_MQTT = _Scheme({"filter": "mqtt"}, ("client",))
_POSTGRES = _Scheme({"table": "postgres-table", "channel": "postgres-channel"}, ("host", "tls"))
_SCHEMES = {
    **dict.fromkeys(REDIS_SCHEMES, _REDIS),
    **dict.fromkeys(KAFKA_SCHEMES, _KAFKA),
    **dict.fromkeys(NATS_SCHEMES, _NATS),
    **dict.fromkeys(("mqtt", "mqtts"), _MQTT),
    **dict.fromkeys(("postgres", "postgresql"), _POSTGRES),
}


def parse_source(text: str) -> SourceAddress:
    """Parse the address of a source.

    Raises:
        ConfigError: the address is malformed. The text does not contain the address, because of its password.
    """
    url, _, query = text.partition("?")
    name, separator, _ = url.partition("://")
    scheme = _SCHEMES.get(name)
    if not separator or scheme is None:
        raise ConfigError(f"source: the address must begin with one of {', '.join(f'{each}://' for each in _SCHEMES)}")
    options = _options(query, scheme, name)
    selected = [each for each in scheme.kinds if each in options]
    if scheme is _KAFKA:
        kafka = parse_kafka(url, _SETTING)
        return SourceAddress("kafka-topic", kafka, options, kafka.shown)
    if scheme is _NATS:
        return _nats(url, options)
    if len(selected) != 1 and not (scheme is _POSTGRES and selected):  # a channel may notify of new rows in a table
        raise ConfigError(f"source: an address of {name}:// needs the option {' or '.join(scheme.kinds)}")
    kind, what = scheme.kinds[selected[0]], f"?{selected[0]}={options[selected[0]]}"
    if scheme is _REDIS:
        redis = parse_redis(url, _SETTING)
        return SourceAddress(kind, redis, options, redis.shown + what)
    server = _mqtt(url) if scheme is _MQTT else _postgres(url, options)
    place = hosts_text(server.hosts) if not server.hosts[0][0].startswith("/") else server.hosts[0][0]
    return SourceAddress(kind, server, options, f"{name}://{place}/{server.database}{what}")


def join_options(table: Mapping[str, object]) -> str:
    """Return the address of a source that a TOML table contains: `url`, and options.

    Raises:
        ConfigError: the table has no `url`, or a value is not text.
    """
    for key, value in table.items():
        if not isinstance(value, str):
            raise ConfigError(f"source: {key} must be text in quotes")
    options = "&".join(f"{key}={quote(str(value), safe='/{}.:>*+')}" for key, value in table.items() if key != "url")
    url = str(table.get("url", ""))
    if not url or "?" in url:
        raise ConfigError("source: a table needs the key url, an address without `?`; options are keys of their own")
    return f"{url}?{options}" if options else url


def _options(query: str, scheme: _Scheme, name: str) -> dict[str, str]:
    """Return the options after `?`. A `+` is not a space, because it is common in the filters of MQTT."""
    known = (*scheme.kinds, *scheme.options, *_MAPPING, *_LOGIN)
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        if key not in known:
            raise ConfigError(f"source: {name}:// has no option {key!r}{hint(key, known)}")
        if key in options:
            raise ConfigError(f"source: the option {key} is given twice")
        options[key] = unquote(value)
        if not options[key] or (key in _CHOICES and options[key] not in _CHOICES[key]):
            wanted = "one of " + ", ".join(_CHOICES[key]) if key in _CHOICES else "a value"
            raise ConfigError(f"source: the option {key} needs {wanted}")
    return options


def _nats(url: str, options: Mapping[str, str]) -> SourceAddress:
    """With a path, relay reads a stream of JetStream; without one, a subject."""
    if url.partition("://")[2].rstrip("/").count("/"):
        stream = parse_nats(url, _SETTING)
        subject = f"?subject={options['subject']}" if "subject" in options else ""
        return SourceAddress("nats-stream", stream, options, stream.shown + subject)
    server = parse_nats(f"{url.rstrip('/')}/none", _SETTING)
    if "subject" not in options:
        raise ConfigError("source: an address of nats:// needs a stream of JetStream as its path, or ?subject=NAME")
    shown = f"{server.shown.removesuffix('/none')}?subject={options['subject']}"
    return SourceAddress("nats-subject", server, options, shown)


def _mqtt(url: str) -> ServerAddress:
    tls = url.startswith("mqtts:")
    hosts, user, password, path = split_address(url, 8883 if tls else 1883, _SETTING)
    if path or len(hosts) > 1:
        raise ConfigError("source: an address of MQTT has one host and no path: mqtt://HOST:PORT?filter=FILTER")
    return ServerAddress(hosts, tls, "", user, password)


def _postgres(url: str, options: Mapping[str, str]) -> ServerAddress:
    scheme, _, rest = url.partition("://")
    folder = options.get("host", "")
    if folder:
        login, at, where = rest.partition("/")[0].rpartition("@")
        if where.partition(":")[0] or not folder.startswith("/"):
            raise ConfigError("source: the option host is the folder of a Unix socket, and replaces HOST")
        rest = f"{login}{at}localhost{where}/{rest.partition('/')[2]}"
    hosts, user, password, path = split_address(f"{scheme}://{rest}", 5432, _SETTING)
    if len(path) != 1 or len(hosts) > 1:
        raise ConfigError("source: an address of PostgreSQL has one host and a database: postgres://HOST:PORT/DATABASE")
    hosts = ((folder, hosts[0][1]),) if folder else hosts
    return ServerAddress(hosts, options.get("tls") == "on", path[0], user, password)
